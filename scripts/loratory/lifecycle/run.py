"""A stage: a procedure with everything that it is compared with, trained and asked about held-out records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loratory.adapters import core, deltas
from loratory.bases.core import Base, load_base
from loratory.data.files import atomic_write, write_json
from loratory.domains.contract import Example, TaskOptions
from loratory.evaluation.predict import System, examples_by_split, run_system
from loratory.evaluation.rows import write_rows
from loratory.lifecycle.contract import Arm
from loratory.lifecycle.room import open_room

SPLIT = "test"


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
) -> None:
    """Writes what every arm predicts, measures and leaves behind.

    Args:
        entry: the config's entry under `lifecycle`. adapter: that of the adapter which it names.
        data: {domain: dataset folder}, in the entry's order. tasks: {domain: task options}.
        out: folder. `predictions/{domain}/seed{n}.parquet` has rows as `predict` writes them; `measures.json` lists
            {arm, seed, measures} in the order in which arms came; `adapters/seed{n}/{arm}/` are PEFT folders.
    """
    base, out = load_base(base_folder, device), Path(out)
    questions = {
        domain: examples_by_split(domain, folder, tasks[domain], base, (SPLIT,), evaluation)[SPLIT]
        for domain, folder in data.items()
    }
    measures: list[dict[str, Any]] = []
    with atomic_write(out / "predictions") as predictions, atomic_write(out / "adapters") as adapters:
        adapters.mkdir(parents=True)  # of stages that keep none too
        for seed in seeds:
            room = open_room(name, entry, base, adapter, seed, data, tasks, device, checkpoints, out)
            rows: dict[str, list[dict]] = {domain: [] for domain in data}
            for arm in entry.iterate_arms(entry, room):
                for domain, asked in questions.items():
                    rows[domain] += answer_questions(arm, domain, asked, tasks[domain], evaluation, seed)
                measures.append({"arm": arm.name, "seed": seed, "measures": dict(arm.measures)})
                if arm.stored:
                    store_adapter(arm, adapters / f"seed{seed}" / arm.name, {"stage": name, "seed": seed})
            for domain, found in rows.items():
                write_rows(predictions / domain / f"seed{seed}.parquet", found)
    write_json(out / "measures.json", measures)
    room.job("").remove_checkpoints()


def answer_questions(
    arm: Arm, domain: str, questions: Sequence[Example], task: TaskOptions, evaluation: Any, seed: int
) -> list[dict]:
    system = System((arm.name,), arm.kind, arm.model)
    rows, _ = run_system(arm.base, domain, system, SPLIT, questions, task, evaluation, seed)
    return [row | {"system": arm.name, "too_long": False} for row in rows]


def store_adapter(arm: Arm, folder: Path, run: dict) -> None:
    """Keeps the adapter that is on the arm's model as a PEFT folder."""
    found = core.export(arm.model, arm.base.heads, run | adapter_facts(arm.base))
    linear = core.linear_layers(arm.base.model)
    transposed = any(isinstance(layer, core.Conv1D) for layer in linear.values())
    deltas.save_adapter(folder, found, causal=arm.base.family == "causal", transposed=transposed)


def adapter_facts(base: Base) -> dict[str, Any]:
    return {"base": base.manifest["name"], "base_sha256": base.fingerprint}
