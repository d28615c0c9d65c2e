"""Controls that know no language model: what a domain's baselines say about the same records, or write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from loratory import registry
from loratory.domains.contract import RankingTaskModule, SamplingTaskModule
from loratory.domains.dataset import open_split
from loratory.domains.examples import read_records
from loratory.evaluation.ranking import rank_row, read_candidates
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
    ranked_users: int = 0,
) -> None:
    """Writes one row for each (baseline, record of valid or test), (baseline, sample) and, where a domain ranks,
    (baseline, ranked user); none without baselines.

    Args:
        transfer: {name: dataset folder} of other entries: what baselines that learn of their records say here.
        ranked_users: most users of test for whom all candidates are ranked.
        max_records, max_valid: most records of test and of valid, the same ones that trained systems are asked.
    """
    module = registry.load_module("domain", domain, "task")
    train, test = open_split(data, "train"), read_records(data, "test", max_records)
    valid = read_records(data, "valid", max_valid)
    home = {record["id"]: split for split, part in (("valid", valid), ("test", test)) for record in part}
    families = registry.base_families(domain).values()
    outputs = {output for each in families for output in task.choose_outputs(each)}
    if "rank" in outputs:
        ranking = cast(RankingTaskModule, module)
        answers = ranking.fit_baselines(train, task)
        found = {name: answer([*valid, *test]) for name, answer in answers.items()}
        rows = rank_baselines(ranking, data, answers, ranked_users)
    else:
        found, rows = module.baselines(train, [*valid, *test], task), []
    for other, folder in (transfer or {}).items():
        taught = module.baselines(open_split(folder, "train"), [*valid, *test], task)
        found |= {
            f"{name}@{other}": own for name, own in taught.items() if own != found[name]
        }  # else it learns nothing
    rows += [row | row_labels(home[row["id"]], name) for name, own in found.items() for row in own]
    if "sample" in outputs:
        found = cast(SamplingTaskModule, module).sample_baselines(test, samples, task)
        rows += [row | row_labels("sample", name) for name, own in found.items() for row in own]
    write_rows(out, rows)


def rank_baselines(
    module: RankingTaskModule, data: Path | str, answers: Mapping[str, Callable[[list[dict]], list[dict]]], users: int
) -> list[dict]:
    """The rows of the split "rank"; candidates are held for one user at a time."""
    return [
        rank_row(answer(candidates)) | row_labels("rank", name)
        for candidates in read_candidates(module, data, users)
        for name, answer in answers.items()
    ]


def row_labels(split: str, system: str) -> dict:
    return {"split": split, "system": system, "kind": "baseline"}
