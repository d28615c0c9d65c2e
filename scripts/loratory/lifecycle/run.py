"""A stage: a procedure with everything that it is compared with, trained and asked about held-out records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from statistics import fmean, median
from time import perf_counter
from typing import Any

import torch

from loratory.adapters import core, deltas
from loratory.bases.core import Base, Batch, load_base
from loratory.data.batching import batches_by_length
from loratory.data.files import atomic_write, write_json
from loratory.domains.contract import Example, TaskOptions
from loratory.evaluation.answers import encode_questions
from loratory.evaluation.predict import examples_by_split, run_system
from loratory.evaluation.rows import write_rows
from loratory.evaluation.systems import System
from loratory.lifecycle.contract import Arm
from loratory.lifecycle.cutting import merge_base, save_base
from loratory.lifecycle.room import open_room

SPLIT = "test"
TIMED_BATCHES, PASSES = 4, 7  # of each domain, and how often each is put through a model


def run_stage(
    name: str,
    entry: Any,
    base_folder: Path | str,
    adapter: Any,
    data: Mapping[str, Path],
    tasks: Mapping[str, TaskOptions],
    seeds: Sequence[int],
    evaluation: Any,
    device: str,
    checkpoints: Path | str,
    out: Path | str,
    further: Mapping[str, Path] = {},
) -> None:
    """Writes what every arm predicts, measures and leaves behind.

    Args:
        entry: the config's entry under `lifecycle`. adapter: that of the adapter which it names.
        data: {domain: dataset folder}, in the entry's order. tasks: {domain: task options}.
        out: folder. `predictions/{domain}/seed{n}.parquet` has rows as `predict` writes them; `measures.json` lists
            {arm, seed, measures} in the order in which arms came, and `invented.json` {arm, seed, family, domain,
            texts} of what arms learnt from; `kept/seed{n}/{arm}/` are PEFT folders of adapters, or folders of whole
            bases.
        further: {base that the procedure needs besides: its folder}.
    """
    base, out = load_base(base_folder, device), Path(out)
    others = {other: load_base(folder, device) for other, folder in further.items()}
    questions = {
        domain: examples_by_split(domain, folder, tasks[domain], base, (SPLIT,), evaluation)[SPLIT]
        for domain, folder in data.items()
    }
    measures: list[dict[str, Any]] = []
    invented: list[dict[str, Any]] = []
    with atomic_write(out / "predictions") as predictions, atomic_write(out / "kept") as kept:
        kept.mkdir(parents=True)  # of stages that keep nothing too
        for seed in seeds:
            room = open_room(name, entry, base, adapter, seed, data, tasks, device, checkpoints, out, others)
            rows: dict[str, list[dict]] = {domain: [] for domain in data}
            for arm in entry.iterate_arms(entry, room):
                for domain, asked in questions.items():
                    rows[domain] += answer_questions(arm, domain, asked, tasks[domain], evaluation, seed)
                measured = dict(arm.measures)
                if arm.timed:
                    measured["milliseconds a batch"] = batch_milliseconds(merge_base(arm.base), questions, evaluation)
                measures.append({"arm": arm.name, "seed": seed, "measures": measured})
                own = {"arm": arm.name, "seed": seed, "family": arm.base.family}
                invented += [own | {"domain": domain, "texts": [*texts]} for domain, texts in arm.invented.items()]
                place = kept / f"seed{seed}" / arm.name
                if arm.stored:
                    store_adapter(arm, place, {"stage": name, "seed": seed})
                if arm.whole:
                    save_base(arm.base, place, name=arm.name, origin=f"stage {name}")
            for domain, found in rows.items():
                write_rows(predictions / domain / f"seed{seed}.parquet", found)
    write_json(out / "invented.json", invented)
    write_json(out / "measures.json", measures)
    room.job("").remove_checkpoints()


def answer_questions(
    arm: Arm, domain: str, questions: Sequence[Example], task: TaskOptions, evaluation: Any, seed: int
) -> list[dict]:
    system = System((arm.name,), arm.kind, arm.model)
    rows, _ = run_system(arm.base, domain, system, SPLIT, questions, task, evaluation, seed)
    return [row | {"system": arm.name, "too_long": False} for row in rows]


@torch.no_grad()
def batch_milliseconds(base: Base, questions: Mapping[str, Sequence[Example]], evaluation: Any) -> float:
    """What the model takes to read a batch of questions with their answers: of each batch the median over several
    passes, after one that is not counted, and the mean of these over the first batches of each domain."""
    batches = []
    for asked in questions.values():
        items = [part for item in encode_questions(base, asked, evaluation.decoding) for part in base.windows(item)]
        plan = batches_by_length([item.length for item in items], evaluation.batch_tokens)
        batches += [base.collate([items[i] for i in batch]) for batch in islice(plan, TIMED_BATCHES)]
    passes = [[read_milliseconds(base, batch) for batch in batches] for _ in range(PASSES + 1)]
    return fmean(map(median, zip(*passes[1:])))


def read_milliseconds(base: Base, batch: Batch) -> float:
    started = perf_counter()
    total, _ = base.loss(base.model, batch)
    total.item()  # waits for a GPU
    return 1000 * (perf_counter() - started)


def store_adapter(arm: Arm, folder: Path, run: dict) -> None:
    """Keeps the adapter that is on the arm's model as a PEFT folder."""
    found = core.export(arm.model, arm.base.heads, run | adapter_facts(arm.base))
    linear = core.linear_layers(arm.base.model)
    transposed = any(isinstance(layer, core.Conv1D) for layer in linear.values())
    deltas.save_adapter(folder, found, causal=arm.base.family == "causal", transposed=transposed)


def adapter_facts(base: Base) -> dict[str, Any]:
    return {"base": base.manifest["name"], "base_sha256": base.fingerprint}
