"""A stage of the life of adapters → a table: every arm on each domain, over all of them, and what it costs."""

from collections.abc import Mapping
from pathlib import Path

from loratory.data.files import read_json
from loratory.reporting import formats
from loratory.reporting.formats import Layout
from loratory.reporting.tables import (
    ABSENT,
    CONTROL,
    MARKS,
    column_heading,
    column_notes,
    control_notes,
    control_systems,
    number_text,
    seeds_note,
    value_cell,
    version_notes,
)

SUMMED = "Over all domains, in the metric's unit; the larger, the better, but of what is forgotten: {}."


def write_stage_table(contrast: Path | str, out: Path | str, *, about: str = "", banner: str = "") -> None:
    """Writes `{out}.tsv`, `.md`, `.tex` and `.html`.

    Arms with a `:` in their names stood between others; they are in the tab-separated file alone.

    Args:
        contrast: JSON file of `lifecycle.contrast`.
        about: what the base is, in a sentence. banner: a warning above the table.
    """
    formats.write_table(stage_layout(read_json(contrast), about, banner), out)


def stage_layout(report: Mapping, about: str = "", banner: str = "") -> Layout:
    entry, arms = report["entry"], [arm for arm in report["arms"] if ":" not in arm]
    cells = {(row["system"], row["domain"]): row for row in report["rows"]}
    domains = list(dict.fromkeys(row["domain"] for row in report["rows"]))
    first = {domain: cells[arms[0], domain] for domain in domains}
    unit = first[domains[0]]["unit"]
    summary, measures = report["summary"], report["measures"]
    controls = report["controls"]
    shown = [arms[0], *([CONTROL] if any(controls.values()) else []), *arms[1:]]
    systems = {line: control_systems(controls) if line == CONTROL else dict.fromkeys(domains, line) for line in shown}
    lines = [
        [
            line,
            *(value_cell(cells.get((systems[line][domain], domain))) for domain in domains),
            *(summary_text(of.get(line), unit) for of in summary.values()),
            *(measure_text(of.get(line)) for of in measures.values()),
        ]
        for line in shown
    ]
    header = ["arm", *(f"{domain}: {column_heading(row)}" for domain, row in first.items()), *summary, *measures]
    own = {domain: [cells[arm, domain] for arm in arms] for domain in domains}
    noted = {domain: (first[domain], rows) for domain, rows in own.items()}
    foot = [f"Procedure: {entry['procedure']}, with the adapter {entry['adapter']}.", *column_notes(noted)]
    foot += control_notes(controls, {domain: rows[1:] for domain, rows in own.items()})
    foot += [SUMMED.format(", ".join(summary))] if summary else []
    foot += [seeds_note(report), MARKS, *version_notes(report["metrics_versions"])]
    foot += [f"Base: {about}"] if about else []
    plain = [row | {"stage": report["stage"]} for row in report["rows"]]
    return Layout(f"{report['stage']}: {entry['procedure']}", banner, header, lines, foot, plain)


def summary_text(found: list | None, unit: str) -> str:
    if found is None or found[0] is None:
        return ABSENT
    value, low, high = (number_text(number, unit) for number in found)
    return f"{value} [{low}, {high}]"


def measure_text(number: float | None) -> str:
    return ABSENT if number is None else f"{number:,.6g}" if number % 1 else f"{number:,.0f}"
