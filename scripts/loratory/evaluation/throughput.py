"""How fast a base answers for many adapters: an engine in shared batches, one adapter at a time, and PEFT's batches.

A study has few adapters; to reach a number, each stands under many names, whose weights every arm holds by themselves.
All arms answer the same requests, which come at once, greedily.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import torch

from loratory.adapters import core
from loratory.adapters.deltas import CONFIG, Adapter, load_adapter
from loratory.bases.core import load_base, pad_rows
from loratory.bases.decoding import decode_steps, empty_cache
from loratory.bases.families.causal import Family as CausalBase
from loratory.data.files import write_json
from loratory.errors import InputError
from loratory.serving.catalog import sort_models
from loratory.serving.engine import Engine, page_width
from loratory.serving.pool import PagePool
from loratory.serving.throughput import Arrival, Throughput, measure_throughput

ROWS = 64  # requests of a batch
FIRST_ID = 3  # below it most tokenizers have what is no text

Arm = dict[str, Any]


def measure_arms(
    base_folder: Path,
    folders: Mapping[str, Path],
    count: int,
    out: Path | str,
    *,
    requests: int,
    prompt_tokens: int,
    tokens: int,
    most_peft: int,
    device: str,
) -> None:
    """Writes what each arm takes with `count` adapters as JSON: `adapters`, `distinct` (of the study), `arms`.

    Args:
        folders: {name: folder} of the study's adapters on the base. requests: with an adapter each, in turn.
        prompt_tokens, tokens: that each reads and writes at most. most_peft: the most adapters that PEFT is asked for.

    Raises:
        InputError: none of the adapters can share batches, or the base has no room for these texts.
    """
    base = open_base(base_folder, "cpu")
    catalog = sort_models(base, folders)
    for name, reason in catalog.reasons.items():
        print(f"{name} is left out: {reason}", flush=True)
    for error in catalog.refused.values():
        raise error
    paths = [folder for folder in catalog.shared.values() if folder is not None]
    if not paths:
        raise InputError(base_folder, "no adapter on this base can share batches", ", ".join(folders), "a low rank")
    named = {f"a{place}": paths[place % len(paths)] for place in range(count)}
    arrivals = draw_arrivals(base, [*named], requests, prompt_tokens, tokens)
    has_peft = count <= most_peft and all((path / CONFIG).is_file() for path in paths)
    arms = []
    for measure in (measure_engine, measure_turns, *([measure_peft] if has_peft else [])):
        arms.append(measure(open_base(base_folder, device), named, arrivals))
        gc.collect()  # a base that adapters were on is in a circle
        torch.cuda.empty_cache()
    first = arms[0]["written"]
    for arm in arms:
        arm["equal"] = sum(one == other for one, other in zip(arm.pop("written"), first))
        print(f"{count} adapters: {arm}", flush=True)
    facts = {
        "adapters": count,
        "distinct": min(count, len(paths)),
        "requests": requests,
        "prompt_tokens": prompt_tokens,
    }
    write_json(Path(out), {**facts, "tokens": tokens, "device": device_name(device), "arms": arms})


def open_base(folder: Path, device: str) -> CausalBase:
    base = load_base(folder, device)
    if not isinstance(base, CausalBase):
        raise InputError(folder, "what is served must write text", base.family, "a causal base")
    return base


def device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else "CPU"


def draw_arrivals(base: CausalBase, names: Sequence[str], requests: int, prompt: int, tokens: int) -> list[Arrival]:
    """Random texts, each as long as any, for the adapters in turn."""
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(FIRST_ID, base.model.config.vocab_size, (requests, prompt), generator=random).tolist()
    return [Arrival(row, names[place % len(names)], tokens) for place, row in enumerate(ids)]


def measure_engine(base: CausalBase, named: Mapping[str, Path], arrivals: Sequence[Arrival]) -> Arm:
    """With no adapter in the pool at the start."""
    rows, parts = min(ROWS, len(arrivals)), 2 * base.model.config.num_hidden_layers
    texts = rows * (len(arrivals[0].ids) + arrivals[0].limit) * parts
    own = max(adapter_pages(load_adapter(path), base) for path in {*named.values()})
    engine = Engine(base, named, texts + own * (3 * min(rows, len(named)) // 2 + 1), rows, rows)
    for _ in range(2):  # the first warms up
        engine.adapters.make_room(engine.pool.pages)
        found = measure_throughput(engine, arrivals)
    engine.close()
    return describe_arm("shared batches", found)


def describe_arm(name: str, found: Throughput) -> Arm:
    return {
        "arm": name,
        "requests_per_second": found.requests_per_second,
        "tokens_per_second": found.tokens_per_second,
        "first_token": found.median_first_token,
        "first_token_p95": found.p95_first_token,
        "adapter_bytes": found.pool_bytes,
        "device_bytes": found.device_bytes,
        "written": found.written,
    }


def adapter_pages(adapter: Adapter, base: CausalBase) -> int:
    like = PagePool(0, page_width(base.model.config), next(base.model.parameters()))
    sizes = [(delta.rank, (delta.A.shape[1], delta.B.shape[0])) for delta in adapter.deltas.values()]
    return sum(rank * sum(map(like.pages_per_vector, widths)) for rank, widths in sizes)


def measure_turns(base: CausalBase, named: Mapping[str, Path], arrivals: Sequence[Arrival]) -> Arm:
    """Each adapter is put on the base, answers all that it is asked, and is taken off again."""
    known = {path: load_adapter(path) for path in {*named.values()}}

    def answer_all(given: Sequence[Arrival], clock: Clock) -> None:
        for name in dict.fromkeys(one.adapter for one in given):
            assert name is not None
            core.apply(base.model, known[named[name]], named[name])
            cast(torch.nn.Module, base.model).to(base.device)
            for batch in cut_batches([place for place, one in enumerate(given) if one.adapter == name]):
                clock.write_batch(base, base.model, given, batch)
            core.detach(base.model)

    return measure_arm(
        "one at a time", base, answer_all, arrivals, max(adapter_bytes(one, base) for one in known.values())
    )


def measure_peft(base: CausalBase, named: Mapping[str, Path], arrivals: Sequence[Arrival]) -> Arm:
    """All adapters in the device's memory; each batch names the adapter of each row."""
    import peft

    first, *others = named
    options: dict[str, Any] = {"autocast_adapter_dtype": False, "low_cpu_mem_usage": True}
    wrapped = peft.PeftModel.from_pretrained(base.model, str(named[first]), adapter_name=first, **options)
    for name in others:
        wrapped.load_adapter(str(named[name]), adapter_name=name, **options)
    wrapped.eval()

    def answer_all(given: Sequence[Arrival], clock: Clock) -> None:
        for batch in cut_batches(range(len(given))):
            names = [given[place].adapter for place in batch]
            clock.write_batch(base, wrapped, given, batch, adapter_names=names)

    known = {path: adapter_bytes(load_adapter(path), base) for path in {*named.values()}}
    return measure_arm("PEFT", base, answer_all, arrivals, sum(known[path] for path in named.values()))


def adapter_bytes(adapter: Adapter, base: CausalBase) -> int:
    """In numbers of the base's."""
    return next(base.model.parameters()).element_size() * adapter.parameters


def cut_batches(places: Sequence[int]) -> list[Sequence[int]]:
    return [places[start : start + ROWS] for start in range(0, len(places), ROWS)]


class Clock:
    """What is written from a start on, and when each request has its first token."""

    def __init__(self, requests: int) -> None:
        self.started = perf_counter()
        self.written: list[list[int]] = [[] for _ in range(requests)]
        self.first_token = [0.0] * requests

    @torch.no_grad()
    def write_batch(
        self, base: CausalBase, model: torch.nn.Module, given: Sequence[Arrival], batch: Sequence[int], **options: Any
    ) -> None:
        """Answers the requests at these places in one batch."""
        ids = pad_rows([list(given[place].ids) for place in batch], base.pad_id, base.device, left=True)
        mask = pad_rows([[1] * len(given[place].ids) for place in batch], 0, base.device, left=True)
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}

        def forward(inputs: dict[str, Any], cache: Any) -> Any:
            return model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1, **options)

        steps = decode_steps(forward, inputs, empty_cache(base.model), base.end_id, given[batch[0]].limit)
        for number, tokens in enumerate(steps):
            for place, token in zip(batch, tokens):
                if number == 0:
                    self.first_token[place] = perf_counter() - self.started
                if token is not None:
                    self.written[place].append(token)


def measure_arm(
    name: str,
    base: CausalBase,
    answer_all: Callable[[Sequence[Arrival], Clock], None],
    arrivals: Sequence[Arrival],
    held: int,
) -> Arm:
    """Of an arm that answers requests batch by batch, and holds so many bytes of adapters at once."""
    answer_all([replace(one, limit=2) for one in arrivals[:ROWS]], Clock(len(arrivals)))  # warms up
    on_gpu = base.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(base.device)
    clock = Clock(len(arrivals))
    answer_all(arrivals, clock)
    seconds = perf_counter() - clock.started
    peak = torch.cuda.max_memory_allocated(base.device) if on_gpu else None
    return describe_arm(name, Throughput(seconds, clock.first_token, clock.written, held, peak))
