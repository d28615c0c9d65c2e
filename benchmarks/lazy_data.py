"""What many records cost a training before its first step: rounds, encoded ahead of it, against encoding them all.

    python benchmarks/lazy_data.py [records] [records that are encoded all] [steps]

Ratings with five earlier ones each, in a Parquet file as datasets are written; LoRA on a Llama of two layers with
random weights and a byte-pair tokenizer, 2,048 positions a step; on a GPU a Llama of SmolLM2-135M's shape in bf16,
8,192 positions. Each arm is a process: seconds from opening the split to the first step's update, peak of resident
memory of the process and of the one that encodes for it together (what they share is counted twice), and the share of
the training in which it waited for its batches.
"""

import resource
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

RECORDS, WHOLE, STEPS = 5_000_000, 100_000, 200
GROUP, FILMS, HISTORY = 20_000, 3_000, 5  # rows of a row group, titles, earlier ratings


def write_split(path: Path, records: int) -> None:
    from loratory.domains.dataset import record_schema
    from loratory.domains.recsys import build

    draw, schema = np.random.default_rng(0), record_schema(build)
    titles = np.array([f"Film {'of the ' * (n % 4)}{n} ({1950 + n % 70})" for n in range(FILMS)])
    with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
        for start in range(0, records, GROUP):
            n = min(GROUP, records - start)
            film, past = draw.integers(FILMS, size=n), draw.integers(FILMS, size=(n, HISTORY))
            columns = {
                "id": [f"{row:09d}" for row in range(start, start + n)],
                "group": (draw.integers(200_000, size=n)).astype(str),
                "user": draw.integers(200_000, size=n).astype(str),
                "item": film.astype(str),
                "title": titles[film],
                "profile": [""] * n,
                "timestamp": np.full(n, 10**9),
                "rating": draw.integers(1, 11, n) / 2,
                "label": draw.integers(2, size=n),
                "user_ratings": np.full(n, HISTORY),
                "user_mean": np.full(n, 3.5),
                "item_ratings": np.full(n, 100),
                "item_mean": np.full(n, 3.5),
                "history_times": list(np.full((n, HISTORY), 10**8)),
                "history_items": list(past.astype(str)),
                "history_titles": list(titles[past]),
                "history_stars": list(draw.integers(1, 11, (n, HISTORY)) / 2),
            }
            arrays = {name: pa.array(values).cast(schema.field(name).type) for name, values in columns.items()}
            writer.write_table(pa.table(arrays, schema))


def random_base(device: str):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from loratory.bases.families.causal import Family
    from loratory.training.pretrain import byte_pair_tokenizer

    texts = [f"The user gave {n} stars to the film of the {n}. Will the user like it? yes no" for n in range(2000)]
    special = ["<|pad|>", "<|begin|>", "<|end|>"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_pair_tokenizer(texts, 1000, special, letters=False),
        **dict(zip(("pad_token", "bos_token", "eos_token"), special)),
    )
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    if device == "cuda":
        sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
        sizes["num_key_value_heads"] = 3
    model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=len(tokenizer), max_position_embeddings=1024))
    model.to(device, dtype=torch.bfloat16 if device == "cuda" else torch.float32)
    return Family("", {"weights_sha256": "", "name": "toy"}, model.requires_grad_(False), tokenizer)


def train(folder: Path, steps: int, whole: bool) -> str:
    import torch

    from loratory.config import adapter_entry
    from loratory.domains.recsys.sources import Task
    from loratory.training import fit, sweep
    from loratory.training.job import Job

    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base, first = random_base(device), []
    update = fit.update
    fit.update = lambda *given: (update(*given), first.append(perf_counter()))[0]
    recipe = {"steps": steps, "learning_rates": [1e-3], "save_every": 0, "batch_tokens": 2048}
    recipe |= {"batch_tokens": 8192, "precision": "bf16"} if device == "cuda" else {}
    entry = adapter_entry({"method": "lora", "rank": 4, "training": recipe})
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    started = perf_counter()
    split = sweep.encode_split if whole else sweep.training_split
    sets = {"train": split(base, "recsys", folder, Task(), "train")}
    sets["valid"] = sweep.encode_split(base, "recsys", folder, Task(), "valid", 50)
    trial = sweep.train_one(base, sets, entry, 0, 1e-3, Job(device, folder / "checkpoints", "toy"))
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    peak = sum(resource.getrusage(of).ru_maxrss for of in who) / 1024
    waited = trial["data_wait_time"] / trial["train_time"]
    return (
        f"first step after {first[0] - started:.1f} s, peak {peak:.0f} MB ({held:.0f} MB before), "
        f"waited {waited:.1%} of {trial['train_time']:.0f} s"
    )


def main(records: int, whole: int, steps: int) -> None:
    with TemporaryDirectory() as folder:
        for size, arms in ((whole, ("rounds", "all")), (records, ("rounds",))):
            write_split(Path(folder) / "train.parquet", size)
            write_split(Path(folder) / "valid.parquet", 100)
            for arm in arms:
                command = [sys.executable, __file__, "arm", arm, folder, str(steps)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                print(f"{size:,} records, {arm}: {done.stdout.splitlines()[-1]}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["arm"]:
        print(train(Path(sys.argv[3]), int(sys.argv[4]), whole=sys.argv[2] == "all"))
    else:
        given = [int(number) for number in sys.argv[1:]]
        main(*given, *(RECORDS, WHOLE, STEPS)[len(given) :])
