"""Which of many records are kept: in one pass, and in memory little more than the ids of those."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loratory.data.ledger import Ledger
from loratory.data.splits import hash_position
from loratory.data.store import RecordStore, StoredRecord, text_digest
from loratory.errors import InputError

Rank = tuple[float, str]


class HashSample:
    """The `limit` records with the smallest hashes of their ids, each value of a column once.

    Whatever order records come in, the same are kept. Of records that are equal in the column the one with the
    smallest id stays or, where there is a limit, the one with the smallest hash: that a copy with a smaller id was
    left out long before could be known only by remembering every record. For the same reason it is only without a
    limit that a record has the labels of its copies too: whatever it holds as a list is joined with theirs.

    No more than twice the limit is held: a record whose hash is above `limit` others' is counted and forgotten. Its
    copies and namesakes are noted as long as one of them is held, and counted as `not_sampled` else. What is held lies
    on disk; in memory are its id and, without a limit, a digest of what is distinct, about 0.4 kB for each record.

    Args:
        limit: None keeps all.
        distinct: a column; "" where equal values are no copies.
        ledger: what is left out is noted there; a record's key `where` (`file:record`) says where it stood.
    """

    def __init__(self, limit: int | None, seed: int, distinct: str, ledger: Ledger) -> None:
        self.limit, self.seed, self.distinct, self.ledger = limit, seed, distinct or "id", ledger
        self.digests = limit is None and distinct != ""  # all texts would fill memory
        self.store = RecordStore()
        self.held: dict[Any, StoredRecord] = {}  # by the value that is distinct
        self.values: dict[str, Any] = {}  # that value by id
        self.bound: Rank | None = None  # of the last record that can still be kept

    def add_record(self, record: Mapping) -> None:
        """Raises:
        InputError: with `on_error: fail`, an id that a record of another content or of the same file has already.
        """
        id = record["id"]
        value = text_digest(record[self.distinct]) if self.digests else record[self.distinct]
        if id in self.values and not self.is_copy(record, value):
            return self.note_namesake(record)
        known = self.held.get(value)
        if known is not None:
            self.replace_copy(value, known, record)
        elif self.bound is not None and self.rank_record(id) > self.bound:
            self.ledger.count_dropped("not_sampled")
        else:
            self.hold_record(value, record)
            if self.limit is not None and len(self.held) > 2 * self.limit:
                self.drop_last()
        return None

    def hold_record(self, value: Any, record: Mapping) -> None:
        stored = record if isinstance(record, StoredRecord) else self.store.keep_record(record)
        self.held[value], self.values[stored.id] = stored, value

    def rank_record(self, id: str) -> Rank:
        return (0.0 if self.limit is None else hash_position(id, self.seed)), id

    def is_copy(self, record: Mapping, value: Any) -> bool:
        """Whether a record with a known id repeats, in another file, what is known of it."""
        known = self.values[record["id"]]
        files = {file_and_record(each.get("where", ""))[0] for each in (record, self.held[known])}
        return self.distinct != "id" and value == known and len(files) > 1

    def note_namesake(self, record: Mapping) -> None:
        id = record["id"]
        what = f"duplicate id, first seen at {self.held[self.values[id]].get('where', 'another record')}"
        where = record.get("where", id)
        self.ledger.note_error(InputError(where, what, id, "unique ids", "rename or remove one", "duplicate_id"), id)

    def replace_copy(self, value: Any, known: StoredRecord, new: Mapping) -> None:
        """Keeps the first of two records by rank, else by where they stand, and notes the other."""
        kept, copy = sorted((known, new), key=lambda each: (self.rank_record(each["id"]), each.get("where", "")))
        if kept is new:
            del self.values[known.id]
            self.hold_record(value, new)
        if self.limit is None:
            join_lists(self.held[value], copy)
        place = file_and_record(copy.get("where", ""))
        self.ledger.drop_record(*place, copy["id"], f"duplicate_{self.distinct}", f"same as {kept['id']}")

    def drop_last(self) -> None:
        """Forgets what cannot be kept any more."""
        assert self.limit is not None
        order = sorted((self.rank_record(record.id), value) for value, record in self.held.items())
        for (_, id), value in order[self.limit :]:
            del self.held[value], self.values[id]
            self.ledger.count_dropped("not_sampled")
        if len(order) >= self.limit:
            self.bound = order[self.limit - 1][0]

    def kept_records(self) -> list[Any]:
        """What was kept, in id order: a StoredRecord each, which is read as a dict is."""
        if self.limit is not None:
            self.drop_last()
        return sorted(self.held.values(), key=lambda record: record.id)


def join_lists(kept: StoredRecord, copy: Mapping) -> None:
    for column, values in copy.items():
        if isinstance(values, list) and not {*values} <= {*kept[column]}:
            kept[column] = sorted({*kept[column], *values})


def file_and_record(where: str | Path) -> tuple[str, str]:
    """`file:record` in two; the record is "-" where there is none."""
    file, _, record = str(where).rpartition(":")
    return (file, record) if file else (record, "-")
