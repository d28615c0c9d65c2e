"""Tables of ratings, items and users in columns of text: delimited text, JSON lines or parquet, also in a zip archive.

Text is read in blocks. Arrow parses a block whose rows are all plain; another one goes row by row, which finds what is
wrong and names its line.
"""

import ast
import io
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import PurePosixPath
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from loratory.data.files import (
    DAMAGED,
    UTF8_MARK,
    TextDecoder,
    check_encoding_mark,
    check_size,
    damaged_error,
    first_bytes,
    read_blocks,
)
from loratory.data.parquet import column_names, plain_texts, read_batches
from loratory.data.tables import PARQUET, SEPARATORS, csv_rows
from loratory.domains.recsys.layouts import BY_SUFFIX, LAYOUTS, Layout, TableLayout
from loratory.domains.recsys.sources import Files, split_location
from loratory.errors import InputError

BLOCK = 1 << 23  # bytes
ROWS = 1 << 16  # of a chunk that is read row by row
SHOWN = 3  # names that an error lists
UNIT = b"\x1f"  # stands for a separator of several bytes while Arrow parses
Row = tuple[int, list[str]]  # where it begins, its fields
Reject = Callable[[InputError], None]


class Chunk(NamedTuple):
    """Rows in columns: the line (or, of parquet, the row) of each, and {what: its text}."""

    lines: np.ndarray
    columns: dict[str, pa.Array]


def open_layout(files: Files) -> tuple[str, Layout]:
    """Where the ratings are, as a path or `archive.zip!member`, and how the files are written.

    Raises:
        InputError: an archive that is missing, damaged, or has not exactly one member of the table's names; no layout.
    """
    path, member = split_location(files.ratings)
    location = files.ratings
    if path.endswith(".zip") and not member:
        formats = BY_SUFFIX.values() if files.format == "auto" else [files.format]
        location = find_member(
            path, "ratings", [name for of in formats for name in LAYOUTS[of].names.get("ratings", ())]
        )
    try:
        return location, files.model_copy(update={"ratings": location}).layout
    except ValueError as error:
        raise InputError(location, str(error), reason="format") from None


def table_location(files: Files, table: str, layout: Layout) -> str | None:
    """Where the items or users are; None where no file tells them. Items default to the archive of the ratings."""
    location = getattr(files, table)
    archive = split_location(files.ratings)[0]
    if location is None and table == "items" and archive.endswith(".zip") and "items" in layout.names:
        location = archive
    if location is not None and location.endswith(".zip"):
        return find_member(location, table, layout.names.get(table, ()))
    return location


def find_member(path: str, table: str, names: Sequence[str]) -> str:
    with open_archive(path) as archive:
        found = [name for name in archive.namelist() if PurePosixPath(name).name in names]
    if len(found) != 1:
        what = f"{len(found)} members of the archive could be the {table}"
        expected = " or ".join(names) or "a format whose files have names"
        raise InputError(path, what, name_some(found) or None, expected, "write archive.zip!member")
    return f"{path}!{found[0]}"


def name_some(names: Sequence[str]) -> str:
    """The first of many names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def read_chunks(location: str, layout: TableLayout, encoding: str, table: str, reject: Reject) -> Iterator[Chunk]:
    """Yields the rows of a table, the columns of `layout.columns` alone, white space around each value removed.

    Rows with a wrong number of fields, or without a column, go to `reject(error)`.

    Raises:
        InputError: the file is missing, damaged, empty or not of the encoding; a column is missing; broken quotes.
    """
    blocks = location_blocks(location)
    first = next(blocks, b"")
    roles = layout.column_names()
    if first.startswith(PARQUET):
        chunks = parquet_chunks(location, roles)
    elif first.lstrip()[:1] == b"{":
        decoder = TextDecoder(location, encoding)
        rows = json_rows(location, text_lines(whole_lines(chain([first], blocks), location), decoder), roles, reject)
        chunks = row_chunks(rows, [*roles])
    elif first.lstrip()[:1] == b"[":
        raise InputError(location, "a JSON array", expected="JSON lines: one object a line", reason="json")
    else:
        chunks = text_chunks(location, layout, encoding, chain([first], blocks), reject)
    empty = True
    for chunk in chunks:
        empty = False
        yield Chunk(chunk.lines, {role: pc.utf8_trim_whitespace(column) for role, column in chunk.columns.items()})
    if empty:
        raise InputError(location, "the file holds no rows", expected=table, reason="empty")


def read_cells(
    location: str, layout: TableLayout, encoding: str, table: str, reject: Reject
) -> Iterator[tuple[int, dict]]:
    """Yields `(line, {what: its text})` of every row of a small table, as `read_chunks`."""
    for lines, columns in read_chunks(location, layout, encoding, table, reject):
        for line, *cells in zip(lines.tolist(), *(column.to_pylist() for column in columns.values())):
            yield line, dict(zip(columns, cells))


# Delimited text.


def text_chunks(
    location: str, layout: TableLayout, encoding: str, blocks: Iterator[bytes], reject: Reject
) -> Iterator[Chunk]:
    decoder = TextDecoder(location, encoding)
    parts = whole_lines(blocks, location)
    first, start = next(parts, b""), 1
    if not first.strip():
        raise InputError(location, "the file holds no rows", expected="rows", reason="empty")
    separator = layout.separator or find_separator(first.split(b"\n", 1)[0])
    header = list(layout.fields or ())
    quotes = layout.quotes or "doubled"
    if not header:
        head, _, first = first.partition(b"\n")
        text, start = decoder.decode_line(head, 1), 2
        rows = text_rows(location, [(1, text)], separator, quotes, 1)
        header = [name.strip() for name in next(iter(rows), (1, []))[1]]
    places = column_places(location, header, layout.column_names())
    parts = chain([first] if first else [], parts)
    for part in parts:
        found = None if quotes != "none" and b'"' in part else plain_chunk(part, start, separator, header, places)
        if found is not None:
            yield found
        else:
            split_quotes = quotes != "none" and b'"' in part
            lines = text_lines(chain([part], parts) if split_quotes else [part], decoder, start)
            rows = text_rows(location, lines, separator, quotes, start)
            yield from row_chunks(pick_fields(location, rows, header, places, separator, reject), [*places])
        start += part.count(b"\n")
    decoder.check_encoding()


def find_separator(line: bytes) -> str:
    return next((mark for mark in SEPARATORS if mark.encode() in line), ",")


def column_places(location: str, header: Sequence[str], roles: Mapping[str, str]) -> dict[str, int]:
    """{what: place in a row}.

    Raises:
        InputError: a column is missing, or its name stands twice.
    """
    for role, name in roles.items():
        if header.count(name) != 1:
            what = f"{'no' if name not in header else 'more than one'} column `{name}`"
            what += ", so no split by time is possible" if role == "time" else ""
            fix = f"say which column it is, as `columns: {{{role}: …}}`"
            raise InputError(f"{location}:1", what, ",".join(header), ",".join(roles.values()), fix, "columns")
    return {role: header.index(name) for role, name in roles.items()}


def plain_chunk(
    part: bytes, start: int, separator: str, header: Sequence[str], places: Mapping[str, int]
) -> Chunk | None:
    """A block of lines as Arrow parses it; None where a row may be other than plain."""
    delimiter = separator.encode()
    if not part.isascii() or (len(delimiter) > 1 and UNIT in part):
        return None
    if len(delimiter) > 1:
        part, delimiter = part.replace(delimiter, UNIT), UNIT
    names = [str(place) for place in range(len(header))]  # a header may name two fields alike
    wanted = list(dict.fromkeys(str(place) for place in places.values()))
    try:
        table = pyarrow.csv.read_csv(
            pa.BufferReader(part),
            pyarrow.csv.ReadOptions(column_names=names, block_size=max(len(part), 1)),
            pyarrow.csv.ParseOptions(delimiter=delimiter.decode(), quote_char=False, ignore_empty_lines=False),
            pyarrow.csv.ConvertOptions(
                include_columns=wanted, column_types=dict.fromkeys(wanted, pa.string()), strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid:
        return None
    if table.num_rows != part.count(b"\n") + (not part.endswith(b"\n")) or b"\n\n" in part or b"\n\r" in part:
        return None
    columns = {role: table.column(str(place)).combine_chunks() for role, place in places.items()}
    return Chunk(np.arange(start, start + table.num_rows), columns)


def text_rows(
    location: str, lines: Iterable[tuple[int, str]], separator: str, quotes: str, start: int
) -> Iterator[Row]:
    if quotes == "none" or len(separator) > 1:
        return ((number, text.split(separator)) for number, text in lines if text)
    return csv_rows(location, lines, separator, start, "\\" if quotes == "backslash" else None)


def pick_fields(
    location: str,
    rows: Iterable[Row],
    header: Sequence[str],
    places: Mapping[str, int],
    separator: str,
    reject: Reject,
) -> Iterator[Row]:
    for number, fields in rows:
        if len(fields) == len(header):
            yield number, [fields[place] for place in places.values()]
        else:
            expected = f"{len(header)} fields: {','.join(header)}"
            what, value = f"{len(fields)} fields", separator.join(fields)
            reject(InputError(f"{location}:{number}", what, value, expected, reason="columns"))


def row_chunks(rows: Iterable[Row], roles: Sequence[str]) -> Iterator[Chunk]:
    lines: list[int] = []
    cells: list[list[str]] = []
    for number, fields in chain(rows, [(0, [])]):
        last = number == 0
        if not last:
            lines.append(number)
            cells.append(fields)
        if lines and (last or len(lines) == ROWS):
            columns = zip(roles, zip(*cells))
            yield Chunk(np.array(lines), {role: pa.array(column, pa.string()) for role, column in columns})
            lines, cells = [], []


# JSON lines and parquet.


def json_rows(
    location: str, lines: Iterable[tuple[int, str]], roles: Mapping[str, str], reject: Reject
) -> Iterator[Row]:
    for number, text in lines:
        if not text.strip():
            continue
        where = f"{location}:{number}"
        try:
            found = parse_object(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            reject(InputError(where, "not a JSON object", text, "one object a line", reason="json"))
            continue
        lost = [name for role, name in roles.items() if name not in found and role != "title"]
        if lost:
            expected = ", ".join(roles.values())
            fix = "say which keys they are, as `columns: {user: …}`"
            reject(InputError(where, f"no key `{lost[0]}`", ", ".join(found), expected, fix, "columns"))
            continue
        yield number, [cell_text(found.get(name)) for name in roles.values()]


def parse_object(text: str) -> dict[str, Any]:
    """A JSON object, or one as Python writes it, as in Amazon's files of 2014.

    Raises:
        ValueError: it is neither, or no object.
    """
    found = ast.literal_eval(text) if text.lstrip().startswith(("{'", "{u'")) else json.loads(text)
    if not isinstance(found, dict):
        raise ValueError
    return {str(key): value for key, value in found.items()}


def cell_text(value: object) -> str:
    return "" if value is None else str(value).encode("utf-8", "replace").decode()


def parquet_chunks(location: str, roles: Mapping[str, str]) -> Iterator[Chunk]:
    path, member = split_location(location)
    if member:
        raise InputError(location, "parquet inside an archive", expected="a file", fix="unpack it", reason="format")
    column_places(location, column_names(path), roles)
    start = 1
    for batch in read_batches(path, list(dict.fromkeys(roles.values()))):
        columns = {role: plain_texts(batch[name], path) for role, name in roles.items()}
        lines = np.arange(start, start + len(next(iter(columns.values()))))
        yield Chunk(lines, columns)
        start += len(lines)


# Bytes and lines.


def location_blocks(location: str) -> Iterator[bytes]:
    """Yields the decompressed content of a path or of `archive.zip!member`; nothing is ever extracted.

    Raises:
        InputError: as `read_blocks`; also a damaged or locked archive, or a member that is missing or leaves it.
    """
    path, member = split_location(location)
    if not member:
        start = first_bytes(path, len(PARQUET))
        yield from [start] if start == PARQUET else read_blocks(path, BLOCK)
        return
    with open_archive(path) as archive:
        stream = io.BufferedReader(open_member(archive, path, member))
        done = 0
        try:
            check_encoding_mark(location, stream.peek(3))
            while block := stream.read(BLOCK):
                yield block if done else block.removeprefix(UTF8_MARK)
                done += len(block)
        except DAMAGED as error:
            raise damaged_error(location, done, error) from None


def whole_lines(blocks: Iterable[bytes], location: str) -> Iterator[bytes]:
    """The blocks cut where lines end."""
    rest = b""
    for block in blocks:
        head, end, tail = block.rpartition(b"\n")
        if end:
            yield rest + head + end
            rest = tail
        else:
            rest += block
        check_size(len(rest), location)
    if rest:
        yield rest


def text_lines(parts: Iterable[bytes], decoder: TextDecoder, start: int = 1) -> Iterator[tuple[int, str]]:
    number = start
    for part in parts:
        for line in part.removesuffix(b"\n").split(b"\n"):
            yield number, decoder.decode_line(line, number)
            number += 1


def open_archive(path: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except FileNotFoundError:
        raise InputError(path, "no such file", expected="a zip archive", reason="missing") from None
    except DAMAGED as error:
        raise InputError(path, "not a zip archive, or damaged", error, "a zip archive", reason="zip") from None


def open_member(archive: zipfile.ZipFile, path: str, member: str) -> zipfile.ZipExtFile:
    name = PurePosixPath(member)
    if name.is_absolute() or ".." in name.parts or "\\" in member:
        raise InputError(path, "member outside the archive", member, "a path inside", reason="member_path")
    try:
        info = archive.getinfo(member)
    except KeyError:
        names = sorted(archive.namelist())
        alike = [each for each in names if PurePosixPath(each).name == name.name]
        raise InputError(
            path, "no such member", member, f"one of {name_some(alike or names)}", reason="missing"
        ) from None
    if info.flag_bits & 1:
        raise InputError(path, "member is locked by a password", member, "an open archive", reason="zip")
    try:
        return cast(zipfile.ZipExtFile, archive.open(info))
    except DAMAGED as error:
        raise InputError(path, "member is damaged", f"{member}: {error}", "a whole archive", reason="zip") from None
