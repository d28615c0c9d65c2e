"""One adapter trained on two GPUs: the curve of one, its speed, and what a killed process costs.

    python benchmarks/two_gpus.py

LoRA of rank 16 on all seven linear layers of a Llama shape of 1.1 G random weights in bf16, fp32 adapters, autocast;
two batches of 16 × 1,024 tokens a step, all scored. Arms: two processes that each hold the base (data parallel), two
that hold it in parts (FSDP2), one that passes both batches; the same config but for `processes` and `sharding`. An arm
counts if its curve is that of one process. Tokens a second are of the median step after four. Then, with PyTorch's
deterministic kernels, a training of two processes one of which is killed, and its resumption, against one that was
left alone. On a host without GPUs everything is shown small, on CPUs and through gloo.
"""

import os
import signal
import sys
from functools import partial
from multiprocessing import active_children
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from types import SimpleNamespace

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from loratory.bases.core import Encoded  # noqa: E402
from loratory.bases.families.causal import Family as Causal  # noqa: E402
from loratory.config import adapter_entry  # noqa: E402
from loratory.data.files import read_json, write_json  # noqa: E402
from loratory.errors import InputError  # noqa: E402
from loratory.training import sweep  # noqa: E402
from loratory.training.job import Job  # noqa: E402
from loratory.training.launch import run_processes  # noqa: E402
from loratory.training.processes import is_main_process, process_index  # noqa: E402
from loratory.training.sharding import shard_layers  # noqa: E402

LARGE = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32}
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
DEVICE = "cuda" if torch.cuda.device_count() else "cpu"  # by the driver's library: no GPU is used before the forks
SHAPE = LARGE | {"vocab_size": 32000, "num_key_value_heads": 8} if DEVICE == "cuda" else SMALL | {"vocab_size": 512}
ROWS, LENGTH = (16, 1024) if DEVICE == "cuda" else (4, 32)
STEPS, LEFT_OUT, KILLED_IN, SAVE_EVERY, SHORT = 24, 4, 6, 4, 8
SAME = 1e-3  # largest difference of a step's loss
SEED, RATE = 0, 1e-3


class Base(Causal):
    """A causal base without a folder, random weights on their device."""

    def __init__(self) -> None:
        torch.manual_seed(SEED)
        config = LlamaConfig(**SHAPE, max_position_embeddings=LENGTH, use_cache=False, dtype=torch.bfloat16)
        with torch.device(DEVICE):
            model = LlamaForCausalLM(config).to(torch.bfloat16)
        tokenizer = SimpleNamespace(pad_token_id=0, bos_token_id=1, eos_token_id=2)
        super().__init__("", {"weights_sha256": ""}, model.requires_grad_(False), tokenizer)


def sequences(count: int) -> list[Encoded]:
    """Tokens that are unequally frequent, so that there is something to learn."""
    random = np.random.default_rng(SEED)
    frequencies = 1 / np.arange(1, SHAPE["vocab_size"] - 2)
    tokens = np.arange(3, SHAPE["vocab_size"])
    rows = random.choice(tokens, (count, LENGTH), p=frequencies / frequencies.sum()).tolist()
    return [Encoded(row, row, LENGTH) for row in rows]


def train(folder: Path, name: str, out: str, steps: int, processes: int, sharding: str, kill: bool) -> None:
    """One arm, in each of its processes; the first writes its outcome."""
    torch.use_deterministic_algorithms(name == "kill", warn_only=True)
    base, items = Base(), sequences(2 * ROWS * steps)
    if sharding == "fsdp":
        shard_layers(base.model, DEVICE)
    training = {"steps": steps, "batch_tokens": ROWS * LENGTH, "gradient_accumulation_steps": 2, "precision": "bf16"}
    training |= {"learning_rates": [RATE], "save_every": SAVE_EVERY if name == "kill" else 0}
    training |= {"processes": processes, "sharding": sharding, "decay": "constant"}
    adapter = adapter_entry({"method": "lora", "rank": 16, "alpha": 32, "training": training})

    class Killed(sweep.AdapterSession):
        def before_step(self, step: int) -> None:
            if step == KILLED_IN and process_index() == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            super().before_step(step)

    if kill:
        sweep.AdapterSession = Killed
    job = Job(DEVICE, folder / "checkpoints" / out.partition(".")[0], name)
    found = sweep.train_one(base, {"train": items, "valid": items[:ROWS]}, adapter, SEED, RATE, job)
    if is_main_process():
        write_json(folder / f"{out}.json", {"curve": found["curve"], "memory": found["accelerator_memory_max"]})
        tensors = {f"{layer}.{k}": getattr(d, k) for layer, d in found["adapter"].deltas.items() for k in ("A", "B")}
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, folder / f"{out}.safetensors")


def run_arm(folder: Path, name: str, out: str, processes: int, sharding="none", steps=STEPS, kill=False) -> dict:
    run_processes(processes, DEVICE, partial(train, folder, name, out, steps, processes, sharding, kill))
    return read_json(folder / f"{out}.json")


def losses(arm: dict) -> np.ndarray:
    return np.array([point["loss"] for point in arm["curve"]])


def tokens_per_second(arm: dict) -> float:
    later = arm["curve"][LEFT_OUT:]
    return later[0]["positions"] / median(point["seconds"] for point in later)


def show_speed(arms: dict[str, dict]) -> None:
    one = arms["1 process"]
    for name, arm in arms.items():
        apart = float(np.abs(losses(arm) - losses(one)).max())
        if apart > SAME:
            raise SystemExit(f"{name}: its curve is {apart:.2g} away from that of one process: no ratio")
        speed, memory = tokens_per_second(arm), arm["memory"]
        held = f", {memory / 1e9:.1f} GB in the first process" if memory else ""
        scaling = f"{speed / tokens_per_second(one):.2f} times one process"
        print(f"{name}: {speed:,.0f} tokens a second, {scaling}, losses within {apart:.1e} of its{held}", flush=True)


def show_resumption(folder: Path) -> None:
    whole = run_arm(folder, "kill", "whole", 2, steps=SHORT)
    try:
        run_arm(folder, "kill", "parts", 2, steps=SHORT, kill=True)
    except InputError as error:
        left = len(active_children())
        print(f"a process killed in step {KILLED_IN + 1}: {error}; processes left: {left}", flush=True)
    resumed = run_arm(folder, "kill", "parts", 2, steps=SHORT)
    pairs = [load_file(folder / f"{name}.safetensors") for name in ("whole", "parts")]
    apart = max(float((pairs[0][key] - pairs[1][key]).abs().max()) for key in pairs[0])
    curves = float(np.abs(losses(whole) - losses(resumed)).max())
    print(f"resumed: adapter within {apart:.1e} and losses within {curves:.1e} of those of a training left alone")


def main() -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for deterministic kernels
    with TemporaryDirectory() as name:
        folder = Path(name)
        arms = {
            "2 processes": run_arm(folder, "2 processes", "two", 2),
            "2 processes, FSDP2": run_arm(folder, "2 processes, FSDP2", "fsdp", 2, "fsdp"),
        }
        show_resumption(folder)
        arms |= {"1 process": run_arm(folder, "1 process", "one", 1)}  # last: it is this one, and uses a GPU
        show_speed(arms)


if __name__ == "__main__":
    main()
