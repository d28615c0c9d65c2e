"""Full ranking: the item that a user liked next, among all items that are new to this user."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from loratory.data.records import Records
from loratory.data.splits import sample_by_hash

PAST = ["user", "item", "timestamp", "history_items"]
OF_ITEM = ["item", "title", "timestamp", "rating", "item_ratings", "item_mean"]


def ranking_lists(parts: Mapping[str, Records], users: int) -> Iterator[list[dict]]:
    """One list of records for each of some test users: the first one of test that the user liked, then the same user
    at the same second with every other item of any split, but those that the user is known to have rated by then.

    How often and how well an item was rated is what its latest record of an earlier second tells; of the same second,
    the one that stands in the last split, there with the greatest id.
    """
    targets = sample_by_hash(first_liked(parts["test"]), users, 0)
    own = [record for part in parts.values() for record in records_with(part, "user", targets, PAST)]
    asked = sorted(records_with(parts["test"], "id", targets), key=time_key)
    items = ItemRatings(parts)
    for target in asked:
        rated = rated_items([r for r in own if r["user"] == target["user"]], target["timestamp"])
        others = (item for item in items.known_before(target["timestamp"]) if item["item"] not in rated)
        yield [target, *(target | other | {"id": f"{target['id']}|{other['item']}"} for other in others)]


def time_key(record: dict) -> tuple[int, str]:
    return record["timestamp"], record["id"]


def first_liked(test: Records) -> list[dict]:
    """The first record of each user that is a like: its id, user and time."""
    found: dict[str, dict] = {}
    for record in test.narrow("id", "user", "timestamp", "label"):
        if record["label"]:
            known = found.setdefault(record["user"], record)
            found[record["user"]] = min(known, record, key=time_key)
    return list(found.values())


def records_with(part: Records, column: str, wanted: Sequence[dict], names: Sequence[str] | None = None) -> list[dict]:
    """The records with the same value of a column as one of those wanted."""
    values = pa.array([record[column] for record in wanted], pa.string())
    rows = [pc.is_in(table.column(column).cast(pa.string()), values) for table in part.batches([column])]
    return [record for table, marks in zip(part.batches(names), rows) for record in table.filter(marks).to_pylist()]


class ItemRatings:
    """Who rated which item when, and what is known of each item before some second; seconds are asked in order."""

    def __init__(self, parts: Mapping[str, Records]) -> None:
        codes: dict[str, int] = {}
        self.titles: list[str] = []
        n, end = sum(map(len, parts.values())), 0
        time, self.item = np.empty(n, np.int64), np.empty(n, np.int32)
        self.n, self.mean = np.empty(n, np.int32), np.empty(n)  # with the record itself
        for part in parts.values():
            for table in part.batches(OF_ITEM):
                rows = slice(end, end := end + len(table))
                time[rows], self.item[rows] = table.column("timestamp").to_numpy(), self.item_codes(table, codes)
                before, mean = (table.column(name).to_numpy() for name in ("item_ratings", "item_mean"))
                self.n[rows] = before + 1
                self.mean[rows] = (before * mean + table.column("rating").to_numpy()) / self.n[rows]
        self.names = list(codes)
        self.by_name = sorted(range(len(self.names)), key=self.names.__getitem__)
        self.order = np.argsort(time, kind="stable").astype(np.int32)
        self.time = time[self.order]
        self.told = 0
        self.known_n, self.known_mean = np.zeros(len(codes), np.int64), np.zeros(len(codes))

    def item_codes(self, table: pa.Table, codes: dict[str, int]) -> np.ndarray:
        """(n,) the number of each record's item; notes the titles of new ones."""
        items = table.column("item").unify_dictionaries().combine_chunks().dictionary_encode()
        names, places = items.dictionary.to_pylist(), items.indices.to_numpy()
        first = np.zeros(len(names), np.int64)
        first[places[::-1]] = np.arange(len(places))[::-1]
        titles = table.column("title").take(first).cast(pa.string()).to_pylist()
        for name, title in zip(names, titles):
            if name not in codes:
                codes[name] = len(codes)
                self.titles.append(title)
        return np.array([codes[name] for name in names], np.int32)[places]

    def known_before(self, second: int) -> Iterator[dict[str, Any]]:
        """Each item in order of names; nothing is known of those that nobody rated yet."""
        end = int(np.searchsorted(self.time, second))
        rows = self.order[self.told : end]
        self.known_n[self.item[rows]] = self.n[rows]  # of several records of an item the last one counts
        self.known_mean[self.item[rows]] = self.mean[rows]
        self.told = end
        n, mean = self.known_n.tolist(), self.known_mean.tolist()
        for code in self.by_name:
            yield {
                "item": self.names[code],
                "title": self.titles[code],
                "item_ratings": n[code],
                "item_mean": mean[code],
            }


def rated_items(records: Sequence[dict], second: int) -> set[str]:
    """What a user rated up to a second, as far as his records and their histories tell."""
    past = [record for record in records if record["timestamp"] <= second]
    return {item for record in past for item in (record["item"], *record["history_items"])}
