"""Predictions → what share of the oracle's gain over the base mixtures and their controls recover.

    recovery = (base − system) / (base − oracle)   where less is better, else (system − base) / (oracle − base)

The oracle is each domain's own expert, alone: what a perfect router would choose. Intervals are of the ratio itself,
draw by draw (`evaluation.contrast`: groups and training seeds); a draw in which the oracle gains nothing has none.
Where the interval of the oracle's gain is not above 0, there is nothing to recover: it is undefined for all systems.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from loratory import registry
from loratory.data.files import write_json
from loratory.evaluation.bootstrap import percentile_interval
from loratory.evaluation.contrast import PairedComparison, compare_systems, file_digests
from loratory.evaluation.score import BASE, Floor, finite_or_none

Shares = dict[str, tuple[float, np.ndarray]]  # {system: (recovery, its (resamples,) draws)}


@dataclass(frozen=True)
class DomainPredictions:
    """One domain's answers: {training seed: parquet file}, the folder of its dataset, its `Task` options, and the
    parquet file of controls without a language model, if any."""

    files: dict
    data: object
    task: object
    baselines: object = None


def contrast_mixers(
    base,
    asked: Mapping[str, DomainPredictions],
    experts,
    mixtures: Sequence[str],
    against,
    resamples: int,
    seed: int,
    floor: Floor,
    out,
) -> None:
    """Writes how the mixtures of some experts compare, on all their domains, to the JSON file `out`.

    `rows` are those of `evaluation.score` on test, for each domain and each of base, experts, mixtures, shuffled gates
    and the best control without a language model, with `recovery` and `difference` (to the mixture `against`), each
    with `_low` and `_high`; `controls` names these controls; `valid` are rows of base and experts where the best
    single expert is chosen; `means` recoveries over the domains that have one.

    Args:
        experts: {domain: its adapter}. mixtures: their names.
        resamples, seed: how many bootstrap draws, and their seed.
        floor: as of `score.score`.

    Raises:
        InputError: as `evaluation.score`; or the base, an expert, a mixture was not asked.
    """
    own = {domain: f"{adapter}@{domain}" for domain, adapter in experts.items()}
    alone = [BASE, *own.values()]
    wanted = {*alone, *mixtures, *(f"{name}:shuffled" for name in mixtures)}
    rows, valid, shares, controls = [], [], [], {}
    for place, (domain, of) in enumerate(asked.items()):
        draws = (resamples, [seed, place], floor)  # groups of different domains have nothing to do with one another
        found = compare_systems(domain, of.files, of.data, of.task, "test", wanted.__contains__, *draws, of.baselines)
        check_systems(found, [*alone, *mixtures], next(iter(of.files.values())))
        controls[domain], recovered = found.control, system_recoveries(found, own[domain])
        rows += [{"domain": domain} | recovery_row(found, name, against, recovered) for name in found.sizes]
        shares.append({name: share for name, share in recovered.items() if name in wanted})
        chosen = compare_systems(domain, of.files, of.data, of.task, "valid", alone.__contains__, *draws)
        valid += [{"domain": domain} | chosen.score_row(name) for name in chosen.sizes]
    report = {"base": base, "against": against, "experts": own, "domains": list(asked), "seeds": found.seeds}
    report |= {"controls": controls, "rows": rows, "valid": valid, "means": mean_recoveries(shares)}
    report |= {"resamples": resamples, "seed": seed}
    write_json(
        out, report | {"inputs": {domain: file_digests(of.files, of.baselines) for domain, of in asked.items()}}
    )


def check_systems(found: PairedComparison, wanted: Sequence[str], path) -> None:
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


def recovery_row(found: PairedComparison, name: str, against: str, shares: Shares) -> dict:
    return (
        found.score_row(name)
        | found.gain_over(name, against, "difference")
        | recovery_columns(*shares.get(name, (None, None)))
    )


def mean_recoveries(shares: Sequence[Shares]) -> list[dict]:
    """The mean recovery of each system over the domains that have one, draw by draw."""
    defined = [of for of in shares if of]
    systems = [name for name in (defined[0] if defined else {}) if all(name in of for of in defined)]
    found = []
    for name in systems:
        values, draws = zip(*(of[name] for of in defined))
        found.append(
            {
                "system": name,
                **recovery_columns(float(np.mean(values)), np.mean(draws, axis=0)),
                "domains": len(defined),
            }
        )
    return found


def recovery_columns(value: float | None, draws: np.ndarray | None) -> dict:
    low, high = map(finite_or_none, percentile_interval(draws)) if draws is not None else (None, None)
    return {"recovery": finite_or_none(value), "recovery_low": low, "recovery_high": high}
