"""Who rated what, how and when: all rows of a source as numbers, a few bytes each."""

import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta, timezone
from functools import lru_cache
from typing import Any, NoReturn, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from loratory.data.ledger import ROWS_OF_A_REASON, Ledger
from loratory.domains.recsys.layouts import Clock, Layout
from loratory.domains.recsys.sources import Files
from loratory.domains.recsys.tables import Chunk, name_some, read_cells, read_chunks, table_location
from loratory.errors import InputError

LATEST = 4_102_444_800  # 2100-01-01: no wall clock, so that the same input is right or wrong for ever
MILLISECONDS = 100_000_000_000
ID = re.compile(r"[^\s:]+")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
WHOLE = r"^\d{1,15}(\.0+)?$"
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
# Four bytes each, as types of `array`.
COLUMNS = {"user": "i", "item": "i", "value": "f", "time": "I", "line": "i"}
UNKNOWN = -1
SORTED = 1 << 20  # rows that are put into order at once


class CellError(ValueError):
    """A cell that cannot be read; the arguments are those of an `InputError` behind its place."""


@dataclass(frozen=True)
class Ratings:
    """Ratings in columns, (n,) each.

    Attributes:
        user, item: int32, places in `users` and `items`, which are in the order of their text.
        value: float32, see `stars`. time: uint32, seconds since 1970, or the row's number where there are no times.
        line: int32, where the rating stands in `location`.
    """

    user: np.ndarray
    item: np.ndarray
    value: np.ndarray
    time: np.ndarray
    line: np.ndarray
    users: list[str] = field(repr=False)
    items: list[str] = field(repr=False)
    location: str

    def __len__(self) -> int:
        return len(self.user)

    def select(self, rows: np.ndarray) -> Self:
        """Some of the rows, by place or by a mask."""
        return replace(self, **{name: getattr(self, name)[rows] for name in COLUMNS})

    def stars(self, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """The ratings as they were written: the fourth decimal is the last that single precision keeps."""
        found = self.value[rows].astype(float)
        return np.round(found, 4, out=found)

    def id(self, row: int) -> str:
        return f"{self.users[self.user[row]]}:{self.items[self.item[row]]}:{self.time[row]}"

    def keep(self, marks: np.ndarray, reason: str, ledger: Ledger) -> Self:
        """The marked rows; the others go to the ledger."""
        self.note_dropped(np.flatnonzero(~marks), reason, ledger)
        return self if marks.all() else self.select(marks)

    def note_dropped(self, rows: np.ndarray, reason: str, ledger: Ledger) -> None:
        for row in rows[:ROWS_OF_A_REASON].tolist():
            ledger.drop_record(self.location, int(self.line[row]), self.id(row), reason)
        ledger.count_dropped(reason, len(rows[ROWS_OF_A_REASON:]))


class RatingReader:
    """Reads chunks of text into numbers.

    Attributes:
        titles: {item: title} of what the ratings themselves say.
    """

    def __init__(self, location: str, layout: Layout, ledger: Ledger) -> None:
        self.location, self.layout, self.ledger = location, layout, ledger
        self.users: dict[str, int] = {}
        self.items: dict[str, int] = {}
        self.titles: dict[str, str] = {}
        self.columns = {name: array(kind) for name, kind in COLUMNS.items()}  # they grow where they lie

    def reject_row(self, error: InputError) -> None:
        self.ledger.count_record()
        self.ledger.note_error(error)

    def read(self) -> Ratings:
        """Raises:
        InputError: as `read_chunks`; of single rows only with `on_error: fail`.
        """
        layout = self.layout
        for chunk in read_chunks(self.location, layout.ratings, layout.encoding, "ratings", self.reject_row):
            self.add_chunk(chunk)
        pa.default_memory_pool().release_unused()
        columns = {name: np.frombuffer(self.columns.pop(name), kind) for name, kind in COLUMNS.items()}
        users, items = put_in_text_order(columns["user"], self.users), put_in_text_order(columns["item"], self.items)
        return Ratings(**columns, users=users, items=items, location=self.location)

    def add_chunk(self, chunk: Chunk) -> None:
        columns = {
            "user": encode_ids(chunk.columns["user"], self.users),
            "item": encode_ids(chunk.columns["item"], self.items),
            "value": self.read_values(chunk),
            "time": self.read_times(chunk),
            "line": chunk.lines.astype(np.int32),
        }
        bad = (columns["user"] < 0) | (columns["item"] < 0) | np.isnan(columns["value"]) | (columns["time"] < 0)
        for row in np.flatnonzero(bad).tolist():
            self.reject_row(self.explain_row(chunk, row))
        unrated = columns["value"] == self.layout.unrated if self.layout.unrated is not None else np.zeros_like(bad)
        self.note_unrated(chunk, np.flatnonzero(unrated & ~bad))
        keep = ~bad & ~unrated
        self.ledger.count_record(int(np.count_nonzero(~bad)))
        if "title" in chunk.columns:
            self.note_titles(columns["item"], chunk.columns["title"], keep)
        for name, column in columns.items():
            self.columns[name].frombytes(column[keep].astype(COLUMNS[name]).tobytes())

    def read_values(self, chunk: Chunk) -> np.ndarray:
        if "rating" not in chunk.columns:
            return np.ones(len(chunk.lines), np.float32)
        return map_distinct(chunk.columns["rating"], lambda text: parse_value(text, self.layout), np.nan, np.float32)

    def read_times(self, chunk: Chunk) -> np.ndarray:
        """UNKNOWN where a time cannot be read."""
        if "time" not in chunk.columns:
            return chunk.lines.astype(np.int64)
        column, clock = chunk.columns["time"], self.layout.time
        if clock not in ("seconds", "milliseconds"):
            return map_distinct(column, lambda text: parse_time(text, clock), UNKNOWN, np.int64)
        whole = pc.match_substring_regex(column, WHOLE)
        found = pc.cast(
            pc.if_else(whole, pc.replace_substring_regex(column, r"\..*", ""), "-1"), pa.int64()
        ).to_numpy()
        if clock == "milliseconds":
            found = np.where(found < MILLISECONDS, UNKNOWN, found // 1000)
        return np.where(found > LATEST, UNKNOWN, found)

    def explain_row(self, chunk: Chunk, row: int) -> InputError:
        """What is wrong with a row that could not be read."""
        cells = {role: column[row].as_py() for role, column in chunk.columns.items()}
        try:
            check_id(cells["user"])
            check_id(cells["item"])
            if "rating" in cells:
                parse_value(cells["rating"], self.layout)
            parse_time(cells["time"], self.layout.time)
        except CellError as error:
            return InputError(f"{self.location}:{chunk.lines[row]}", *error.args)
        raise AssertionError(f"{self.location}:{chunk.lines[row]}: {cells} can be read")

    def note_unrated(self, chunk: Chunk, rows: np.ndarray) -> None:
        for row in rows[:ROWS_OF_A_REASON].tolist():
            id = f"{chunk.columns['user'][row]}:{chunk.columns['item'][row]}"
            self.ledger.drop_record(self.location, int(chunk.lines[row]), id, "unrated")
        self.ledger.count_dropped("unrated", len(rows[ROWS_OF_A_REASON:]))

    def note_titles(self, items: np.ndarray, titles: pa.Array, keep: np.ndarray) -> None:
        """The least of the titles that rows give an item, whatever their order."""
        pairs = (
            pa.table({"item": items, "title": titles})
            .filter(pa.array(keep))
            .group_by("item")
            .aggregate([("title", "min")])
        )
        names = list(self.items)
        for item, title in zip(pairs["item"].to_pylist(), pairs["title_min"].to_pylist()):
            if title:
                known = self.titles.get(names[item], title)
                self.titles[names[item]] = min(known, title)


def put_in_text_order(codes: np.ndarray, names: dict[str, int]) -> list[str]:
    """Makes codes, in place, such that do not depend on the order of the rows; what they stand for."""
    ordered = sorted(names)
    places = np.empty(len(names), np.int32)
    places[[names[name] for name in ordered]] = np.arange(len(names), dtype=np.int32)
    for part in iterate_slices(len(codes), SORTED):
        codes[part] = places[codes[part]]
    return ordered


def encode_ids(column: pa.Array, codes: dict[str, int]) -> np.ndarray:
    """(n,) the number of each id, a new one if it is new; UNKNOWN of malformed ones."""
    coded = column.dictionary_encode()
    found = [
        codes.setdefault(id, len(codes)) if id in codes or ID.fullmatch(id) else UNKNOWN
        for id in coded.dictionary.to_pylist()
    ]
    return np.array(found, np.int32)[coded.indices.to_numpy()]


def map_distinct(column: pa.Array, parse: Callable[[str], float], unknown: float, kind: type) -> np.ndarray:
    """(n,) what each text says; each distinct one is parsed once."""

    def parse_or_not(text: str) -> float:
        try:
            return parse(text)
        except CellError:
            return unknown

    coded = column.dictionary_encode()
    return np.array([parse_or_not(text) for text in coded.dictionary.to_pylist()], kind)[coded.indices.to_numpy()]


def check_id(id: str) -> None:
    if not ID.fullmatch(id):  # ids are joined by `:` into those of the records
        raise CellError("malformed id", id, "text without blanks and `:`", None, "id")


def parse_value(text: str, layout: Layout) -> float:
    """A rating, a count, or what a kind of event counts as."""
    if layout.events:
        if text not in layout.events:
            raise CellError("unknown kind of event", text, ", ".join(layout.events), "list it in `events:`", "rating")
        return layout.events[text]
    value = float(text) if NUMBER.fullmatch(text) else float("nan")
    if value == layout.unrated:
        return value
    if layout.scale is None:
        if not 0 < value < 1e30:
            raise CellError("count", text, "a number above 0", None, "rating")
        return value
    lowest, highest, step = layout.scale
    steps = (value - lowest) / step
    if not (lowest <= value <= highest and abs(steps - round(steps)) < 1e-6):
        expected = f"{lowest:g} to {highest:g} stars in steps of {step:g}"
        raise CellError("rating", text, expected, "set `scale:` if it is another one", "rating")
    return value


@lru_cache(1 << 16)
def parse_time(text: str, clock: Clock) -> int:
    """Seconds since 1970."""
    if clock in ("iso", "english"):
        value = parse_date(text, clock)
    else:
        if not (text.removeprefix("-").isdecimal() and text.isascii() and len(text) <= 15):
            raise CellError(
                "timestamp", text, f"whole {clock} since 1970", "set `time:` if it is no such number", "timestamp"
            )
        value = int(text)
        if clock == "seconds" and value > MILLISECONDS:
            fix = "set `time: milliseconds`"
            raise CellError("timestamp looks like milliseconds", text, "seconds since 1970", fix, "timestamp")
        if clock == "milliseconds":
            if 0 <= value < MILLISECONDS:
                fix = "set `time: seconds`"
                raise CellError("timestamp looks like seconds", text, "milliseconds since 1970", fix, "timestamp")
            value //= 1000
    if not 0 <= value <= LATEST:
        raise CellError(
            "timestamp out of range", text, f"0 to {LATEST} (the year 2100), in seconds", None, "timestamp"
        )
    return value


def parse_date(text: str, clock: Clock) -> int:
    try:
        found = datetime.fromisoformat(text) if clock == "iso" else english_date(text)
        return int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() // 1)
    except (ValueError, OverflowError):
        example = "2019-01-31T12:00:00Z" if clock == "iso" else "Thu Jan 31 12:00:00 +0000 2019"
        fix = "set `time:` if it is written otherwise"
        raise CellError("timestamp", text, f"a date such as {example}", fix, "timestamp") from None


def english_date(text: str) -> datetime:
    """`Thu Jan 31 12:00:00 +0000 2019`, whatever the machine's language."""
    _, month, day, clock, zone, year = text.split(" ")
    hours, minutes = int(zone[:3]), int(zone[0] + zone[3:])
    shift = timezone(timedelta(hours=hours, minutes=minutes))
    time = datetime.strptime(f"{year}-{MONTHS.index(month) + 1}-{day} {clock}", "%Y-%m-%d %H:%M:%S")
    return time.replace(tzinfo=shift)


# Titles and users.


def read_titles(files: Files, layout: Layout, ledger: Ledger) -> dict[str, str] | None:
    """Title of each item of their table, blanks and line breaks made single blanks; None where there is no table.

    Raises:
        InputError: an item named twice; without a title, unless malformed ratings are skipped: then its ratings are.
    """
    location = table_location(files, "items", layout)
    if location is None:
        return None
    titles: dict[str, str] = {}
    for line, cells in read_cells(location, layout.items, layout.encoding, "items", raise_error):
        item, title = cells["item"], " ".join(cells["title"].split())
        if not title and ledger.on_error == "fail" and not layout.untitled:
            fix = "name it, or set `on_error: skip`"
            raise InputError(f"{location}:{line}", "item without a title", item, "a title", fix, "no_title")
        if titles.setdefault(item, title) is not title:
            where = f"{location}:{line}"
            raise InputError(where, "item named twice", item, "unique ids", "remove one", "duplicate_id")
    return {item: title for item, title in titles.items() if title}


def read_profiles(files: Files, layout: Layout) -> dict[str, str] | None:
    """What the table of users says of each, as `Age: 25-34. Occupation: lawyer.`; None where there is no table.

    Raises:
        InputError: a user named twice.
    """
    location = table_location(files, "users", layout)
    if location is None:
        return None
    profiles: dict[str, str] = {}
    for line, cells in read_cells(location, layout.users, layout.encoding, "users", raise_error):
        user = cells.pop("user")
        if user in profiles:
            where = f"{location}:{line}"
            raise InputError(where, "user named twice", user, "unique ids", "remove one", "duplicate_id")
        words = {what: layout.users.values.get(what, {}).get(cell, cell) for what, cell in cells.items()}
        profiles[user] = " ".join(f"{what}: {' '.join(word.split())}." for what, word in words.items() if word)
    return profiles


def raise_error(error: InputError) -> NoReturn:
    raise error


# What is kept.


def drop_unlisted(ratings: Ratings, column: str, names: Mapping[str, Any], ledger: Ledger) -> Ratings:
    """The ratings whose user or item is in its table; the error of each other one says how many there are."""
    all_names: Sequence[str] = getattr(ratings, f"{column}s")
    listed = np.array([name in names for name in all_names], bool)[getattr(ratings, column)]
    if listed.all():
        return ratings
    rows = np.flatnonzero(~listed)
    lost = [all_names[code] for code in np.unique(getattr(ratings, column)[rows]).tolist()]
    what = f"{len(rows)} ratings name {len(lost)} {column}s that the table of {column}s lacks"
    for line in ratings.line[rows].tolist():
        where, reason = f"{ratings.location}:{line}", f"unknown_{column}"
        ledger.note_error(InputError(where, what, name_some(lost), f"every {column} of a rating", reason=reason))
    return ratings.select(listed)


def sort_ratings(ratings: Ratings) -> None:
    """By user, time and item, in place; what is equal in all three by rating and line."""
    order = np.argsort(ratings.user, kind="stable").astype(np.int32)
    sort_columns(ratings, order)
    for block in group_blocks(ratings.user):
        sort_columns(
            ratings, np.lexsort([getattr(ratings, name)[block] for name in ("value", "item", "time", "user")]), block
        )


def sort_columns(ratings: Ratings, order: np.ndarray, block: slice = slice(None)) -> None:
    for name in COLUMNS:
        column = getattr(ratings, name)[block]
        column[:] = column[order]


def group_blocks(codes: np.ndarray) -> Iterator[slice]:
    """All rows of some codes at a time, to spare memory, where rows are in order of their codes (in whatever order
    `codes` are)."""
    ends = np.cumsum(np.bincount(codes)) if len(codes) else np.zeros(1, int)
    start, n = 0, len(codes)
    while start < n:
        stop = int(ends[np.searchsorted(ends, min(start + SORTED, n))])
        yield slice(start, stop)
        start = stop


def pair_key(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(n,) numbers that are ordered, and equal, as the pairs are; `second` is below 2³²."""
    return (first.astype(np.int64) << 32) | second


def repeated(ratings: Ratings) -> np.ndarray:
    """(n,) whether user, item and time are those of the row before."""
    same = [np.diff(column) == 0 for column in (ratings.user, ratings.item, ratings.time)]
    return np.r_[False, same[0] & same[1] & same[2]][: len(ratings)]


def drop_duplicates(ratings: Ratings, ledger: Ledger) -> Ratings:
    """The ratings without those that repeat user, item and time."""
    again = repeated(ratings)
    first = np.maximum.accumulate(np.where(again, 0, np.arange(len(ratings))))
    for row in np.flatnonzero(again).tolist():
        where = f"{ratings.location}:{ratings.line[row]}"
        what, id = f"the rating of line {ratings.line[first[row]]} again", ratings.id(row)
        ledger.note_error(InputError(where, what, id, "one rating", "remove one", "duplicate"), id)
    return ratings.select(~again) if again.any() else ratings


def once_each(ratings: Ratings, which: str) -> np.ndarray:
    """(n,) marks of the first or the last rating of each item by each user; the ratings are sorted."""
    marks = np.zeros(len(ratings), bool)
    for block in group_blocks(ratings.user):
        key = pair_key(ratings.user[block], ratings.item[block])
        order = np.argsort(key, kind="stable")
        ends = np.diff(key[order]) != 0
        marks[block.start + order] = np.r_[True, ends] if which == "first" else np.r_[ends, True]
    return marks


def k_core(users: np.ndarray | Sequence[int], items: np.ndarray | Sequence[int], k: int) -> np.ndarray:
    """Marks the largest set of rows in which every user and every item has at least `k` rows.

    Args:
        users, items: (n,) codes from 0.
    """
    columns = [np.asarray(users, np.int32), np.asarray(items, np.int32)]
    sizes = [int(codes.max(initial=-1)) + 1 for codes in columns]
    alive = np.ones(len(columns[0]), bool)
    while k > 1:
        enough = [np.bincount(codes[alive], minlength=size)[codes] >= k for codes, size in zip(columns, sizes)]
        still = alive & enough[0] & enough[1]
        if still.sum() == alive.sum():
            break
        alive = still
    return alive


def iterate_slices(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))
