"""How a folding base was judged → a table: a line for all its test chains, and one for each origin."""

from collections.abc import Mapping
from pathlib import Path

from loratory.data.files import read_json
from loratory.reporting import formats
from loratory.reporting.formats import Layout
from loratory.reporting.tables import column_heading, number_text, version_notes


def write_folding_table(metrics: Path | str, out: Path | str, *, about: str = "", banner: str = "") -> None:
    """Writes `{out}.tsv`, `.md`, `.tex` and `.html`.

    Args:
        metrics: JSON file of `evaluation.assess`.
        about: what the base is, in a sentence.
        banner: a warning above the table.
    """
    formats.write_table(folding_layout(read_json(metrics), about, banner), out)


def folding_layout(report: Mapping, about: str, banner: str) -> Layout:
    rows, base = report["rows"], report["base"]
    metrics = {row["metric"]: row for row in rows}
    cells = {(row["part"], row["metric"]): folding_cell(row) for row in rows}
    sizes = {row["part"]: [str(row["chains"]), str(row["residues"])] for row in rows}
    lines = [[part, *size, *(cells[part, name] for name in metrics)] for part, size in sizes.items()]
    foot = [f"{name}: {row['note']}" for name, row in metrics.items()]
    foot += dict.fromkeys(f"{row['part']}: {row['status']}." for row in rows if ":" in row["status"])
    foot += [
        f"[95 % interval] from {report['resamples']} bootstrap draws of whole groups.",
        left_out_note(report["left_out"]),
        *other_notes(report, set(sizes)),
    ]
    foot += version_notes({report["domain"]: report.get("metrics_version", 1)})
    foot += [f"Base: {about}"] if about else []
    header = ["test chains", "chains", "residues", *map(column_heading, metrics.values())]
    return Layout(
        f"{base} on chains of known structure", banner, header, lines, foot, [{"base": base} | r for r in rows]
    )


def folding_cell(row: Mapping) -> str:
    if row["value"] is None:
        return row["status"].partition(":")[0]
    value, low, high = (number_text(row[name], row["unit"]) for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def other_notes(report: Mapping, parts: set[str]) -> list[str]:
    """What else was left out, and what is not known of the chains."""
    notes = []
    if predicted := report.get("predicted"):
        notes.append(f"Left out, because they are predictions themselves: {predicted}.")
    if too_long := report.get("too_long"):
        notes.append(f"Left out, because they are longer than {report['max_length']} residues: {too_long}.")
    if too_large := report.get("too_large"):
        notes.append(f"Left out, because memory did not suffice, however small the chunks: {too_large}.")
    if "unknown" in parts:
        notes.append("unknown: the files do not say whether these chains are measured or predicted (`source.origin`).")
    return notes


def left_out_note(count: int | None) -> str:
    if count is None:
        return "What the base learnt from is not known here: some of these chains may be among it."
    return f"Left out, because they resemble a chain that the base learnt from: {count}."
