"""Rows of tables: CSV with a header, tabs or semicolons in place of its commas, parquet, or JSON objects on lines."""

import csv
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path

from loratory.data.files import LONGEST, first_bytes, read_lines
from loratory.data.json_lines import parse_object
from loratory.data.ledger import Ledger
from loratory.data.parquet import cell_values, column_names, read_batches
from loratory.errors import InputError

PARQUET = b"PAR1"
SEPARATORS = "\t,;"  # in this order: the first that the header holds

csv.field_size_limit(LONGEST)  # a sequence may be longer than the 128 kB of the standard library


def read_table(
    path: Path | str,
    columns: Mapping[str, str],
    ledger: Ledger,
    encoding: str = "utf-8",
    optional: Collection[str] = (),
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields `(file:row, {key: cell})` of every row; a cell without a value is "".

    Rows are numbered by their lines, those of parquet from 1. Rows with a wrong number of cells go to the ledger.

    Args:
        columns: {key: name of the column}. optional: keys whose columns may be absent; their cells are "".

    Raises:
        InputError: as `read_lines`; a column is missing, quotes are broken, or there is no row.
    """
    start = first_bytes(path, len(PARQUET))
    read_rows = parquet_rows if start == PARQUET else object_rows if start[:1] == b"{" else text_rows
    before = ledger.n_in
    for number, row in read_rows(path, columns, ledger, encoding, optional):
        yield f"{path}:{number}", dict.fromkeys(columns, "") | row
    if ledger.n_in == before:
        raise InputError(path, "the table holds no rows", expected="a row for each record", reason="empty")


def read_sequence_rows(
    path: Path | str, columns: Mapping[str, str], ledger: Ledger, encoding: str = "utf-8"
) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yields `(file:row, id, row)` of a table with a column `sequence`, whose white space is removed, as
    `read_table`.

    Without a column `id`, rows are named after the file and their number. Rows without an id or sequence go to the
    ledger.
    """
    for where, row in read_table(path, columns, ledger, encoding):
        id = row["id"] if "id" in columns else Path(where).name
        row["sequence"] = "".join(row["sequence"].split())
        if not id:
            error = InputError(where, "row without an id", columns["id"], "a value in this column", reason="no_id")
            ledger.note_error(error)
        elif not row["sequence"]:
            expected = "at least one letter"
            ledger.note_error(InputError(where, "row without a sequence", id, expected, reason="no_sequence"), id)
        else:
            yield where, id, row


def text_rows(
    path: Path | str, columns: Mapping[str, str], ledger: Ledger, encoding: str, optional: Collection[str]
) -> Iterator[tuple[int, dict[str, str]]]:
    lines = read_lines(path, encoding)
    first = next(lines, (1, ""))
    separator = next((mark for mark in SEPARATORS if mark in first[1]), ",")
    rows = csv_rows(str(path), chain([first], lines), separator)
    header = [name.strip() for name in next(rows, (1, []))[1]]
    columns = present_columns(f"{path}:1", columns, header, optional)
    places = {key: header.index(name) for key, name in columns.items()}
    for number, cells in rows:
        ledger.count_record()
        if len(cells) == len(header):
            yield number, {key: cells[place].strip() for key, place in places.items()}
        else:
            what, expected = f"{len(cells)} cells", f"{len(header)}: {', '.join(header)}"
            ledger.note_error(InputError(f"{path}:{number}", what, separator.join(cells), expected, reason="cells"))


def csv_rows(
    location: str,
    lines: Iterable[tuple[int, str]],
    separator: str = ",",
    first: int = 1,
    escape: str | None = None,
) -> Iterator[tuple[int, list[str]]]:
    """Yields `(first line, fields)`. Broken quotes always raise: nothing says where the next row would begin.

    Args:
        first: the number of the first line. escape: what stands before a quote inside of quotes.
    """
    texts = (text + "\n" for _, text in lines)
    reader = csv.reader(texts, strict=True, delimiter=separator, escapechar=escape)
    start = first
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            expected = 'every `"` closed, and doubled inside a field'
            raise InputError(f"{location}:{start}", "broken quotes", error, expected, reason="quotes") from None
        if fields:
            yield start, fields
        start = first + reader.line_num


def parquet_rows(
    path: Path | str, columns: Mapping[str, str], ledger: Ledger, encoding: str, optional: Collection[str]
) -> Iterator[tuple[int, dict[str, str]]]:
    columns = present_columns(f"{path}:1", columns, column_names(path), optional)
    number = 0
    for batch in read_batches(path, list(dict.fromkeys(columns.values()))):
        for cells in zip(*map(cell_values, batch.values())):
            row = dict(zip(batch, cells))
            number += 1
            ledger.count_record()
            yield number, {key: cell_text(row[name]) for key, name in columns.items()}


def object_rows(
    path: Path | str, columns: Mapping[str, str], ledger: Ledger, encoding: str, optional: Collection[str]
) -> Iterator[tuple[int, dict[str, str]]]:
    for number, line in read_lines(path, encoding):
        if not line.strip():
            continue
        ledger.count_record()
        try:
            row = parse_object(f"{path}:{number}", line)
            present = present_columns(f"{path}:{number}", columns, [*row], optional)
        except InputError as error:
            ledger.note_error(error)
            continue
        yield number, {key: cell_text(row[name]) for key, name in present.items()}


def cell_text(value: object) -> str:
    """The text of a value of JSON or parquet, "" for none; a list or an object as JSON, as cells of CSV write it."""
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return "" if value is None else str(value).strip()


def present_columns(
    where: Path | str, columns: Mapping[str, str], header: list[str], optional: Collection[str]
) -> dict[str, str]:
    """`columns` without optional ones that are not there.

    Raises:
        InputError: a column is missing, or its name stands twice.
    """
    found = {key: name for key, name in columns.items() if name in header or key not in optional}
    for key, name in found.items():
        if header.count(name) != 1:
            what = f"{'no' if name not in header else 'more than one'} column `{name}`"
            fix = f"say which column holds the {key}, in the config's `columns` or `labels`"
            raise InputError(where, what, ", ".join(header), f"a column of the {key}", fix, "columns")
    return found
