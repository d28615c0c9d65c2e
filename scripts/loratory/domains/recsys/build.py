"""Ratings → one record for each rating that has a past; splits cut one global time line."""

import json
import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import pairwise
from typing import NoReturn

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from loratory.data.ledger import Ledger
from loratory.data.splits import SPLITS
from loratory.domains.contract import exact_overlap
from loratory.domains.recsys.sources import Dataset, Files
from loratory.domains.recsys.tables import read_table_rows, table_location
from loratory.errors import InputError

DISTINCT = ""
COLUMNS = {
    "user": "string",
    "item": "string",
    "title": "string",
    "profile": "string",  # a sentence about the user, or ""
    "timestamp": "int64",  # seconds since 1970
    "rating": "double",  # stars
    "label": "int8",  # 1 if the user liked the item
    "user_ratings": "int32",  # how many strictly earlier ratings the user gave, all of them
    "user_mean": "double",  # their mean in stars; 0 if there is none
    "item_ratings": "int32",  # how many strictly earlier ratings the item got
    "item_mean": "double",
    "history": "string",  # JSON list of [timestamp, title, stars], oldest first
}
find_leaks = None  # time keeps the splits apart, see `split` and `proof`
LATEST = 4_102_444_800  # 2100-01-01: no wall clock, so that the same input is right or wrong for ever
MILLISECONDS = 100_000_000_000
CLASSES = ("not liked", "liked")
ID = re.compile(r"[^\s:]+")
SEXES = {"M": "male", "F": "female"}
AGES = {"1": "under 18", "18": "18-24", "25": "25-34", "35": "35-44", "45": "45-49", "50": "50-55", "56": "over 55"}
OCCUPATIONS = (  # by the codes of MovieLens-1M, as AGES
    "other", "academic or educator", "artist", "clerical worker", "college student", "customer service", "doctor",
    "executive or manager", "farmer", "homemaker", "school student", "lawyer", "programmer", "retired",
    "sales or marketing", "scientist", "self-employed", "technician or engineer", "craftsman", "unemployed", "writer",
)  # fmt: skip


def read(files: Files, dataset: Dataset, ledger: Ledger) -> Iterator[dict]:
    """Yields records in order of user and time.

    Policy, in this order: the first rating of a title by a user counts (`repeat`), then the k-core to its fix point
    (`k_core`), then the least history (`short_history`).

    Raises:
        InputError: malformed tables; nothing left by the k-core; all records of one class. Of malformed ratings
            only with `on_error: fail`; titles and users must be sound always.
    """
    location = table_location(files, "ratings")
    titles = read_titles(files)
    profiles = read_profiles(files) if files.users else None
    rows = read_ratings(location, files, ledger)
    rows = drop_unlisted(rows, "item", titles, location, ledger)
    if profiles is not None:
        rows = drop_unlisted(rows, "user", profiles, location, ledger)
    rows = rows.assign(title=rows["item"].map(titles), label=(rows["rating"] >= dataset.positive).astype(int))
    rows = rows.sort_values(["user", "timestamp", "item", "rating", "line"], ignore_index=True)
    rows = core_ratings(drop_duplicates(rows, location, ledger), dataset.k_core, location, ledger)
    events = [json.dumps(event, ensure_ascii=False) for event in zip(rows["timestamp"], rows["title"], rows["rating"])]
    rows = with_past(with_averages(rows), dataset, location, ledger)
    if rows["label"].nunique() == 1:
        what, value = f"all {len(rows)} records have one label", CLASSES[rows["label"].iloc[0]]
        raise InputError(location, what, value, "both classes", "change `positive`", "one_class")
    columns = [name for name in COLUMNS if name in rows]
    for start, end, *values in zip(*(rows[name].tolist() for name in ("start", "end", *columns))):
        record = dict(zip(columns, values))
        user = record["user"]
        yield record | {
            "id": f"{user}:{record['item']}:{record['timestamp']}",
            "profile": profiles[user] if profiles else "",
            "history": f"[{', '.join(events[start:end])}]",
        }


def read_ratings(location: str, files: Files, ledger: Ledger) -> pd.DataFrame:
    """Sound ratings: user and item (categories in text order), rating in stars, timestamp in seconds, line."""

    def reject_row(error: InputError) -> None:
        ledger.count_record()
        ledger.note_error(error)

    users: dict[str, int] = {}
    items: dict[str, int] = {}
    columns: dict[str, array] = {
        "user": array("i"),
        "item": array("i"),
        "rating": array("f"),
        "timestamp": array("q"),
        "line": array("q"),
    }
    appends = [column.append for column in columns.values()]
    for line, (user, item, rating, timestamp) in read_table_rows(location, "ratings", files, reject_row):
        try:
            values = (
                encode_id(users, user),
                encode_id(items, item),
                parse_stars(rating),
                parse_seconds(timestamp),
                line,
            )
        except ValueError as error:
            what, value, expected, reason = error.args
            reject_row(InputError(f"{location}:{line}", what, value, expected, reason=reason))
            continue
        ledger.count_record()
        for append, value in zip(appends, values):
            append(value)
    rows = pd.DataFrame({name: np.array(column) for name, column in columns.items()})
    return rows.assign(user=in_text_order(rows["user"], users), item=in_text_order(rows["item"], items))


def in_text_order(codes: pd.Series, names: dict[str, int]) -> pd.Categorical:
    """Categories that do not depend on the order of the rows."""
    return pd.Categorical.from_codes(codes, list(names)).reorder_categories(sorted(names))


def encode_id(codes: dict[str, int], id: str) -> int:
    """The number of an id, a new one if it is new; ids are joined by `:` into those of the records."""
    if id not in codes:
        if not ID.fullmatch(id):
            raise ValueError("malformed id", id, "text without blanks and `:`", "id")
        codes[id] = len(codes)
    return codes[id]


@cache
def parse_stars(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not (0.5 <= value <= 5 and (2 * value).is_integer()):
        raise ValueError("rating", text, "0.5 to 5 stars in steps of 0.5", "rating")
    return value


def parse_seconds(text: str) -> int:
    if not text.removeprefix("-").isdecimal():
        raise ValueError("timestamp", text, "whole seconds since 1970", "timestamp")
    value = int(text)
    if value > MILLISECONDS:
        raise ValueError("timestamp looks like milliseconds", text, "seconds since 1970", "timestamp")
    if not 0 <= value <= LATEST:
        raise ValueError("timestamp out of range", text, f"0 to {LATEST} (the year 2100), in seconds", "timestamp")
    return value


def read_titles(files: Files) -> dict[str, str]:
    """Title of each item, blanks and line breaks made single blanks.

    Raises:
        InputError: an item without a title, or named twice.
    """
    location = table_location(files, "items")
    titles: dict[str, str] = {}
    for line, (item, title) in read_table_rows(location, "items", files, raise_error):
        title, where = " ".join(title.split()), f"{location}:{line}"
        if not title:
            raise InputError(where, "item without a title", item, "a title", "name or remove it", "no_title")
        if titles.setdefault(item, title) is not title:
            raise InputError(where, "item named twice", item, "unique ids", "remove one", "duplicate_id")
    return titles


def read_profiles(files: Files) -> dict[str, str]:
    """A sentence about each user; codes of MovieLens-1M are spelt out, words stay as they are.

    Raises:
        InputError: a user named twice.
    """
    location = table_location(files, "users")
    profiles: dict[str, str] = {}
    for line, (user, sex, age, job) in read_table_rows(location, "users", files, raise_error):
        if user in profiles:
            raise InputError(
                f"{location}:{line}", "user named twice", user, "unique ids", "remove one", "duplicate_id"
            )
        job = OCCUPATIONS[int(job)] if job.isdecimal() and int(job) < len(OCCUPATIONS) else job
        profiles[user] = f"Sex: {SEXES.get(sex, sex)}. Age: {AGES.get(age, age)}. Occupation: {job}."
    return profiles


def raise_error(error: InputError) -> NoReturn:
    raise error


def drop_unlisted(
    rows: pd.DataFrame, column: str, names: Mapping[str, str], location: str, ledger: Ledger
) -> pd.DataFrame:
    """The rows whose user or item is in its table; the error of each other row says how many there are."""
    unlisted = ~rows[column].isin(names)
    if not unlisted.any():
        return rows
    lost = sorted(rows[column][unlisted].unique())
    what = f"{unlisted.sum()} ratings name {len(lost)} {column}s that the table of {column}s lacks"
    value = ", ".join(lost[:3])
    for line in rows["line"][unlisted]:
        error = InputError(
            f"{location}:{line}", what, value, f"every {column} of a rating", reason=f"unknown_{column}"
        )
        ledger.note_error(error)
    return rows[~unlisted].assign(**{column: rows[column][~unlisted].cat.remove_unused_categories()})


def drop_duplicates(rows: pd.DataFrame, location: str, ledger: Ledger) -> pd.DataFrame:
    """The rows without those that repeat user, item and time."""
    key = ["user", "item", "timestamp"]
    again = rows.duplicated(key)
    if again.any():
        first = rows.groupby(key, observed=True)["line"].transform("first")
        for row, line in zip(rows[again].itertuples(), first[again]):
            where, what = f"{location}:{row.line}", f"the rating of line {line} again"
            id = f"{row.user}:{row.item}:{row.timestamp}"
            ledger.note_error(InputError(where, what, id, "one rating", "remove one", "duplicate"), id)
    return rows[~again].reset_index(drop=True)


def core_ratings(rows: pd.DataFrame, k: int, location: str, ledger: Ledger) -> pd.DataFrame:
    """The k-core of the users' first ratings of each title.

    Raises:
        InputError: nothing is left.
    """
    rows = keep_rows(rows, ~rows.duplicated(["user", "title"]), "repeat", location, ledger)
    core = keep_rows(rows, k_core(rows["user"].cat.codes, rows["item"].cat.codes, k), "k_core", location, ledger)
    if core.empty:
        what = f"k-core {k} leaves 0 of {len(rows)} ratings"
        raise InputError(location, what, expected="a denser table", fix="lower `k_core`", reason="k_core_empty")
    return core


def k_core(users: ArrayLike, items: ArrayLike, k: int) -> np.ndarray:
    """Marks the largest set of rows in which every user and every item has at least `k` rows.

    Args:
        users, items: (n,) codes from 0.
    """
    columns = [np.asarray(users, np.int64), np.asarray(items, np.int64)]
    sizes = [codes.max(initial=-1) + 1 for codes in columns]
    alive = np.ones(len(columns[0]), bool)
    while True:
        enough = [np.bincount(codes[alive], minlength=size)[codes] >= k for codes, size in zip(columns, sizes)]
        still = alive & enough[0] & enough[1]
        if still.sum() == alive.sum():
            return alive
        alive = still


def with_averages(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with number and mean stars of the ratings before theirs, of the same user and of the same item."""
    found = {}
    for name in ("user", "item"):
        past = past_average(rows[name].cat.codes.to_numpy(), rows["timestamp"].to_numpy(), rows["rating"].to_numpy())
        found[f"{name}_ratings"], found[f"{name}_mean"] = past
    return rows.assign(**found)


def past_average(codes: np.ndarray, timestamps: np.ndarray, stars: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n,) how many rows of the same code lie in earlier seconds, and (n,) their mean stars, 0 if there are none."""
    order = np.lexsort((timestamps, codes))
    codes, timestamps = codes[order], timestamps[order]
    first, end = np.searchsorted(codes, codes, "left"), start_of_second(codes, timestamps)
    sums = np.r_[0.0, np.cumsum(stars[order], dtype=float)]
    number, mean = np.empty(len(codes), int), np.empty(len(codes))
    number[order] = end - first
    mean[order] = (sums[end] - sums[first]) / np.maximum(end - first, 1)
    return number, mean


def start_of_second(codes: np.ndarray, timestamps: np.ndarray) -> np.ndarray:
    """(n,) the first row with the code and the second of each row; rows are sorted by code and time."""
    new = np.r_[True, (np.diff(codes) != 0) | (np.diff(timestamps) != 0)]
    return np.maximum.accumulate(np.where(new, np.arange(len(codes)), 0))


def with_past(rows: pd.DataFrame, dataset: Dataset, location: str, ledger: Ledger) -> pd.DataFrame:
    """The rows with enough history, and where in `rows` it starts and ends; a shared second is not history.

    Args:
        rows: sorted by user and time.
    """
    users, timestamps = rows["user"].cat.codes.to_numpy(), rows["timestamp"].to_numpy()
    first = np.searchsorted(users, users, "left")
    end = start_of_second(users, timestamps)
    rows = rows.assign(start=np.maximum(first, end - dataset.max_history), end=end)
    return keep_rows(rows, end - first >= dataset.min_history, "short_history", location, ledger)


def keep_rows(rows: pd.DataFrame, keep: ArrayLike, reason: str, location: str, ledger: Ledger) -> pd.DataFrame:
    """The rows that `keep` marks; the others go to the ledger."""
    marks = np.asarray(keep)
    for row in rows[~marks].itertuples():
        ledger.drop_record(location, row.line, f"{row.user}:{row.item}:{row.timestamp}", reason)
    return rows[marks].reset_index(drop=True)


def group(records: list[dict], dataset: Dataset) -> list[str]:
    """The user: the unit that is resampled. Users may stand in several splits, times may not."""
    return [record["user"] for record in records]


def split(records: list[dict], groups: list[str], dataset: Dataset, seed: int) -> list[str]:
    """Cuts the time line where the splits reach their share; all records at a cut's second fall behind it."""
    timestamps = np.array([record["timestamp"] for record in records])
    shares = np.cumsum([getattr(dataset.split, name) for name in SPLITS[:-1]])
    cuts = np.sort(timestamps)[np.minimum(np.round(shares * len(timestamps)).astype(int), len(timestamps) - 1)]
    return [SPLITS[i] for i in np.searchsorted(cuts, timestamps, "right")]


def count_overlaps(held_out: list[dict], others: list[dict], dataset: Dataset) -> dict[str, dict]:
    """Ratings held out whose user, or item, the others hold: those that are left are cold."""
    return {
        name: exact_overlap([record[name] for record in held_out], [record[name] for record in others])
        for name in ("user", "item")
    }


def proof(parts: dict[str, list[dict]], dataset: Dataset) -> dict[str, int]:
    counts = Counter(not_before_later_split=0, future_in_history=0, history_not_in_order=0, title_in_own_history=0)
    everything = [record for name in SPLITS for record in parts[name]]
    counts["future_in_averages"] = sum(premature_averages(everything, of) for of in ("user", "item"))
    for i, name in enumerate(SPLITS):
        later = min((record["timestamp"] for other in SPLITS[i + 1 :] for record in parts[other]), default=np.inf)
        counts["not_before_later_split"] += sum(record["timestamp"] >= later for record in parts[name])
    for record in everything:
        history = json.loads(record["history"])
        counts["future_in_history"] += any(event[0] >= record["timestamp"] for event in history)
        counts["history_not_in_order"] += any(a[0] > b[0] for a, b in pairwise(history))
        counts["title_in_own_history"] += any(event[1] == record["title"] for event in history)
    return dict(counts)


def premature_averages(records: list[dict], of: str) -> int:
    """Records of a user (or item) whose number of earlier ratings leaves none for themselves in the next second's.

    What is known of the past must grow by every record that becomes past; a total of all times would not.
    """
    seconds: dict[tuple[str, int], list[int]] = defaultdict(list)
    for record in records:
        seconds[record[of], record["timestamp"]].append(record[f"{of}_ratings"])
    found = 0
    for (earlier, then), (later, now) in pairwise(sorted(seconds.items())):
        found += len(then) if earlier[0] == later[0] and min(now) < max(then) + len(then) else 0
    return found


def summary(records: list[dict]) -> dict:
    timestamps = [record["timestamp"] for record in records]
    return {
        "users": len({record["user"] for record in records}),
        "items": len({record["item"] for record in records}),
        "liked": sum(record["label"] for record in records) / len(records),
        "ratings": {f"{value:g}": n for value, n in sorted(Counter(r["rating"] for r in records).items())},
        "first_timestamp": min(timestamps),
        "last_timestamp": max(timestamps),
    }
