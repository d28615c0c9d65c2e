"""What opening a base of sharded weights takes of the host's memory, above that of the imports.

    python benchmarks/load_base.py [--gib 1] [--device cpu]

Writes a Llama of random weights in bf16, in shards of a quarter of it, and opens it in processes of their own: as a
base in each precision, and, for comparison, by reading all shards into a state dict that a model then copies.
`anonymous` is memory that the process has to itself; pages of the files that are mapped are the system's to drop.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from time import perf_counter

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from loratory.bases.core import load_base
from loratory.bases.options import BaseEntry
from loratory.bases.prepare import write_manifest
from loratory.training.pretrain import byte_pair_tokenizer

MIB = 2**20
VOCABULARY = 300


def write_base(folder: Path, gib: float) -> None:
    """A prepared base of about so many GiB in bf16."""
    from transformers import PreTrainedTokenizerFast

    width, layers = 1024, max(1, round(gib * 2**30 / 2 / (4 * 1024**2 + 3 * 1024 * 4096)))
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    config = LlamaConfig(**sizes, num_attention_heads=8, vocab_size=VOCABULARY, dtype="bfloat16")
    model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size=f"{max(1, round(gib * 256))}MB")
    words = byte_pair_tokenizer(["acg tta gca"] * 4, VOCABULARY, ["<|pad|>", "<|end|>"], letters=True)
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<|pad|>", eos_token="<|end|>").save_pretrained(folder)
    write_manifest(folder, "random", BaseEntry(family="causal", path=str(folder)), origin="benchmark")


def status(field: str) -> float:
    """A number of /proc/self/status in MiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def open_copied(folder: Path) -> torch.nn.Module:
    """All shards in one state dict, in float32, which a model copies."""
    from safetensors.torch import load_file

    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= {name: tensor.float() for name, tensor in load_file(path).items()}
    model = LlamaForCausalLM(LlamaConfig.from_pretrained(folder))
    model.load_state_dict(tensors, strict=False)
    return model


def measure(folder: Path, arm: str, device: str) -> None:
    """Prints what one way of opening takes."""
    before, highest, done = status("RssAnon"), 0.0, Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.002):
            highest = max(highest, status("RssAnon"))

    watcher = Thread(target=watch)
    watcher.start()
    started = perf_counter()
    model = open_copied(folder) if arm == "copied" else load_base(folder, device, arm).model
    seconds = perf_counter() - started
    done.set()
    watcher.join()
    size = sum(p.numel() * p.element_size() for p in model.parameters()) / MIB
    held = status("RssAnon") - before
    print(
        f"{arm:8} {size:9.0f} {highest - before:15.0f} {held:14.0f} {(highest - before) / size:10.2f} {seconds:8.1f}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        measure(options.folder, options.arm, options.device)
        sys.exit()
    with TemporaryDirectory() as scratch:
        write_base(Path(scratch, "base"), options.gib)
        shards = len(list(Path(scratch, "base").glob("*.safetensors")))
        print(f"{shards} shards in bf16, on {options.device}, torch {torch.__version__}; MiB and s")
        print("as       the model  peak anonymous  held afterwards  peak/model  seconds", flush=True)
        packed = ["int8", "nf4"] if options.device == "cuda" else []
        for arm in ["copied", "fp32", "bf16", *packed]:
            again = [sys.executable, __file__, "--arm", arm, "--folder", f"{scratch}/base", "--device", options.device]
            subprocess.run(again, check=True)
