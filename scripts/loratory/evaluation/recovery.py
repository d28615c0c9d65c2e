"""Predictions → what share of the oracle's gain over the base mixtures and their controls recover.

    recovery = (base − system) / (base − oracle)   where less is better, else (system − base) / (oracle − base)

The oracle is each domain's own expert, alone: what a perfect router would choose. Intervals are of the ratio itself,
draw by draw (`evaluation.contrast`: groups and training seeds); a draw in which the oracle gains nothing has none.
Where the interval of the oracle's gain is not above 0, there is nothing to recover: it is undefined for all systems.
It is measured by the primary metric and, where a domain has another such metric, by what learning rates are chosen by.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loratory import registry
from loratory.data.files import write_json
from loratory.evaluation.bootstrap import percentile_interval
from loratory.evaluation.contrast import PairedComparison, compare_systems, file_digests
from loratory.evaluation.controls import GATE_CONTROLS
from loratory.evaluation.score import BASE, Floor, finite_or_none, metric_columns

NO_GAIN = "undefined: the oracle may gain nothing"
NO_VALUE = "undefined"
Shares = dict[str, tuple[float, np.ndarray]]  # {system: (recovery, its (resamples,) draws)}


@dataclass(frozen=True)
class DomainPredictions:
    """What systems predicted in one domain.

    Attributes:
        files: {training seed: parquet file}, in order. data: folder of the dataset. task: its `Task` options.
        baselines: parquet file of controls without a language model, or None.
    """

    files: Mapping[int, Path | str]
    data: Path | str
    task: Any
    baselines: Path | str | None = None


def predictions_by_domain(
    files: Mapping[str, Mapping[int, Path | str]],
    data: Mapping[str, Path | str],
    tasks: Mapping[str, Any],
    baselines: Mapping[str, Path | str],
) -> dict[str, DomainPredictions]:
    """{domain: its predictions}, of what is given by domain; `data` are files of the datasets."""
    return {
        domain: DomainPredictions(own, Path(data[domain]).parent, tasks[domain], baselines[domain])
        for domain, own in files.items()
    }


@dataclass(frozen=True)
class DomainComparison:
    """By one metric: some systems of a domain on test, the base and the experts on valid, and who recovers how much.

    Attributes:
        oracle: the domain's own expert. shares: recoveries on test.
    """

    oracle: str
    test: PairedComparison
    valid: PairedComparison
    shares: Shares

    def recovery_row(self, system: str) -> dict:
        """`recovery` with its interval, and in `recovery_status` why there is none. Its n is the least of what it is
        computed of: the base, the oracle and the system."""
        sizes = [self.test.sizes[name] for name in (BASE, self.oracle, system) if name in self.test.sizes]
        counts = {"recovery_n": min(size.n for size in sizes), "recovery_groups": min(size.n_groups for size in sizes)}
        return (
            recovery_columns(*self.shares.get(system, (None, None)))
            | counts
            | {"recovery_status": self.status(system)}
        )

    def status(self, system: str) -> str:
        if system in self.shares:
            return "ok"
        missing = self.test.missing
        few = next((missing[name] for name in (BASE, self.oracle, system) if name in missing), "")
        return few or (NO_VALUE if self.shares else NO_GAIN)


def contrast_mixers(
    base: str,
    asked: Mapping[str, DomainPredictions],
    experts: Mapping[str, str],
    mixtures: Sequence[str],
    against: str,
    resamples: int,
    seed: int,
    floor: Floor,
    out: Path | str,
) -> None:
    """Writes how the mixtures of some experts compare, on all their domains, to the JSON file `out`.

    `rows` are those of `evaluation.score` on test, for each domain and metric and each of base, experts, mixtures,
    controls of their gates and the best control without a language model, with the columns of `recovery_row` and
    `difference` (to the mixture `against`), which has `_low` and `_high`; `controls` names these controls; `valid` are
    rows of base and experts on valid; `best_single` and all means are as of `measure_recovery`.

    Args:
        asked: {domain: its predictions}. experts: {domain: its adapter}. mixtures: their names.
        resamples, seed: how many bootstrap draws, and their seed.
        floor: as of `score.score_domain`.

    Raises:
        InputError: as `evaluation.score`; or the predictions lack the base, an expert or a mixture.
    """
    own = expert_systems(experts)
    alone = [BASE, *own.values()]
    wanted = {*alone, *mixtures, *(f"{name}:{control}" for name in mixtures for control in GATE_CONTROLS)}
    compared = compare_domains(asked, own, wanted.__contains__, resamples, seed, floor)
    for domain, (first, *_) in compared.items():
        check_systems(first.test, [*alone, *mixtures], next(iter(asked[domain].files.values())))
    report = recovery_report(base, asked, compared, wanted.__contains__, resamples, seed)
    report |= {
        "against": against,
        "controls": {domain: first.test.control for domain, (first, *_) in compared.items()},
    }
    report["rows"] = [
        {"domain": domain}
        | of.test.score_row(name)
        | of.test.gain_over(name, against, "difference")
        | of.recovery_row(name)
        for domain, by_metric in compared.items()
        for of in by_metric
        for name in of.test.sizes
    ]
    report["valid"] = [
        {"domain": domain} | of.valid.score_row(name)
        for domain, by_metric in compared.items()
        for of in by_metric
        for name in of.valid.sizes
    ]
    write_json(out, report)


def measure_recovery(
    base: str,
    asked: Mapping[str, DomainPredictions],
    experts: Mapping[str, str],
    mixture: str,
    resamples: int,
    seed: int,
    floor: Floor,
    out: Path | str,
) -> None:
    """Writes what a mixture, its controls and its experts recover, on all their domains, to the JSON file `out`.

    `rows` are of each domain and metric and each of base, experts, mixture, its controls and the best control without
    a language model. `means` are recoveries over those domains that have one (`over`, of `domains`) by their primary
    metrics, `loss_means` by what their learning rates are chosen by, `valid_means` by primary metrics on valid.
    `best_single` is the expert with the best of `valid_means`, None where it is undefined for all. The numbers are
    those of `contrast_mixers`.

    Args:
        asked, experts, resamples, seed, floor: as of `contrast_mixers`. mixture: its name.

    Raises:
        InputError: as `evaluation.score`.
    """
    own = expert_systems(experts)
    alone = {BASE, *own.values(), mixture}

    def is_wanted(system: str) -> bool:
        return system in alone or system.startswith(f"{mixture}:")

    compared = compare_domains(asked, own, is_wanted, resamples, seed, floor)
    report = recovery_report(base, asked, compared, is_wanted, resamples, seed)
    report["rows"] = [
        {"domain": domain, "system": name, **metric_columns(of.test.metric)} | of.recovery_row(name)
        for domain, by_metric in compared.items()
        for of in by_metric
        for name in of.test.sizes
    ]
    write_json(out, report)


def expert_systems(experts: Mapping[str, str]) -> dict[str, str]:
    """{domain: its expert, as a system}, of {domain: adapter}."""
    return {domain: f"{adapter}@{domain}" for domain, adapter in experts.items()}


def compare_domains(
    asked: Mapping[str, DomainPredictions],
    own: Mapping[str, str],
    chosen: Callable[[str], bool],
    resamples: int,
    seed: int,
    floor: Floor,
) -> dict[str, list[DomainComparison]]:
    """The systems that are `chosen` by their names, in each domain by each of `score.compared_metrics`."""
    found, alone = {}, {BASE, *own.values()}
    for place, (domain, of) in enumerate(asked.items()):
        draws = (resamples, [seed, place], floor)  # groups of different domains have nothing to do with one another
        test = compare_systems(domain, of.files, of.data, of.task, "test", chosen, *draws, of.baselines)
        valid = compare_systems(domain, of.files, of.data, of.task, "valid", alone.__contains__, *draws)
        found[domain] = [
            DomainComparison(own[domain], of_test, of_valid, system_recoveries(of_test, own[domain]))
            for of_test, of_valid in zip(test, valid)
        ]
    return found


def recovery_report(
    base: str,
    asked: Mapping[str, DomainPredictions],
    compared: Mapping[str, Sequence[DomainComparison]],
    chosen: Callable[[str], bool],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """What is written of all domains together; the best control, of each domain another system, joins no mean."""
    first = {domain: by_metric[0] for domain, by_metric in compared.items()}
    by_loss = [next((of for of in by_metric if of.test.metric.loss), None) for by_metric in compared.values()]

    def chosen_shares(of: DomainComparison | None) -> Shares:
        return {name: share for name, share in of.shares.items() if chosen(name)} if of else {}

    valid = mean_recoveries([system_recoveries(of.valid, of.oracle) for of in first.values()])
    return {
        "base": base,
        "experts": {domain: of.oracle for domain, of in first.items()},
        "domains": list(asked),
        "metrics_versions": {domain: of.test.version for domain, of in first.items()},
        "seeds": next(iter(first.values())).test.seeds,
        "means": mean_recoveries([chosen_shares(of) for of in first.values()]),
        "loss_means": mean_recoveries([chosen_shares(of) for of in by_loss]),
        "valid_means": valid,
        "best_single": best_single(valid, [of.oracle for of in first.values()]),
        "resamples": resamples,
        "seed": seed,
        "inputs": {domain: file_digests(of.files, of.baselines) for domain, of in asked.items()},
    }


def best_single(means: Sequence[Mapping], experts: Sequence[str]) -> str | None:
    """The expert with the best of these mean recoveries, the first of equals; None where that is undefined for all."""
    found = {row["system"]: row["recovery"] for row in means if row["recovery"] is not None}
    experts = [name for name in experts if name in found]
    return max(experts, key=lambda system: found[system]) if experts else None


def check_systems(found: PairedComparison, wanted: Sequence[str], path: Path | str) -> None:
    """Raises:
    InputError: a system is not among those that were compared.
    """
    for name in wanted:
        if name not in found.sizes:
            raise registry.unknown_name_error(path, "system", name, found.sizes)


def system_recoveries(found: PairedComparison, oracle: str) -> Shares:
    """Of every system that has a value; {} where the oracle's gain may be 0."""
    gap = found.gain_over(oracle, BASE)
    if gap["gain_low"] is None or gap["gain_low"] <= 0:
        return {}
    most = found.gain_draws(oracle)
    most = np.where(most > 0, most, np.nan)
    gains = {name: 0.0 if name == BASE else found.gain_over(name, BASE)["gain"] for name in found.values}
    return {
        name: (gain / gap["gain"], found.gain_draws(name) / most) for name, gain in gains.items() if gain is not None
    }


def mean_recoveries(shares: Sequence[Shares]) -> list[dict]:
    """The mean recovery of each system over the domains that have one, draw by draw: `over` how many, of `domains`."""
    defined = [of for of in shares if of]
    systems = [name for name in (defined[0] if defined else {}) if all(name in of for of in defined)]
    found = []
    for name in systems:
        values, draws = zip(*(of[name] for of in defined))
        found.append(
            {
                "system": name,
                **recovery_columns(float(np.mean(values)), np.mean(draws, axis=0)),
                "over": len(defined),
                "domains": len(shares),
            }
        )
    return found


def recovery_columns(value: float | None, draws: np.ndarray | None) -> dict:
    low, high = map(finite_or_none, percentile_interval(draws)) if draws is not None else (None, None)
    return {"recovery": finite_or_none(value), "recovery_low": low, "recovery_high": high}
