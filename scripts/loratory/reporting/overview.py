"""What a run ends with in the terminal: a line for each system, primary metrics alone, and where the rest is."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import fill

from loratory.data.files import read_json
from loratory.reporting import formats
from loratory.reporting.formats import Layout
from loratory.reporting.tables import (
    ABSENT,
    ARROWS,
    BASE,
    column_heading,
    few_seeds_note,
    missing_notes,
    primary_rows,
    value_cell,
)

WIDTH = 100  # columns of a terminal
BEST_CONTROL = "best control"
SHOWN = ("base", "adapter", "control", "mixture")  # kinds of systems; the best baseline has a line of its own
MARKS = "▲ better, ▼ worse than the base, * better than the best control: by 95 % intervals"


def study_overview(metrics: Iterable[Path | str], results: Path | str, banner: str = "") -> str:
    """A table for each base, of at most WIDTH columns, and where the rest is; "" without metrics.

    Args:
        metrics: JSON files of `evaluation.score`, of domains and bases in the order of the config.
        results: the folder that tables and figures lie in.
    """
    on: dict[str, list[Mapping]] = {}
    for report in map(read_json, metrics):
        on.setdefault(report["base"], []).append(report)
    if not on:
        return ""
    parts = [overview_layout(part, base) for base, reports in on.items() for part in narrow_parts(reports)]
    places = (
        f"pages with all of it   {results}/report/index.html\n"
        f"tables                 {results}/tables/*.html, .md, .tex, .tsv with all digits\n"
        f"figures                {results}/figures/*.svg"
    )
    return "\n".join((*map(formats.plain_text, parts), *([banner] if banner else []), MARKS, places))


def narrow_parts(reports: Sequence[Mapping]) -> Iterable[Sequence[Mapping]]:
    """The reports of one base, cut into as few tables as fit into WIDTH columns; a column alone may be wider."""
    part: list[Mapping] = []
    for report in reports:
        if part and table_width(overview_layout([*part, report], report["base"])) > WIDTH:
            yield part
            part = []
        part.append(report)
    yield part


def table_width(layout: Layout) -> int:
    return len("  ".join(formats.pad_cells([layout.header, *layout.rows])[0]))


def overview_layout(reports: Sequence[Mapping], base: str) -> Layout:
    """The systems of some domains on one base: a domain's own adapters by their bare names, those of others only where
    it has none of its own."""
    test = {report["domain"]: primary_rows(report, "test") for report in reports}
    cells: dict[str, dict[str, str]] = {BASE: {}}
    if any(report["control"] for report in reports):
        cells[BEST_CONTROL] = {
            report["domain"]: value_cell(test[report["domain"]].get(report["control"]["system"]), compact=True)
            for report in reports
            if report["control"]
        }
    for domain, rows in test.items():
        trains = any(system.endswith(f"@{domain}") for system in rows)
        for system, row in rows.items():
            name = system.removesuffix(f"@{domain}")
            if row["kind"] in SHOWN and not (trains and "@" in name):
                cells.setdefault(name, {})[domain] = value_cell(row, compact=True)
    heads = {domain: next(iter(rows.values())) for domain, rows in test.items() if rows}
    header = ["system", *(f"{domain} {ARROWS[row['direction']]}" for domain, row in heads.items())]
    lines = [[name, *(of.get(domain, ABSENT) for domain in heads)] for name, of in cells.items()]
    scored = [(domain, report) for report in reports if (domain := report["domain"]) in heads]
    foot = [fill(f"{domain}: {column_note(report, heads[domain])}", WIDTH) for domain, report in scored]
    missing = [f"{domain}: {line}" for domain, rows in test.items() for line in missing_notes(rows.values())]
    few = dict.fromkeys(few_seeds_note(report["seeds"]) for report in reports)
    return Layout(f"on {base}", "", header, lines, [*foot, *missing, *filter(None, few)], [])


def column_note(report: Mapping, head: Mapping) -> str:
    """What a column counts, on how many records, and which control is its best."""
    control = f"; best control: {report['control']['system']}" if report["control"] else ""
    return f"{column_heading(head)} on {head['n']} records in {head['n_groups']} groups{control}"
