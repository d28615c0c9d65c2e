"""Controls that know no language model: what a domain's baselines say about the same records, or write."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from loratory import registry
from loratory.domains.contract import SamplingTaskModule
from loratory.domains.examples import read_records
from loratory.evaluation.rows import write_rows

if TYPE_CHECKING:
    from loratory.domains.contract import TaskOptions


def predict_baselines(
    domain: str,
    data: Path | str,
    task: TaskOptions,
    max_records: int | None,
    max_valid: int | None,
    samples: int,
    out: Path | str,
    transfer: Mapping[str, Path | str] | None = None,
) -> None:
    """Writes one row for each (baseline, record of valid or test) and (baseline, sample); none without baselines.

    Args:
        transfer: {name: dataset folder} of other entries: what baselines that learn of their records say here.
        max_records, max_valid: most records of test and of valid, the same ones that trained systems are asked.
    """
    module = registry.load_module("domain", domain, "task")
    train, test = read_records(data, "train"), read_records(data, "test", max_records)
    valid = read_records(data, "valid", max_valid)
    home = {record["id"]: split for split, part in (("valid", valid), ("test", test)) for record in part}
    found = module.baselines(train, [*valid, *test], task)
    for other, folder in (transfer or {}).items():
        taught = module.baselines(read_records(folder, "train"), [*valid, *test], task)
        found |= {
            f"{name}@{other}": own for name, own in taught.items() if own != found[name]
        }  # else it learns nothing
    rows = [row | row_labels(home[row["id"]], name) for name, own in found.items() for row in own]
    if any("sample" in task.choose_outputs(outputs) for outputs in registry.base_families(domain).values()):
        found = cast(SamplingTaskModule, module).sample_baselines(test, samples, task)
        rows += [row | row_labels("sample", name) for name, own in found.items() for row in own]
    write_rows(out, rows)


def row_labels(split: str, system: str) -> dict:
    return {"split": split, "system": system, "kind": "baseline"}
