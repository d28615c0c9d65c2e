"""Predictions → what a domain's page shows of single records; the domain says how (`contract.ViewsModule`)."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from loratory import registry
from loratory.data.files import read_json, write_json
from loratory.domains.dataset import open_split
from loratory.domains.views import Answers
from loratory.evaluation.overlays import read_overlays
from loratory.reporting.tables import BASE, primary_rows

NATURAL = "natural"  # the control whose samples are test records
FOLDED = 2  # samples of a system whose structures are shown


def write_views(
    domain: str,
    base: str,
    out: Path | str,
    *,
    predictions: Path | str,
    baselines: Path | str | None,
    data: Path | str,
    metrics: Path | str,
    task: Any,
    seed: int,
    structures: Path | str | None = None,
    references: Path | str | None = None,
) -> None:
    """Writes a list of the fields of `domains.views.View` to the JSON file `out`; equal input gives equal bytes.

    Args:
        predictions: parquet file of `evaluation.predict` with the training seed `seed`. baselines: that of
            `evaluation.baselines`, or None.
        data: folder of the domain's dataset. metrics: JSON file of `evaluation.score`, by which systems are chosen.
        task: the domain's `Task` options.
        structures: parquet file of `evaluation.fold`. references: that of the chains it names.
    """
    systems, best = choose_systems(read_json(metrics))
    rows = [row for path in (predictions, baselines) if path for row in pq.read_table(path).to_pylist()]
    tested = gather_rows(rows, "test")
    written = gather_rows(rows, "sample")
    control = next((system for system, kind in systems.items() if kind == "baseline"), "")
    shown = {system: tested[system] for system in systems if system in tested}
    records = open_split(data, "test")
    asked = np.isin([*records.texts("id")], [*{id for answered in shown.values() for id in answered}])
    free = [system for system in [*systems, NATURAL] if system in written]
    answers = Answers(
        base=base,
        records=[*records.select(asked)],
        rows=shown,
        control=control,
        best=best,
        samples={system: [row["text"] or "" for row in written[system].values()] for system in free},
        folded=read_overlays(structures, references, free, seed, FOLDED) if structures else [],
    )
    views = registry.load_module("domain", domain, "views").show_records(answers, task)
    write_json(out, [asdict(view) for view in views])


def choose_systems(report: Mapping) -> tuple[dict[str, str], str]:
    """{system: its kind}: the base, the best adapter, the best mixture and the best control, as far as they have a
    value on test; and which of the adapter and the mixture is better, or else the base."""
    rows = [row for row in primary_rows(report, "test").values() if row["value"] is not None]
    sign = -1 if rows and rows[0]["direction"] == "up" else 1
    rows.sort(key=lambda row: (sign * row["value"], row["system"]))
    chosen = [row for kind in (BASE, "adapter", "mixture") for row in first_of_kind(rows, kind)]
    learnt = [row for row in rows if row in chosen and row["kind"] != BASE]
    systems = {row["system"]: row["kind"] for row in chosen}
    if report["control"]:
        systems[report["control"]["system"]] = "baseline"
    return systems, learnt[0]["system"] if learnt else BASE


def first_of_kind(rows: list[Mapping], kind: str) -> list[Mapping]:
    return [row for row in rows if row["kind"] == kind][:1]


def gather_rows(rows: list[dict], split: str) -> dict[str, dict[str, dict]]:
    """{system: {id: its row}} of a split, in id order."""
    found: dict[str, dict[str, dict]] = {}
    for row in sorted((row for row in rows if row["split"] == split), key=lambda row: row["id"]):
        found.setdefault(row["system"], {})[row["id"]] = row
    return found
