"""Requests for many adapters on one base: in shared batches, adapter after adapter, and PEFT's mixed batches.

    python benchmarks/mixed_batches.py [--adapters 1 10 100] [--requests 100] [--prompt 32] [--tokens 16] [--device D]

A Llama shape of 29 M random weights (8 layers, width 512), fp32, LoRAs of ranks 4, 8 and 16 on all seven linear
layers; the same requests in every arm, as many for each adapter, greedy, none ends before the others. Printed: seconds
(of one thread's work on a CPU; medians of three rounds after one that is not counted), tokens a second, what an arm
takes of ours, and whether all tokens are the same.

- ours: one batch; each row has its own adapter.
- in turn: each adapter put on, asked for its rows, and taken off.
- peft: one batch with `adapter_names`.
"""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import peft  # noqa: E402
import torch  # noqa: E402
from random_models import random_adapter, random_base  # noqa: E402

from loratory.adapters import core, deltas  # noqa: E402
from loratory.bases.decoding import decode_batch, empty_cache  # noqa: E402
from loratory.serving.adapters import AdapterSet  # noqa: E402

SIZES = {"hidden_size": 512, "intermediate_size": 1360, "num_hidden_layers": 8, "num_attention_heads": 8}
VOCABULARY, RANKS, ROUNDS = 4096, (4, 8, 16), 3


def write_texts(model: torch.nn.Module, cache: Callable, ids: torch.Tensor, tokens: int, **options) -> list[list[int]]:
    """What the rows of `ids [rows, length]` write."""
    mask = torch.ones_like(ids)
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": mask.cumsum(-1) - 1}

    def forward(inputs: dict, cache: object) -> object:
        return model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1, **options)

    return decode_batch(forward, inputs, cache(), (), tokens)


def measure(run: Callable[[], list], device: str) -> tuple[float, list]:
    """Median seconds, and what was written."""
    clock, seconds = (process_time if device == "cpu" else perf_counter), []
    for _ in range(ROUNDS + 1):
        started = clock()
        written = run()
        seconds.append(clock() - started)
    return median(seconds[1:]), written


def compare_arms(options: Namespace, number: int) -> None:
    """Prints a line for each arm, with so many adapters."""
    base, wrapped = (random_base(SIZES, VOCABULARY, options.device) for _ in range(2))
    adapters = {f"a{i}": random_adapter(base, RANKS[i % len(RANKS)], i) for i in range(number)}
    names = [f"a{row * number // options.requests}" for row in range(options.requests)]
    shape, random = (options.requests, options.prompt), torch.Generator().manual_seed(1)
    ids = torch.randint(VOCABULARY, shape, generator=random).to(options.device)
    with TemporaryDirectory() as folder:
        for name, adapter in adapters.items():
            deltas.save_adapter(Path(folder, name), adapter, causal=True)
        model = peft.PeftModel.from_pretrained(wrapped, str(Path(folder, "a0")), adapter_name="a0")
        for name in [*adapters][1:]:
            model.load_adapter(str(Path(folder, name)), adapter_name=name)
    model.eval()

    def cache() -> object:
        return empty_cache(base)

    def answer_in_turn() -> list[list[int]]:
        written = []
        for name, rows in groupby(range(len(names)), lambda row: names[row]):
            core.apply(base, adapters[name], name)
            written += write_texts(base, cache, ids[[*rows]], options.tokens)
            core.detach(base)
        return written

    def answer_together() -> list[list[int]]:
        with shared.use_rows(names):
            return write_texts(base, cache, ids, options.tokens)

    turns = measure(answer_in_turn, options.device)
    theirs = measure(lambda: write_texts(model, cache, ids, options.tokens, adapter_names=names), options.device)
    shared = AdapterSet(base, adapters, adapters)
    ours = measure(answer_together, options.device)
    for arm, (seconds, written) in {"ours": ours, "in turn": turns, "peft": theirs}.items():
        speed, same = options.requests * options.tokens / seconds, written == ours[1]
        ratio = f"{seconds / ours[0]:6.2f} x ours"
        print(f"{number:4} adapters  {arm:8} {seconds:8.2f} s  {speed:8.0f} tokens/s  {ratio}  same tokens {same}")


if __name__ == "__main__":
    parser = ArgumentParser()
    parser.add_argument("--adapters", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    for count in given.adapters:
        compare_arms(given, count)
