"""Predictions of a stage's arms → how they differ, on each domain and over all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from loratory import registry
from loratory.data.files import read_json, write_json
from loratory.domains.dataset import read_split
from loratory.domains.examples import domain_examples
from loratory.evaluation.bootstrap import percentile_interval
from loratory.evaluation.contrast import PairedComparison, compare_systems, file_digests
from loratory.evaluation.score import Floor, finite_or_none
from loratory.lifecycle.contract import Number, Procedure
from loratory.lifecycle.likeness import nearest_likeness

SPLIT = "test"


def contrast_stage(
    name: str,
    entry: Any,
    folder: Path | str,
    data: Mapping[str, Path],
    tasks: Mapping[str, Any],
    seeds: Sequence[int],
    resamples: int,
    seed: int,
    floor: Floor,
    out: Path | str,
    baselines: Mapping[str, Path | str] = {},
) -> None:
    """Writes the arms of a stage to the JSON file `out`.

    `rows` are those of `evaluation.score` for each domain and arm, by the primary metric, and of the best control that
    knows no language model, which `controls` names as `score.choose_control` does; `summary` has, of what the
    procedure sums up over the domains, {what: {arm: [value, low, high]}}, larger numbers being better; `measures`
    {what: {arm: mean over seeds}}. A mean of arms is an arm here. Draws take whole groups of test records and training
    seeds, the same for all arms; domains are drawn apart.

    Args:
        entry: the config's entry. folder: what `lifecycle.run` wrote.
        data: {domain: dataset folder}. tasks: {domain: its `Task` options}.
        resamples, seed: how many bootstrap draws, and their seed. floor: as of `score.score_domain`.
        baselines: {domain: parquet file of controls}, of those that have any.

    Raises:
        InputError: as `evaluation.score`.
    """
    folder = Path(folder)
    measured = read_json(folder / "measures.json")
    measured += identity_measures(read_json(folder / "invented.json"), data, tasks)
    arms = list(dict.fromkeys(each["arm"] for each in measured))
    files = {d: {run: folder / "predictions" / d / f"seed{run}.parquet" for run in seeds} for d in data}

    def compare(domain: str, at: int) -> PairedComparison:
        of, controls = (data[domain], tasks[domain]), baselines.get(domain)
        runs, draws = files[domain], [seed, at]
        return compare_systems(domain, runs, *of, SPLIT, arms.__contains__, resamples, draws, floor, controls)[0]

    compared = {domain: compare(domain, at) for at, domain in enumerate(data)}
    controls = {domain: of.control for domain, of in compared.items()}
    means = entry.mean_arms(arms)
    for row, of in means.items():
        arms.insert(arms.index(of[0]), row)
        for comparison in compared.values():
            add_mean(comparison, row, of)
    report = {
        "stage": name,
        "entry": entry.model_dump(mode="json"),
        "arms": arms,
        "metrics_versions": {domain: of.version for domain, of in compared.items()},
        "controls": controls,
        "rows": [
            {"domain": domain} | of.score_row(system)
            for domain, of in compared.items()
            for system in [*arms, *([of.control["system"]] if of.control else [])]
        ],
        "summary": summary_rows(entry, arms, compared),
        "measures": mean_measures(measured, means),
        "seeds": list(seeds),
        "resamples": resamples,
        "seed": seed,
        "inputs": {domain: file_digests(own, baselines.get(domain)) for domain, own in files.items()},
    }
    write_json(out, report)


def summary_rows(
    entry: Procedure, arms: Sequence[str], compared: Mapping[str, PairedComparison]
) -> dict[str, dict[str, list[float | None]]]:
    """{what: {arm: [value, low, high]}}; nothing of what is missing on a domain."""
    if any(of.missing for of in compared.values()):
        return {}

    def mean_score(arm: str, domain: str) -> Number:
        of = compared[domain]
        return of.metric.sign * float(np.mean([*of.values[arm].values()]))

    def drawn_scores(arm: str, domain: str) -> Number:
        of = compared[domain]
        return of.metric.sign * of.spreads[arm]

    values = entry.summarise_arms(arms, list(compared), mean_score)
    draws = entry.summarise_arms(arms, list(compared), drawn_scores)
    return {
        what: {
            arm: [*map(finite_or_none, (float(value), *percentile_interval(np.asarray(draws[what][arm]))))]
            for arm, value in of.items()
        }
        for what, of in values.items()
    }


def add_mean(comparison: PairedComparison, row: str, arms: Sequence[str]) -> None:
    """Adds a system whose value, and every draw of it, is the mean of those of some arms."""
    first = arms[0]
    comparison.sizes[row] = comparison.sizes[first]
    if first in comparison.missing:
        comparison.missing[row] = comparison.missing[first]
        return
    values = [comparison.values[arm] for arm in arms]
    comparison.values[row] = {run: float(np.mean([of[run] for of in values])) for run in values[0]}
    comparison.spreads[row] = np.mean([comparison.spreads[arm] for arm in arms], axis=0)


def identity_measures(
    invented: Sequence[Mapping[str, Any]], data: Mapping[str, Path], tasks: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """How near what arms learnt from comes to the test records, as `measures.json` has it: of the inputs of each arm
    the highest and the mean identity to any record, by the domain's own measure or else by shared runs of words."""
    found = []
    for each in invented:
        domain = each["domain"]
        module, records = registry.load_module("domain", domain, "metrics"), read_split(data[domain], SPLIT)
        if hasattr(module, "nearest_identities"):
            nearest = module.nearest_identities(each["texts"], records)
        else:
            asked = domain_examples(domain, records, tasks[domain], each["family"])
            nearest = nearest_likeness(each["texts"], [example.prompt or example.target for example in asked])
        several = {"highest identity to test": max(nearest), "mean identity to test": float(np.mean(nearest))}
        found.append({"arm": each["arm"], "seed": each["seed"], "measures": several})
    return found


def mean_measures(
    measured: Sequence[Mapping[str, Any]], means: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, float]]:
    """{what: {arm: mean over seeds}}, and over the arms of a mean."""
    found: dict[str, dict[str, list[float]]] = {}
    rows = {arm: row for row, of in means.items() for arm in of}
    for each in measured:
        for what, number in each["measures"].items():
            for arm in {each["arm"], rows.get(each["arm"], each["arm"])}:
                found.setdefault(what, {}).setdefault(arm, []).append(number)
    return {what: {arm: float(np.mean(numbers)) for arm, numbers in of.items()} for what, of in found.items()}
