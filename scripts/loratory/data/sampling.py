"""Which of many records are kept: in one pass, and in memory for those alone."""

from pathlib import Path
from typing import Any

from loratory.data.ledger import Ledger
from loratory.data.splits import hash_position
from loratory.errors import InputError

Rank = tuple[float, str]


class HashSample:
    """The `limit` records with the smallest hashes of their ids, each value of a column once.

    Whatever order records come in, the same are kept. Of records that are equal in the column the one with the
    smallest id stays or, where there is a limit, the one with the smallest hash: that a copy with a smaller id was
    left out long before could be known only by remembering every record. For the same reason it is only without a
    limit that a record has the labels of its copies too: whatever it holds as a list is joined with theirs.

    No more than twice the limit is held: a record whose hash is above `limit` others' is counted and forgotten. Its
    copies and namesakes are noted as long as one of them is held, and counted as `not_sampled` else.

    Args:
        limit: None keeps all.
        distinct: a column; "" where equal values are no copies.
        ledger: what is left out is noted there; a record's key `where` (`file:record`) says where it stood.
    """

    def __init__(self, limit: int | None, seed: int, distinct: str, ledger: Ledger) -> None:
        self.limit, self.seed, self.distinct, self.ledger = limit, seed, distinct or "id", ledger
        self.held: dict[Any, tuple[Rank, dict]] = {}  # by the value that is distinct
        self.values: dict[str, Any] = {}  # that value by id
        self.bound: Rank | None = None  # of the last record that can still be kept

    def add_record(self, record: dict) -> None:
        """Raises:
        InputError: with `on_error: fail`, an id that a record of another content or of the same file has already.
        """
        id, value = record["id"], record[self.distinct]
        if id in self.values and not self.is_copy(record):
            return self.note_namesake(record)
        new = (self.rank_record(id), record)
        known = self.held.get(value)
        if known is not None:
            self.replace_copy(value, known, new)
        elif self.bound is not None and new[0] > self.bound:
            self.ledger.count_dropped("not_sampled")
        else:
            self.held[value], self.values[id] = new, value
            if self.limit is not None and len(self.held) > 2 * self.limit:
                self.drop_last()
        return None

    def rank_record(self, id: str) -> Rank:
        return (0.0 if self.limit is None else hash_position(id, self.seed)), id

    def is_copy(self, record: dict) -> bool:
        """Whether a record with a known id repeats, in another file, what is known of it."""
        value = self.values[record["id"]]
        known = self.held[value][1]
        files = {file_and_record(each.get("where", ""))[0] for each in (record, known)}
        return self.distinct != "id" and value == record[self.distinct] and len(files) > 1

    def note_namesake(self, record: dict) -> None:
        id = record["id"]
        what = f"duplicate id, first seen at {self.held[self.values[id]][1].get('where', 'another record')}"
        where = record.get("where", id)
        self.ledger.note_error(InputError(where, what, id, "unique ids", "rename or remove one", "duplicate_id"), id)

    def replace_copy(self, value: Any, known: tuple[Rank, dict], new: tuple[Rank, dict]) -> None:
        """Keeps the first of two records by rank, else by where they stand, and notes the other."""
        kept, copy = sorted((known, new), key=lambda item: (item[0], item[1].get("where", "")))
        del self.values[known[1]["id"]]
        self.held[value], self.values[kept[1]["id"]] = kept, value
        if self.limit is None:
            join_lists(kept[1], copy[1])
        place = file_and_record(copy[1].get("where", ""))
        self.ledger.drop_record(*place, copy[1]["id"], f"duplicate_{self.distinct}", f"same as {kept[1]['id']}")

    def drop_last(self) -> None:
        """Forgets what cannot be kept any more."""
        assert self.limit is not None
        order = sorted(self.held.items(), key=lambda item: item[1][0])
        for value, (_, record) in order[self.limit :]:
            del self.held[value], self.values[record["id"]]
            self.ledger.count_dropped("not_sampled")
        if len(order) >= self.limit:
            self.bound = order[self.limit - 1][1][0]

    def kept_records(self) -> list[dict]:
        """What was kept, in id order."""
        if self.limit is not None:
            self.drop_last()
        return sorted((record for _, record in self.held.values()), key=lambda record: record["id"])


def join_lists(kept: dict, copy: dict) -> None:
    for column, values in copy.items():
        if isinstance(values, list):
            kept[column] = sorted({*kept[column], *values})


def file_and_record(where: str | Path) -> tuple[str, str]:
    """`file:record` in two; the record is "-" where there is none."""
    file, _, record = str(where).rpartition(":")
    return (file, record) if file else (record, "-")
