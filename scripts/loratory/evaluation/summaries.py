"""What tables say of several runs, domains or systems at once: means, totals, the best of them.

Standard library only, as the tables that call it start at once.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Run = tuple[str, Mapping[str, Any]]  # an adapter's name in the config, and the `run.json` of one seed
MEAN_FIELDS = (  # of `train_info`
    "num_trainable_params",
    "num_stored_params",
    "optimizer_state",
    "accelerator_memory_max",
    "adapted_modules",
    "positions",
    "other_positions",
    "flops",
    "train_time",
)
VALIDATION_FIELDS = ("best_step", "steps", "validation_time")  # of `train_info`, too


def runs_by_method(runs: Sequence[Run]) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """{(domain, adapter): its runs}."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for name, run in runs:
        found.setdefault((run["domain"], name), []).append(run)
    return found


def mean_costs(domain: str, name: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The means of one method on one domain."""
    settings, rate = runs[0]["run_info"], runs[0]["learning_rate"]
    rates = settings["train_config"]["learning_rates"]
    return {
        "domain": domain,
        "adapter": name,
        "method": settings["peft_config"]["method"],
        "learning_rate": rate,
        "rates": list(rates),
        "edge": is_edge(rate, rates),
        "total_time": mean_or_none(run["run_info"]["total_time"] for run in runs),
        **{key: mean_or_none(run["train_info"][key] for run in runs) for key in MEAN_FIELDS},
        **{key: mean_or_none(validation_fact(run, key) for run in runs) for key in VALIDATION_FIELDS},
    }


def validation_fact(run: Mapping[str, Any], key: str) -> float | None:
    """None of a run that was validated at its end alone."""
    return run["train_info"][key] if run["run_info"]["train_config"].get("validate_every") else None


def is_edge(rate: float | None, rates: Sequence[float]) -> bool:
    """Whether a rate is the first or the last of its grid, so that a better one may lie beyond."""
    return len(rates) > 1 and rate in (min(rates), max(rates))


def mean_or_none(values: Iterable[float | None]) -> float | None:
    """None where a value is not known."""
    found = list(values)
    known = [value for value in found if value is not None]
    return sum(known) / len(known) if len(known) == len(found) else None


def system_facts(
    system: str, answered: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What is known of a system besides its answers; None where it is not known, or makes no sense.

    Args:
        answered: of each domain and seed {system: its cost and routing}. runs: of each seed, if it is a mixture.
    """
    found = [routes[system] for routes in answered if system in routes]
    routed = [each for each in found if len(each.get("experts", ())) > 1]
    everywhere = len(routed) == len(answered) > 0  # a mean over some domains is no mean over all
    labelled = everywhere and all(each["learns_labels"] for each in routed)
    stored = [each["stored"] for each in found if "stored" in each]
    rate, rates = (runs[0]["learning_rate"], runs[0]["learning_rates"]) if runs else (None, [])
    return {
        "needs_domain": any(each.get("needs_domain", False) for each in found),
        "first_pass": any(each.get("first_pass", False) for each in found),
        "top1": mean_or_none(each["top1"] for each in routed) if labelled else None,
        "entropy": mean_or_none(each["entropy"] for each in routed) if everywhere else None,
        "read_per_second": tokens_per_second(found, "read", "reading"),
        "written_per_second": tokens_per_second(found, "written", "writing"),
        "memory": max_known(each["memory"] for each in found),
        "learning_rate": rate,
        "edge": is_edge(rate, rates),
        "training_memory": max_known(run.get("accelerator_memory_max") for run in runs),
        "trainable": mean_or_none(run["trainable_parameters"] for run in runs) if runs else None,
        "stored": mean_or_none(stored) if stored else None,
    }


def tokens_per_second(found: Sequence[Mapping[str, Any]], amount: str, seconds: str) -> float | None:
    """Over all domains and seeds; None where a system did nothing of the kind."""
    total = sum(each[amount] for each in found)
    return total / sum(each[seconds] for each in found) if total else None


def max_known(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def best_over_control(rows: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The row whose system gains most over the best control without a language model; None if none is compared."""
    compared = [row for row in rows if row["vs_control_low"] is not None]
    return max(compared, key=lambda row: row["vs_control"], default=None)
