"""Rows of MovieLens tables, plain, gzip or inside a zip archive: CSV with a header; `::`, tab and `|` without one."""

import io
import zipfile
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import cast

from loratory.data.files import DAMAGED, UTF8_MARK, check_encoding_mark, damaged_error, decode_line, read_lines
from loratory.data.tables import csv_rows
from loratory.domains.recsys.sources import Files, split_location
from loratory.errors import InputError

FIELDS = {
    "ratings": ("userId", "movieId", "rating", "timestamp"),
    "items": ("movieId", "title"),
    "users": ("userId", "gender", "age", "occupation"),
}
NAMES = {
    "ratings": ("ratings.csv", "ratings.dat", "u.data"),
    "items": ("movies.csv", "movies.dat", "u.item"),
    "users": ("users.csv", "users.dat", "u.user"),
}
SUFFIXES = {".csv": "csv", ".dat": "dat", ".data": "tab", ".item": "tab", ".user": "tab"}
GENRE_FLAGS = tuple(f"genre{n}" for n in range(19))
HEADERLESS = {  # (format, table): separator, fields
    ("dat", "ratings"): ("::", FIELDS["ratings"]),
    ("dat", "items"): ("::", ("movieId", "title", "genres")),
    ("dat", "users"): ("::", ("userId", "gender", "age", "occupation", "zip")),
    ("tab", "ratings"): ("\t", FIELDS["ratings"]),
    ("tab", "items"): ("|", ("movieId", "title", "released", "video", "url", *GENRE_FLAGS)),
    ("tab", "users"): ("|", ("userId", "age", "gender", "occupation", "zip")),
}


def table_location(files: Files, table: str) -> str:
    """Where a table is, as a path or `archive.zip!member`; items default to the archive of the ratings.

    Raises:
        InputError: an archive that is missing, damaged, or has not exactly one member of the table's names.
    """
    path, member = split_location(getattr(files, table) or split_location(files.ratings)[0])
    if member or not path.endswith(".zip"):
        return f"{path}!{member}" if member else path
    with open_archive(path) as archive:
        found = [name for name in archive.namelist() if PurePosixPath(name).name in NAMES[table]]
    if len(found) != 1:
        what = f"{len(found)} members of the archive could be the {table}"
        raise InputError(path, what, ", ".join(found) or None, " or ".join(NAMES[table]), "write archive.zip!member")
    return f"{path}!{found[0]}"


def read_table_rows(
    location: str, table: str, files: Files, reject: Callable[[InputError], None]
) -> Iterator[tuple[int, list[str]]]:
    """Yields `(line number, values of FIELDS[table])`; rows with a wrong number of fields go to `reject(error)`.

    Raises:
        InputError: as `location_lines`; also a missing column, broken quotes, or a file without rows.
    """
    kind = table_format(location, files.format)
    lines = location_lines(location, files.encoding)
    if kind == "csv":
        rows = csv_rows(location, lines)
        header = [name.strip() for name in next(rows, (1, []))[1]]
    else:
        separator, names = HEADERLESS[kind, table]
        header = list(names)
        rows = ((number, text.split(separator)) for number, text in lines if text)
    missing = [name for name in FIELDS[table] if name not in header]
    if missing:
        what = f"no column `{missing[0]}`" + (", so no split by time is possible" if missing[0] == "timestamp" else "")
        raise InputError(f"{location}:1", what, ",".join(header), ",".join(FIELDS[table]), reason="columns")
    picks = [header.index(name) for name in FIELDS[table]]
    n = None
    for n, fields in rows:
        if len(fields) == len(header):
            yield n, [fields[i] for i in picks]
        else:
            expected = f"{len(header)} fields: {','.join(header)}"
            reject(
                InputError(f"{location}:{n}", f"{len(fields)} fields", ",".join(fields), expected, reason="columns")
            )
    if n is None:
        raise InputError(location, "the file holds no rows", expected=table, reason="empty")


def table_format(location: str, format: str) -> str:
    path = PurePosixPath(location)
    suffix = PurePosixPath(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if format == "auto" and suffix not in SUFFIXES:
        fix = "set `format:` to csv, dat or tab"
        raise InputError(location, "layout unknown by its suffix", suffix, ", ".join(SUFFIXES), fix, "format")
    return SUFFIXES[suffix] if format == "auto" else format


def location_lines(location: str, encoding: str) -> Iterator[tuple[int, str]]:
    """Yields `(line number from 1, text)` of a path or of `archive.zip!member`; nothing is ever extracted.

    Raises:
        InputError: as `read_lines`; also a damaged or locked archive, or a member that is missing or leaves it.
    """
    path, member = split_location(location)
    if not member:
        yield from read_lines(path, encoding)
        return
    with open_archive(path) as archive:
        stream = io.BufferedReader(open_member(archive, path, member))
        try:
            check_encoding_mark(location, stream.peek(3))
            for number, line in enumerate(stream, start=1):
                text = line.rstrip(b"\n") if number > 1 else line.rstrip(b"\n").removeprefix(UTF8_MARK)
                yield number, decode_line(text, location, number, encoding)
        except DAMAGED as error:
            raise damaged_error(location, stream.tell(), error) from None


def open_archive(path: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except FileNotFoundError:
        raise InputError(path, "no such file", expected="a zip archive", reason="missing") from None
    except zipfile.BadZipFile as error:
        raise InputError(path, "not a zip archive, or damaged", error, "a zip archive", reason="zip") from None


def open_member(archive: zipfile.ZipFile, path: str, member: str) -> zipfile.ZipExtFile:
    name = PurePosixPath(member)
    if name.is_absolute() or ".." in name.parts or "\\" in member:
        raise InputError(path, "member outside the archive", member, "a path inside", reason="member_path")
    try:
        info = archive.getinfo(member)
    except KeyError:
        inside = ", ".join(sorted(archive.namelist()))
        raise InputError(path, "no such member", member, f"one of {inside}", reason="missing") from None
    if info.flag_bits & 1:
        raise InputError(path, "member is locked by a password", member, "an open archive", reason="zip")
    return cast(zipfile.ZipExtFile, archive.open(info))
