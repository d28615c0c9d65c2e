"""What transcripts get wrong: the worst words of each system, from predictions alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from loratory import registry
from loratory.domains.dataset import read_split

KINDS = ("base", "adapter", "mixture")  # what answers for itself, and not as a control of something else


def worst_words(
    domain: str, predictions: Mapping[int, Path | str], data: Path | str, task: Any, count: int
) -> list[dict[str, Any]]:
    """Rows of `errors.worst_words` of the domain, for each system, all its seeds together.

    Args:
        predictions: {training seed: parquet file of `evaluation.predict`}. data: folder of the domain's dataset.
        count: how many words of a system.
    """
    errors = registry.load_module("domain", domain, "errors")
    records = read_split(data, "test")
    systems: dict[str, list[dict]] = {}
    for _, path in sorted(predictions.items()):
        for row in pq.read_table(path).to_pylist():
            if row["split"] == "test" and row["kind"] in KINDS and row["text"] is not None:
                systems.setdefault(row["system"], []).append(row)
    return [
        {"system": system} | facts
        for system, rows in sorted(systems.items())
        for facts in errors.worst_words(rows, records, task, count)
    ]
