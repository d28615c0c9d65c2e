"""Ratings → one record for each rating that has a past, in columns; splits by time, each user's last, or user."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from loratory.data.ledger import Ledger
from loratory.data.records import REBUILD, Names, Records, some_columns
from loratory.data.splits import SPLITS, assign_splits
from loratory.domains.recsys.ratings import (
    RatingReader,
    Ratings,
    drop_duplicates,
    drop_unlisted,
    group_blocks,
    iterate_slices,
    k_core,
    once_each,
    pair_key,
    read_profiles,
    read_titles,
    sort_ratings,
)
from loratory.domains.recsys.sources import Dataset, Files, layout_conflict
from loratory.domains.recsys.tables import open_layout
from loratory.errors import InputError

DISTINCT = ""
WORDS = pa.dictionary(pa.int32(), pa.string())  # text that many records share
COLUMNS = {
    "user": WORDS,
    "item": WORDS,
    "title": WORDS,
    "profile": WORDS,  # a sentence about the user, or ""
    "timestamp": "int64",  # seconds since 1970; the number of the row where there are no times
    "rating": "double",  # stars, a count, or what an event counts as; 0 of an item that was drawn as not chosen
    "label": "int8",  # 1 if the user liked the item
    "user_ratings": "int32",  # how many strictly earlier ratings the user gave, all of them
    "user_mean": "double",  # their mean in stars; 0 if there is none
    "item_ratings": "int32",  # how many strictly earlier ratings the item got, of train where splits share their times
    "item_mean": "double",
    "history_times": pa.list_(pa.int64()),  # of the latest earlier ratings of the user, oldest first
    "history_items": pa.list_(WORDS),
    "history_titles": pa.list_(WORDS),
    "history_stars": pa.list_(pa.float64()),
}
group = None  # the user, the unit that is resampled
find_leaks = None  # the protocol keeps the splits apart, see `split` and `proof`
CLASSES = ("not liked", "liked")
BATCH = 1 << 18  # records that are written at once
ROUNDS = 20  # of drawing items that a user never chose; one who chose nearly all gets fewer
NEVER = np.iinfo(np.int64).max
NOWHERE = np.empty(0, np.int32)


def read(files: Files, dataset: Dataset, ledger: Ledger) -> "RatingTable":
    """The records, in columns.

    Policy, in this order: one rating of an item by a user counts (`repeat`), then the k-core to its fix point
    (`k_core`), then the least history (`short_history`).

    Raises:
        InputError: malformed tables; nothing left by the k-core; all records of one class. Of malformed ratings
            only with `on_error: fail`; titles and users must be sound always.
    """
    location, layout = open_layout(files)
    if conflict := layout_conflict(dataset, layout):
        raise InputError(location, conflict, reason="options")
    titles, profiles = read_titles(files, layout, ledger), read_profiles(files, layout)
    reader = RatingReader(location, layout, ledger)
    ratings = reader.read()
    titles = reader.titles if titles is None and "title" in layout.ratings.column_names() else titles
    if titles is not None and not layout.untitled:
        ratings = drop_unlisted(ratings, "item", titles, ledger)
    if profiles is not None:
        ratings = drop_unlisted(ratings, "user", profiles, ledger)
    sort_ratings(ratings)
    if layout.has_ratings and not layout.events:  # of events and choices, some come twice in a second
        ratings = drop_duplicates(ratings, ledger)
    ratings = ratings.keep(once_each(ratings, dataset.repeats), "repeat", ledger)
    if dataset.k_core_of == "all":
        ratings = core_ratings(ratings, np.ones(len(ratings), bool), dataset.k_core, ledger)
    names = titles or {}
    table = RatingTable(
        ratings=ratings,
        dataset=dataset,
        least=dataset.least_liked(layout),
        titles=[names.get(item, item) for item in ratings.items],
        profiles=[(profiles or {}).get(user, "") for user in ratings.users],
        rows=np.arange(len(ratings), dtype=np.int32),
        items=ratings.item,
        homes=np.zeros(len(ratings), np.int8),
        past=UserPast.of(ratings),
    ).with_enough_past(ledger)
    if dataset.negatives:
        table = table.with_negatives(ledger)
    check_classes(table)
    return table.in_id_order()


def core_ratings(ratings: Ratings, counted: np.ndarray, k: int, ledger: Ledger) -> Ratings:
    """The k-core of the marked ratings, and all the others.

    Raises:
        InputError: nothing is left of them.
    """
    keep = ~counted
    keep[counted] = core = k_core(ratings.user[counted], ratings.item[counted], k)
    if not core.any():
        what = f"k-core {k} leaves 0 of {len(core)} ratings"
        raise InputError(
            ratings.location, what, expected="a denser table", fix="lower `k_core`", reason="k_core_empty"
        )
    return ratings.keep(keep, "k_core", ledger)


def check_classes(table: "RatingTable") -> None:
    """Raises:
    InputError: all records are of one class, and a model would have nothing to tell apart.
    """
    labels = table.numbers("label")
    if not len(labels) or labels.min() != labels.max():
        return
    what, location = f"all {len(table)} records have one label", table.ratings.location
    values = np.unique(table.ratings.stars())
    fix = f"change `positive` (now {table.least:g}; ratings are {values[0]:g} to {values[-1]:g})"
    if len(values) == 1:
        what += f", and all ratings are {values[0]:g}: they tell what was chosen, and not how it was liked"
        fix = f"set `dataset.negatives`, such as 1, with `positive: {values[0]:g}`"
    if table.dataset.negatives:
        fix = "give more items: none is left that a user never chose"
    raise InputError(location, what, CLASSES[labels[0]], "both classes", fix, "one_class")


@dataclass(frozen=True)
class UserPast:
    """Where the earlier ratings of a user are, of ratings that are sorted by user and time.

    Attributes:
        starts: (users + 1,) where each user's ratings begin. before: (n,) where those of the same second begin.
    """

    starts: np.ndarray
    before: np.ndarray

    @classmethod
    def of(cls, ratings: Ratings) -> Self:
        starts = np.searchsorted(ratings.user, np.arange(len(ratings.users) + 1, dtype=np.int32)).astype(np.int32)
        new = np.r_[True, (np.diff(ratings.user) != 0) | (np.diff(ratings.time) != 0)][: len(ratings)]
        before = np.where(new, np.arange(len(ratings), dtype=np.int32), 0)
        return cls(starts, np.maximum.accumulate(before, out=before))

    def ends(self, ratings: Ratings, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of ratings at `rows`: the first of their user, and the end of those in earlier seconds."""
        return self.starts[ratings.user[rows]], self.before[rows]


@dataclass(frozen=True)
class Averages:
    """Numbers of earlier ratings and their mean stars.

    Attributes:
        user_sums: (n + 1,) of the stars of all ratings. item_sums: (m + 1,) of those that items are known by, in order
            of item and time. item_starts: (items + 1,) where each item's ratings begin. item_times: (m,) theirs.
    """

    user_sums: np.ndarray
    item_sums: np.ndarray
    item_starts: np.ndarray
    item_times: np.ndarray

    @classmethod
    def of(cls, ratings: Ratings, known: np.ndarray | None = None) -> Self:
        """Args:
        known: (n,) marks of the ratings that items are known by; None: all.
        """
        rows = rows_by_item(ratings, known)
        item_sums, item_times = running_sums(ratings, rows), ratings.time[rows]
        counts = np.bincount(ratings.item if known is None else ratings.item[known], minlength=len(ratings.items))
        return cls(running_sums(ratings), item_sums, np.append(0, np.cumsum(counts)), item_times)

    def of_users(self, first: np.ndarray, end: np.ndarray) -> np.ndarray:
        """Mean stars of the ratings from `first` to `end`, 0 if there are none."""
        return mean_between(self.user_sums, first, end)

    def of_items(self, items: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How many earlier ratings items got, and their mean stars, 0 if there are none."""
        first = self.item_starts[items]
        end = search_parts(self.item_times, first, self.item_starts[items + 1], times)
        return end - first, mean_between(self.item_sums, first, end)


def rows_by_item(ratings: Ratings, known: np.ndarray | None) -> np.ndarray:
    """(m,) the rows of marked ratings, or of all, in order of item and time."""
    marked = np.arange(len(ratings), dtype=np.int32)[slice(None) if known is None else known]
    items = ratings.item[marked]
    rows = marked[np.argsort(items, kind="stable")]
    for block in group_blocks(items):
        rows[block] = rows[block][np.lexsort((ratings.time[rows[block]], ratings.item[rows[block]]))]
    return rows


def running_sums(ratings: Ratings, rows: np.ndarray | None = None) -> np.ndarray:
    """(n + 1,) sums of the stars at the first 0, 1, …, n of some rows, or of all."""
    n = len(ratings if rows is None else rows)
    sums = np.zeros(n + 1)
    for part in iterate_slices(n, BATCH):
        sums[1:][part] = ratings.stars(part if rows is None else rows[part])
    return np.cumsum(sums, out=sums)


def search_parts(values: np.ndarray, first: np.ndarray, end: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """(n,) where each wanted value belongs in its part of `values`, which is in order from `first` to `end`.

    A search of all `values` would need keys of part and value, which take twice their memory.
    """
    while np.any(left := first < end):
        middle = (first + end) // 2
        below = np.zeros_like(left)
        below[left] = values[middle[left]] < wanted[left]
        first, end = np.where(below, middle + 1, first), np.where(left & ~below, middle, end)
    return first


def mean_between(sums: np.ndarray, first: np.ndarray, end: np.ndarray) -> np.ndarray:
    return (sums[end] - sums[first]) / np.maximum(end - first, 1)


@dataclass(frozen=True)
class RatingTable(Records):
    """Records that are made of ratings when they are written.

    Attributes:
        ratings: all that may be a record or stand in a history, sorted by user, time and item.
        rows: (records,) the rating that each record asks about, or beside which its item was drawn as not chosen.
        items: (records,) the item that it asks about. homes: (records,) place of its split in SPLITS.
        titles: of each item. profiles: of each user. averages: known once the splits are.
    """

    ratings: Ratings
    dataset: Dataset
    least: float
    titles: list[str]
    profiles: list[str]
    rows: np.ndarray
    items: np.ndarray
    homes: np.ndarray
    past: UserPast
    averages: Averages | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, rows: np.ndarray | slice) -> Self:
        return replace(self, rows=self.rows[rows], items=self.items[rows], homes=self.homes[rows])

    def join(self, others: Sequence[Self]) -> Self:
        parts = (self, *others)
        rows, items, homes = (np.concatenate([getattr(p, name) for p in parts]) for name in ("rows", "items", "homes"))
        return replace(self, rows=rows, items=items, homes=homes)

    def column(self, name: str) -> pa.ChunkedArray:
        if name == "split":
            return pa.chunked_array([pa.DictionaryArray.from_arrays(self.homes, list(SPLITS))])
        return super().column(name)

    def numbers(self, name: str) -> np.ndarray:
        """(records,) of one column; of text, places in the lists of what it stands for."""
        if name == "user":
            return self.ratings.user[self.rows]
        if name == "timestamp":
            return self.ratings.time[self.rows].astype(np.int64)
        if name == "rating":
            return np.where(self.is_chosen, self.ratings.stars(self.rows), 0.0)
        if name == "label":
            return (self.is_chosen & (self.ratings.stars(self.rows) >= self.least)).astype(np.int8)
        return {"item": self.items, "split": self.homes}[name]

    @property
    def is_chosen(self) -> np.ndarray:
        """(records,) whether the user chose the item; not, where it was drawn."""
        return self.ratings.item[self.rows] == self.items

    def texts(self, name: str) -> Iterator[str]:
        if name == "group":
            return (self.ratings.users[user] for user in self.numbers("user"))
        return self.ids() if name == "id" else super().texts(name)

    def ids(self) -> Iterator[str]:
        users, items = self.ratings.users, self.ratings.items
        for part in iterate_slices(len(self), BATCH):
            rows = self.rows[part]
            columns = (self.ratings.user[rows], self.items[part], self.ratings.time[rows])
            for user, item, time in zip(*(column.tolist() for column in columns)):
                yield f"{users[user]}:{items[item]}:{time}"

    def in_id_order(self) -> Self:
        """Ids end their parts in `:`, so that they are ordered as their parts with it are."""
        user, item = (rank_ids(names) for names in (self.ratings.users, self.ratings.items))
        users = user[self.numbers("user")]
        order = np.argsort(users, kind="stable").astype(np.int32)
        for block in group_blocks(users):
            order[block] = order[block][np.lexsort((item[self.items[order[block]]], users[order[block]]))]
        return self.select(order)

    def with_enough_past(self, ledger: Ledger) -> Self:
        """The records whose user gave enough ratings in earlier seconds."""
        first, end = self.past.ends(self.ratings, self.rows)
        enough = end - first >= self.dataset.min_history
        self.ratings.note_dropped(self.rows[~enough], "short_history", ledger)
        return self.select(np.flatnonzero(enough))

    def with_negatives(self, ledger: Ledger) -> Self:
        """The records and, beside each, others at the same time that ask about items that the user never chose.

        They are drawn evenly from the items that somebody had chosen by then, none twice for a user.
        """
        rng = np.random.default_rng(0)  # the splits have a seed of their own; ratings are in order
        first_time = np.full(len(self.ratings.items), NEVER)
        np.minimum.at(first_time, self.ratings.item, self.ratings.time.astype(np.int64))
        by_time = np.argsort(first_time, kind="stable")
        known = np.searchsorted(first_time[by_time], self.numbers("timestamp"), "right")
        wanted = np.repeat(np.arange(len(self)), self.dataset.negatives)
        taken = pair_key(self.ratings.user, self.ratings.item)
        found: list[tuple[np.ndarray, np.ndarray]] = []
        for _ in range(ROUNDS):
            items = by_time[(rng.random(len(wanted)) * known[wanted]).astype(int)].astype(np.int32)
            key = pair_key(self.numbers("user")[wanted], items)
            fresh = np.zeros(len(wanted), bool)
            fresh[np.unique(key, return_index=True)[1]] = True
            fresh &= ~np.isin(key, taken)
            found.append((wanted[fresh], items[fresh]))
            taken = np.append(taken, key[fresh])
            wanted = wanted[~fresh]
        places, items = (np.concatenate(parts) for parts in zip(*found))
        ledger.count_record(len(places))
        ledger.n_changed["drawn_as_not_chosen"] += len(places)
        return self.join([replace(self, rows=self.rows[places], items=items, homes=self.homes[places])])

    def with_splits(self, homes: np.ndarray, ledger: Ledger) -> Self:
        """Items are known by the ratings of train where splits share their times; the k-core may be one of train."""
        table = replace(self, homes=homes)
        learnt = self.ratings.time < table.held_out_from()[self.ratings.user]
        if self.dataset.k_core_of == "train":
            table, learnt = table.with_core_of(learnt, ledger)
        known = None if self.dataset.protocol == "time" else learnt
        ratings = replace(table.ratings, line=NOWHERE)  # nothing more is dropped
        return replace(table, ratings=ratings, averages=Averages.of(ratings, known))

    def held_out_from(self) -> np.ndarray:
        """(users,) the time from which a user's ratings are not for train."""
        times = np.full(len(self.ratings.users), NEVER)
        held_out = self.homes != SPLITS.index("train")
        users, at = self.numbers("user")[held_out], self.numbers("timestamp")[held_out]
        if self.dataset.protocol == "time":
            times[:] = at.min(initial=NEVER)
        elif self.dataset.protocol == "user_cold":
            times[users] = -1
        else:
            np.minimum.at(times, users, at)
        return times

    def with_core_of(self, learnt: np.ndarray, ledger: Ledger) -> tuple[Self, np.ndarray]:
        """Without the ratings of train outside its k-core, and the records that are so lost; marks of train."""
        uncounted = Ledger()  # ratings that are no records are in the ledger already
        ratings = core_ratings(
            replace(self.ratings, line=np.arange(len(learnt))), learnt, self.dataset.k_core, uncounted
        )
        kept, places = ratings.line, np.full(len(learnt), -1, np.int32)
        places[kept] = np.arange(len(kept))
        lost = places[self.rows] < 0
        self.ratings.note_dropped(self.rows[lost], "k_core", ledger)
        ratings = replace(ratings, line=self.ratings.line[kept])
        table = replace(self.select(np.flatnonzero(~lost)), ratings=ratings, past=UserPast.of(ratings))
        return replace(table, rows=places[table.rows]).with_enough_past(ledger), learnt[kept]

    def parts(self) -> Iterator[Self]:
        """BATCH of the records at a time."""
        return (self.select(part) for part in iterate_slices(len(self), BATCH))

    def batches(self, names: Names = None) -> Iterator[pa.Table]:
        for part in self.parts():
            table = part.as_table()
            yield table if names is None else some_columns(table, names)

    def as_table(self) -> pa.Table:
        """All columns of the records."""
        ratings, users, times = self.ratings, self.numbers("user"), self.numbers("timestamp")
        averages = self.averages or Averages.of(ratings)
        first, end = self.past.ends(ratings, self.rows)
        item_ratings, item_mean = averages.of_items(self.items, times)
        shown = np.minimum(end - first, self.dataset.max_history)
        offsets = np.r_[0, np.cumsum(shown, dtype=np.int64)]
        events = np.arange(offsets[-1]) + np.repeat(end - shown - offsets[:-1], shown)
        group = shared_words(users, ratings.users)
        history = {
            "history_times": pa.array(ratings.time[events].astype(np.int64)),
            "history_items": shared_words(ratings.item[events], ratings.items),
            "history_titles": shared_words(ratings.item[events], self.titles),
            "history_stars": pa.array(ratings.stars(events)),
        }
        columns = {
            "id": pa.array(self.ids()),
            "group": group.dictionary_decode(),
            "user": group,
            "item": shared_words(self.items, ratings.items),
            "title": shared_words(self.items, self.titles),
            "profile": shared_words(users, self.profiles),
            "timestamp": times,
            "rating": self.numbers("rating"),
            "label": self.numbers("label"),
            "user_ratings": end - first,
            "user_mean": averages.of_users(first, end),
            "item_ratings": item_ratings.astype(np.int32),
            "item_mean": item_mean,
        }
        lists = {name: pa.ListArray.from_arrays(offsets.astype(np.int32), values) for name, values in history.items()}
        return pa.table(columns | lists)


def rank_ids(names: list[str]) -> np.ndarray:
    """(n,) the place of each id among all that end in `:`."""
    ranks = np.empty(len(names), np.int32)
    ranks[sorted(range(len(names)), key=lambda at: f"{names[at]}:")] = np.arange(len(names), dtype=np.int32)
    return ranks


def shared_words(codes: np.ndarray, names: list[str]) -> pa.DictionaryArray:
    """Text of codes, each word once: of a dictionary that repeats one, pyarrow 26 writes bytes that nothing set."""
    marks = np.zeros(len(names), bool)
    marks[codes] = True
    used, places = np.flatnonzero(marks), np.cumsum(marks, dtype=np.int32) - 1
    words = pa.array([names[code] for code in used.tolist()], pa.string()).dictionary_encode()
    return pa.DictionaryArray.from_arrays(words.indices.take(pa.array(places[codes])), words.dictionary)


def split(records: RatingTable, dataset: Dataset, seed: int, ledger: Ledger) -> RatingTable:
    """By the protocol. Users may stand in several splits unless it is `user_cold`.

    `time` cuts the time line where the splits reach their share; all records at a cut's second fall behind it.
    `leave_last_out` takes each user's last second for test, the one before for valid, and another for gate; users with
    fewer than four are train's. `user_cold` goes by a hash of the user.
    """
    if dataset.protocol == "leave_last_out":
        places = last_places(records.numbers("user"), records.numbers("timestamp"))
    elif dataset.protocol == "user_cold":
        homes = assign_splits([*records.texts("group")], dataset.split.model_dump(), seed, "recsys")
        places = np.fromiter(map(SPLITS.index, homes), np.int8)
    else:
        places = time_places(records.numbers("timestamp"), [getattr(dataset.split, name) for name in SPLITS])
    return records.with_splits(places.astype(np.int8), ledger)


def time_places(times: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    """(n,) the place in SPLITS of each record: which of the cuts, by the shares of the splits, it is not before."""
    cuts = np.round(np.cumsum(shares[:-1]) * len(times)).astype(int)
    return np.searchsorted(np.sort(times)[np.minimum(cuts, len(times) - 1)], times, "right")


def last_places(users: np.ndarray, times: np.ndarray) -> np.ndarray:
    """(n,) the place in SPLITS of each record by how many later seconds of its user there are."""
    seconds, at = np.unique(pair_key(users, times), return_inverse=True)
    owner = seconds >> 32
    ends = np.searchsorted(owner, owner, "right")
    later, number = ends - 1 - np.arange(len(owner)), ends - np.searchsorted(owner, owner, "left")
    return np.where(number < len(SPLITS), 0, np.maximum(len(SPLITS) - 1 - later, 0))[at]


def count_overlaps(held_out: Records, others: Records, dataset: Dataset) -> dict[str, dict]:
    """Ratings held out whose user, or item, the others hold: those that are left are cold."""
    found = {}
    for name in ("user", "item"):
        known = others.column(name).combine_chunks().dictionary
        n = pc.sum(pc.is_in(held_out.column(name).cast(pa.string()), known)).as_py() or 0
        found[name] = {"records": n, "sensitivity": 1.0}
    return found


# The proof, from the written files.


def proof(parts: Mapping[str, Records], dataset: Dataset) -> dict[str, int]:
    """Of every protocol: no rating of a history is as late as its record, or of its item. Of `time`: each split lies
    before the next; of `leave_last_out`: so it does for each user; of `user_cold`: no user stands in two."""
    counts: dict[str, int] = {"future_in_history": 0, "history_not_in_order": 0, "item_in_own_history": 0}
    for split, part in parts.items():
        for table in part.batches(["timestamp", "item", "history_times", "history_items"]):
            check_histories(f"{split}.parquet", table)
            for name, n in history_faults(table).items():
                counts[name] += n
    columns = code_columns(parts)
    if dataset.protocol == "user_cold":
        counts["users_in_two_splits"] = shared_users(columns["user"], columns["split"])
    else:
        owner = columns["user"] if dataset.protocol == "leave_last_out" else np.zeros_like(columns["user"])
        counts["not_before_later_split"] = late_records(owner, columns["timestamp"], columns["split"])
    known = columns["rated"] if dataset.protocol == "time" else columns["rated"] & (columns["split"] == 0)
    counts["future_in_averages"] = sum(
        premature_averages(columns[of], columns["timestamp"], columns[f"{of}_ratings"], marks)
        for of, marks in (("user", columns["rated"]), ("item", known))
    )
    return counts


CODED = {"user": "i4", "item": "i4", "timestamp": "i8", "user_ratings": "i4", "item_ratings": "i4"}
CODED |= {"split": "i1", "rated": "?"}


def check_histories(where: str, table: pa.Table) -> None:
    """Raises:
    InputError: a history has other numbers of times and of items.
    """
    times, items = (pc.list_value_length(table.column(f"history_{name}")) for name in ("times", "items"))
    if not times.equals(items):
        raise InputError(where, "a history whose times and items differ in number", fix=REBUILD)


def history_faults(table: pa.Table) -> dict[str, int]:
    times, items = (table.column(f"history_{name}").combine_chunks() for name in ("times", "items"))
    owner = pc.list_parent_indices(times).to_numpy()
    flat = times.flatten().to_numpy()
    late = owner[flat >= table.column("timestamp").to_numpy()[owner]]
    falling = owner[1:][(np.diff(flat) < 0) & (np.diff(owner) == 0)]
    asked = table.column("item").combine_chunks().cast(pa.string()).take(pa.array(owner))
    own = owner[pc.equal(items.flatten().cast(pa.string()), asked).to_numpy(zero_copy_only=False).astype(bool)]
    found = {"future_in_history": late, "history_not_in_order": falling, "item_in_own_history": own}
    return {name: len(np.unique(rows)) for name, rows in found.items()}


def code_columns(parts: Mapping[str, Records]) -> dict[str, np.ndarray]:
    """(n,) of all records: user and item as codes, split, time, whether it was rated, how many earlier ratings."""
    codes: dict[str, dict[str, int]] = {"user": {}, "item": {}}
    found = {key: np.empty(sum(map(len, parts.values())), kind) for key, kind in CODED.items()}
    end = 0
    for place, name in enumerate(SPLITS):
        for table in parts[name].batches(["user", "item", "timestamp", "rating", "user_ratings", "item_ratings"]):
            rows = slice(end, end := end + len(table))
            for of, known in codes.items():
                found[of][rows] = dictionary_codes(table.column(of), known)
            for number in ("timestamp", "user_ratings", "item_ratings"):
                found[number][rows] = table.column(number).to_numpy()
            found["split"][rows], found["rated"][rows] = place, table.column("rating").to_numpy() > 0
    return found


def dictionary_codes(column: pa.ChunkedArray, known: dict[str, int]) -> np.ndarray:
    whole = column.unify_dictionaries().combine_chunks()
    codes = [known.setdefault(word, len(known)) for word in whole.dictionary.to_pylist()]
    return np.array(codes, np.int32)[whole.indices.to_numpy()]


def shared_users(users: np.ndarray, splits: np.ndarray) -> int:
    """How many users stand in more than one split."""
    owners = np.unique(pair_key(users, splits)) >> 32
    return int(np.count_nonzero(np.unique(owners, return_counts=True)[1] > 1))


def late_records(owners: np.ndarray, times: np.ndarray, splits: np.ndarray) -> int:
    """Records as late as one of the same owner in a later split."""
    earliest = np.full((int(owners.max(initial=0)) + 1, len(SPLITS) + 1), NEVER)
    np.minimum.at(earliest, (owners, splits), times)
    later = np.minimum.accumulate(earliest[:, ::-1], 1)[:, ::-1]
    return int(np.count_nonzero(times >= later[owners, splits + 1]))


def premature_averages(owners: np.ndarray, times: np.ndarray, numbers: np.ndarray, marks: np.ndarray) -> int:
    """Marked records of a user (or item) whose number of earlier ratings leaves none for themselves in the next
    second's.

    What is known of the past must grow by every record that becomes past; a total of all times would not.
    """
    rows = np.flatnonzero(marks).astype(np.int32)
    rows = rows[np.argsort(owners[rows], kind="stable")]
    blocks = (rows[block] for block in group_blocks(owners[rows]))
    return sum(count_premature(owners[block], times[block], numbers[block]) for block in blocks)


def count_premature(owners: np.ndarray, times: np.ndarray, numbers: np.ndarray) -> int:
    order = np.lexsort((times, owners))
    owners, times, numbers = owners[order], times[order], numbers[order].astype(np.int64)
    starts = np.flatnonzero(np.r_[True, (np.diff(owners) != 0) | (np.diff(times) != 0)])
    sizes = np.diff(np.r_[starts, len(owners)])
    most, least = np.maximum.reduceat(numbers, starts), np.minimum.reduceat(numbers, starts)
    early = (owners[starts][:-1] == owners[starts][1:]) & (least[1:] < most[:-1] + sizes[:-1])
    return int(sizes[:-1][early].sum())


def summary(records: RatingTable) -> dict[str, Any]:
    ratings: Counter[float] = Counter()
    for part in records.parts():
        values, counts = np.unique(part.numbers("rating"), return_counts=True)
        ratings.update(dict(zip(values.tolist(), counts.tolist())))
    users, items = split_counts(records, "user"), split_counts(records, "item")
    return {
        "users": int(users.any(1).sum()),
        "items": int(items.any(1).sum()),
        "liked": sum(int(part.numbers("label").sum()) for part in records.parts()) / len(records),
        "ratings": {f"{value:g}": n for value, n in sorted(ratings.items())},
        "first_timestamp": min(int(part.numbers("timestamp").min()) for part in records.parts()),
        "last_timestamp": max(int(part.numbers("timestamp").max()) for part in records.parts()),
        "protocol": records.dataset.protocol,
        "test": {"users": unseen_counts(users), "items": unseen_counts(items)},
    }


def split_counts(records: RatingTable, name: str) -> np.ndarray:
    """(users or items, splits) how many records each has in each split."""
    n = len(getattr(records.ratings, f"{name}s"))
    counts = np.zeros(n * len(SPLITS), int)
    for part in records.parts():
        counts += np.bincount(part.numbers(name) * len(SPLITS) + part.homes, minlength=len(counts))
    return counts.reshape(n, len(SPLITS))


def unseen_counts(counts: np.ndarray) -> dict[str, int]:
    """How many users (or items) test has, how many of them train has never seen, and in how many records of test."""
    train, test = (counts[:, SPLITS.index(name)] for name in ("train", "test"))
    unseen = (test > 0) & (train == 0)
    return {
        "all": int(np.count_nonzero(test)),
        "never_in_train": int(np.count_nonzero(unseen)),
        "their_records": int(test[unseen].sum()),
    }
