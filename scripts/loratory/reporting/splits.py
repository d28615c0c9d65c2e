"""One adapter under several ways to split the same data → a table: how much of a score is leakage."""

from collections.abc import Mapping
from pathlib import Path

from loratory.data.files import read_json
from loratory.reporting import formats
from loratory.reporting.formats import Layout
from loratory.reporting.tables import (
    BASE,
    CONTROL,
    MARKS,
    column_heading,
    missing_notes,
    number_text,
    primary_rows,
    share_text,
    value_cell,
    version_notes,
)

UNPAIRED = "Each line has a test split of its own: compare lines by their intervals, which are not paired."
SHARES = "Columns in %: test records that resemble a record of another split by that criterion."


def write_splits_table(
    entries: Mapping[str, Mapping[str, Path | str]],
    adapter: str,
    out: Path | str,
    *,
    about: str = "",
    banner: str = "",
) -> None:
    """Writes `{out}.tsv`, `.md`, `.tex` and `.html`: a line for each entry, the strictest splits last.

    Args:
        entries: {entry: {`metrics`: JSON of `evaluation.score`, `audit` and `card`: of its dataset}}.
        adapter: what all of them train.
        about: what the base is, in a sentence.
        banner: a warning above the table.
    """
    read = {entry: {name: read_json(path) for name, path in files.items()} for entry, files in entries.items()}
    formats.write_table(splits_layout(read, adapter, about, banner), out)


def splits_layout(entries: Mapping[str, Mapping[str, Mapping]], adapter: str, about: str, banner: str) -> Layout:
    tested = {name: primary_rows(files["metrics"], "test") for name, files in entries.items()}
    records = [entry_record(name, adapter, tested[name], **files) for name, files in entries.items()]
    first = next(iter(tested[records[0]["entry"]].values()))
    criteria = list(dict.fromkeys(name for record in records for name in record["shared"]))
    lines = []
    for record in records:
        rows = tested[record["entry"]]
        systems = map(rows.get, (BASE, record["control"], record["adapter"]))
        above = difference_text(record["value"], records[-1]["value"], first["unit"])
        shared = [record["shared"].get(name) for name in criteria]
        shares = [share_text(None if count is None else count / record["test"]) for count in shared]
        cells = [*shares, *map(value_cell, systems), above]
        lines.append([record["entry"], record["protocol"], str(record["test"]), *cells])
    metric = column_heading(first)
    header = ["entry", "protocol", "test records", *(f"{name} (%)" for name in criteria)]
    header += [f"base, {metric}", f"control, {metric}", f"{adapter}, {metric}", "above the last line"]
    foot = [SHARES, UNPAIRED, first["note"], f"control: {CONTROL}, chosen on valid.", MARKS]
    foot += [f"{name}: {line}" for name, rows in tested.items() for line in missing_notes(rows.values())]
    foot += version_notes({name: files["metrics"].get("metrics_version", 1) for name, files in entries.items()})
    foot += [f"Base: {about}"] if about else []
    plain = [record | {"shared": [f"{name}: {n}" for name, n in record["shared"].items()]} for record in records]
    return Layout(f"{adapter} by how the data are split", banner, header, lines, foot, plain)


def entry_record(
    entry: str, adapter: str, rows: Mapping[str, Mapping], metrics: Mapping, audit: Mapping, card: Mapping
) -> dict:
    """What one entry's splits are, what they share, and what the adapter makes of them, as plain values."""
    system = f"{adapter}@{entry}"
    found = rows[system]
    shared = audit["shared"]["other splits"]
    options = card["options"]
    return {
        "entry": entry,
        "protocol": f"{options['protocol']}, {options['covered']}",
        "test": audit["test"],
        "shared": {name: of["records"] for name, of in shared.items()},
        "control": (metrics["control"] or {}).get("system"),
        "adapter": system,
        **{name: found[name] for name in ("metric", "value", "low", "high", "gain", "gain_low", "gain_high", "n")},
    }


def difference_text(value: float | None, strictest: float | None, unit: str) -> str:
    return number_text(None if value is None or strictest is None else value - strictest, unit)
