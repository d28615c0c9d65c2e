"""Adapters of one base under one budget → two tables: what each is worth on each domain, and what it cost.

Rows keep the config's order: no rank is printed, as intervals and the marks ▲ ▼ say what can be told apart.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loratory.data.files import read_json
from loratory.errors import InputError
from loratory.evaluation.summaries import Run, mean_costs, mean_or_none, runs_by_method
from loratory.reporting import formats
from loratory.reporting.formats import Layout
from loratory.reporting.tables import (
    ABSENT,
    BASE,
    CONTROL,
    FEW_SEEDS,
    column_heading,
    column_notes,
    control_notes,
    control_systems,
    number_text,
    uneven_metrics,
    value_cell,
    version_notes,
)

COSTS = {  # of `train_info`: as printed
    "num_trainable_params": "trainable",
    "num_stored_params": "stored",
    "optimizer_state": "optimizer state",
}
BUDGET = ("steps", "batch_tokens", "gradient_accumulation_steps", "validate_every", "patience")
CUTS = (
    "(rank b): the same trained adapter at a lower rank, as its method cuts it. (SVD to rank b): the trained change "
    "of a plain LoRA of full rank, cut by SVD; a training for lower ranks is worth something where it is better."
)
COST_NOTES = (
    "Means over seeds, of runs at the chosen rate; a grid costs about as much again for each other rate.",
    "trainable: numbers that an optimizer may move, at the peak. stored: numbers in the exported adapter. optimizer "
    "state: numbers that it remembers in the end.",
    "peak memory: of tensors on the GPU, the base included; not known of runs on a CPU.",
    "time: of preparation and all steps, without validation and storage.",
    "compute: counted on the first batch, forward and backward, and taken as proportional to positions, "
    "where PyTorch can count all operations; of it before or besides the steps: gradient passes and selection stages.",
    "learning rate: chosen on `valid` with the first seed; at the edge of its grid, a better one may lie beyond.",
)


BEST_NOTE = (
    "best step: after which the loss on `valid` was lowest, of the steps that were made, and the seconds that all "
    "looks at `valid` took besides the time."
)


def write_method_tables(
    contrasts: Sequence[Path | str],
    runs: Sequence[tuple[str, Path | str]],
    out: Path | str,
    costs_out: Path | str,
    *,
    about: str = "",
    banner: str = "",
) -> None:
    """Writes both tables, each as `.tsv`, `.md`, `.tex` and `.html`.

    Args:
        contrasts: JSON files of `evaluation.contrast`, one for each domain, all of one base; columns keep their order.
        runs: (adapter, its `run.json`) pairs of all domains and seeds; lines keep their order.
        about: what the base is, in a sentence. banner: a warning above the tables.

    Raises:
        InputError: the methods of a domain had not the same budget.
    """
    reports = [read_json(path) for path in contrasts]
    found = [(name, read_json(path)) for name, path in runs]
    check_budget([path for _, path in runs], [run for _, run in found])
    told = [f"Base: {about}"] if about else []
    formats.write_table(quality_layout(reports, found, told, banner), out)
    formats.write_table(cost_layout(found, told, banner), costs_out)


def check_budget(paths: Sequence[Path | str], runs: Sequence[Mapping]) -> None:
    """All methods of a domain saw the same data, on the same base, for the same number of targets with each seed.

    Raises:
        InputError: a run did not.
    """
    first: dict[tuple, tuple] = {}
    for path, run in zip(paths, runs):
        facts = {
            **budget_facts(run),
            "training data": run["meta_info"]["dataset_info"]["sha256"],
            "base": run["base_sha256"],
        }
        for what, fact in facts.items():
            other, wanted = first.setdefault((run["domain"], run["seed"], what), (path, fact))
            if fact != wanted:
                names = ", ".join(f"`{name}`" for name in BUDGET)
                fix = f"give compared adapters the same {names}, and train again"
                raise InputError(path, f"the {what} is not that of {other}", fact, wanted, fix, "budget")


def budget_facts(run: Mapping) -> dict[str, Any]:
    """What all methods of a domain must have in common: how much they read, or, where trainings end when `valid` says
    so, the rule by which they do."""
    rule = {name: run["run_info"]["train_config"].get(name) for name in BUDGET}
    looks = {name: rule[name] for name in ("validate_every", "patience")}
    if rule["patience"]:
        return {"rule of early stopping": str(rule)}
    return {"number of target tokens": run["train_info"]["targets"], "rule of validation": str(looks)}


def quality_layout(reports: Sequence[Mapping], runs: Sequence[Run], about: Sequence[str], banner: str) -> Layout:
    """A line for the base, the best baseline and each method; two columns a domain: its value, how it differs.

    Under a method that trains for lower ranks it stands at each of them, with a plain LoRA cut by SVD to that rank.
    """
    against = reports[0]["against"]
    rows = {(report["domain"], row["metric"], row["adapter"]): row for report in reports for row in report["rows"]}
    columns = metric_columns(reports)
    header = ["method"]
    for (domain, _), of in columns.items():
        by = f"{domain}: better than {against} by" + ("" if of[0]["primary"] else f", {column_heading(of[0])}")
        header += [f"{domain}: {column_heading(of[0])}", by]
    lines = []
    methods = list(dict.fromkeys(name for name, _ in runs))
    controls = {report["domain"]: report["control"] for report in reports}
    named = [line for name in methods for line in (name, *cut_lines(name, reports))]
    for name in [BASE, *([CONTROL] if any(controls.values()) else []), *named]:
        systems = control_systems(controls) if name == CONTROL else dict.fromkeys(controls, name)
        cells = [quality_cells(rows.get((*key, systems[key[0]])), of) for key, of in columns.items()]
        lines.append([name, *(text for pair in cells for text in pair)])
    sized = {
        key: mean_or_none(run["train_info"]["num_trainable_params"] for run in of)
        for key, of in runs_by_method(runs).items()
    }
    records = [
        {"domain": report["domain"], "base": report["base"], **row}
        | {"num_trainable_params": sized.get((report["domain"], row["adapter"]))}
        for report in reports
        for row in report["rows"]
    ]
    noted = {f"{d}: {metric}" if not of[0]["primary"] else d: (of[0], of) for (d, metric), of in columns.items()}
    primary = {(domain, name): row for (domain, _, name), row in rows.items() if row["primary"]}
    foot = column_notes(noted)
    foot += [*dict.fromkeys(map(draws_note, reports)), marks_note(against, reports), *cut_notes(reports, primary)]
    learnt = {domain: [primary[domain, name] for name in methods if (domain, name) in primary] for domain in controls}
    foot += [*control_notes(controls, learnt), *budget_notes(runs), *about]
    foot += version_notes({report["domain"]: report.get("metrics_version", 1) for report in reports})
    return Layout(f"Methods on {reports[0]['base']}", banner, header, lines, foot, records)


def metric_columns(reports: Sequence[Mapping]) -> dict[tuple[str, str], list[Mapping]]:
    """{(domain, metric): its rows}: of each domain the primary metric, then what learning rates are chosen by."""
    found: dict[tuple[str, str], list[Mapping]] = {}
    for report in reports:
        for row in report["rows"]:
            found.setdefault((report["domain"], row["metric"]), []).append(row)
    return found


def quality_cells(row: Mapping | None, column: Sequence[Mapping]) -> tuple[str, str]:
    """The cells of one metric: its value, and how it differs."""
    return value_cell(row and without_mark(row), sized=bool(uneven_metrics(column))), difference_cell(row)


def cost_layout(runs: Sequence[Run], about: Sequence[str], banner: str) -> Layout:
    """A line for each method on each domain."""
    records = [mean_costs(domain, name, of) for (domain, name), of in runs_by_method(runs).items()]
    header = ["method @ domain", "learning rate", *COSTS.values(), "peak memory (MB)", "time (s)", "compute (TFLOP)"]
    header.append("of it besides steps (%)")
    validated = [record for record in records if record["best_step"] is not None]
    header += ["best step"] if validated else []
    lines = [
        [
            f"{record['adapter']}@{record['domain']}",
            rate_cell(record),
            *(f"{round(record[name]):,}" for name in COSTS),
            scaled_cell(record["accelerator_memory_max"], 1e6),
            f"{record['total_time']:.1f}",
            scaled_cell(record["flops"], 1e12, ".3g"),
            f"{100 * record['other_positions'] / (record['positions'] + record['other_positions']):.0f}",
            *([best_step_cell(record)] if validated else []),
        ]
        for record in records
    ]
    title = f"Costs of methods on {runs[0][1]['base']}"
    notes = [*COST_NOTES, *([BEST_NOTE] if validated else []), *budget_notes(runs), *about]
    return Layout(title, banner, header, lines, notes, records)


def without_mark(row: Mapping) -> dict:
    """A row whose mark is left to the column of differences."""
    return {**row, "gain_low": None}


def cut_lines(adapter: str, reports: Sequence[Mapping]) -> list[str]:
    """The lines under a method: it at each lower rank, and its control there, on any domain."""
    found = [(name, svd) for report in reports for name, svd in report["cuts"].get(adapter, {}).items()]
    return [line for pair in dict.fromkeys(found) for line in pair if line]


def cut_notes(reports: Sequence[Mapping], rows: Mapping[tuple[str, str], Mapping]) -> list[str]:
    """What the lines of lower ranks are, and how each differs from its control."""
    lines: dict[str, list[str]] = {}
    for report in reports:
        for name, svd in ((name, svd) for cuts in report["cuts"].values() for name, svd in cuts.items()):
            what = f"{name} is better than {svd} by" if svd else f"{name}: no plain LoRA of its rank to cut by SVD on"
            cell = difference_cell(rows.get((report["domain"], name)), "vs_svd")
            lines.setdefault(what, []).append(f"{report['domain']} {cell}" if svd else report["domain"])
    return ([CUTS] if lines else []) + [f"{what} {', '.join(parts)}." for what, parts in lines.items()]


def difference_cell(row: Mapping | None, name: str = "difference") -> str:
    """`+value [low, high] mark`, positive where it is better than the system it is paired with."""
    if row is None or row[name] is None:
        return ABSENT
    parts = {part: row[name + part] for part in ("", "_low", "_high")}
    value, low, high = (number_text(part, row["unit"]) for part in parts.values())
    sign = "+" if parts[""] > 0 else ""
    certain = parts["_low"] is not None and not parts["_low"] <= 0 <= parts["_high"]
    mark = ("▲" if parts[""] > 0 else "▼") if certain else ""
    return " ".join(filter(None, [f"{sign}{value} [{low}, {high}]", mark]))


def rate_cell(record: Mapping) -> str:
    """The chosen learning rate, and whether it is at the edge of its grid."""
    if record["learning_rate"] is None:
        return ABSENT
    return f"{record['learning_rate']:g}" + (" (edge)" if record["edge"] else "")


def best_step_cell(record: Mapping) -> str:
    """After how many steps of how many the kept one stood."""
    if record["best_step"] is None:
        return ABSENT
    return f"{record['best_step'] + 1:.0f} of {record['steps']:.0f} ({record['validation_time']:.1f} s)"


def scaled_cell(value: float | None, unit: float, form: str = ".1f") -> str:
    return ABSENT if value is None else f"{value / unit:{form}}"


def draws_note(report: Mapping) -> str:
    seeds = report["seeds"]
    line = f"Means over {'seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(str, seeds))}; [95 % interval] from "
    line += f"{report['resamples']} bootstrap draws of whole groups of test records and of seeds."
    return line + (f" Fewer than {FEW_SEEDS} seeds: methods cannot be told from seeds." * (len(seeds) < FEW_SEEDS))


def marks_note(against: str, reports: Sequence[Mapping]) -> str:
    """How many differences of each table would be marked though there were none."""
    compared = sum(row["difference"] is not None for report in reports for row in report["rows"])
    return (
        f"▲ better, ▼ worse than {against}: the 95 % interval of the paired difference excludes 0; not corrected for "
        f"the {compared} comparisons, of which one in twenty may be marked by chance."
    )


def budget_notes(runs: Sequence[Run]) -> list[str]:
    """What every method of a domain was given."""
    targets = {(run["domain"], run["seed"]): run["train_info"]["targets"] for _, run in runs}
    domains = dict.fromkeys(domain for domain, _ in targets)
    if patience := runs[0][1]["run_info"]["train_config"].get("patience"):
        return [f"All methods ended by the same rule: {patience} looks at `valid` without a lower loss, or all steps."]
    each = [f"{d} {', '.join(str(n) for (of, _), n in targets.items() if of == d)}" for d in domains]
    return [f"Target tokens of each run, the same for all methods (a number for each seed): {'; '.join(each)}."]
