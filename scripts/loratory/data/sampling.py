"""Which of many records are kept: in one pass, and in memory little more than the ids of those."""

from array import array
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from loratory.data.ledger import Ledger
from loratory.data.records import RecordFile
from loratory.data.splits import hash_position
from loratory.errors import InputError

Rank = tuple[float, str]
BLOCK = 1 << 16


class Held(NamedTuple):
    """A record in the file that is kept so far."""

    id: str
    number: int


class HashSample:
    """The `limit` records with the smallest hashes of their ids, each value of a column once.

    Whatever order records come in, the same are kept. Of records that are equal in the column the one with the
    smallest id stays or, where there is a limit, the one with the smallest hash: that a copy with a smaller id was
    left out long before could be known only by remembering every record. For the same reason it is only without a
    limit that a record has the labels of its copies too: whatever it holds as a list of text is joined with theirs.

    No more than twice the limit is held: a record whose hash is above `limit` others' is counted and forgotten. Its
    copies and namesakes are noted as long as one of them is held, and counted as `not_sampled` else. Without a limit
    all are held, and copies and namesakes are looked for at the end, among the few that may be some. What is held
    lies on disk; in memory are its id and two numbers.

    Args:
        limit: None keeps all.
        distinct: a column; "" where equal values are no copies.
        ledger: what is left out is noted there; a record's key `where` (`file:record`) says where it stood.
    """

    def __init__(self, limit: int | None, seed: int, distinct: str, ledger: Ledger) -> None:
        self.limit, self.seed, self.distinct, self.ledger = limit, seed, distinct or "id", ledger
        self.file = RecordFile()
        self.ids: list[pa.Array | list[str]] = [[]]  # of the records in the file, without a limit
        self.hashes = array("q")  # of id and distinct value of each of them
        self.held: dict[Any, Held] = {}  # by the value that is distinct
        self.values: dict[str, Any] = {}  # that value by id
        self.n_left_out = 0  # by the sample, until the ledger is told
        self.bound: Rank | None = None  # of the last record that can still be kept

    def add_record(self, record: Mapping) -> None:
        """Raises:
        InputError: with `on_error: fail`, an id that a record of another content or of the same file has already.
        """
        if self.limit is None:
            self.file.write_record(record)
            self.hashes.extend((hash(record["id"]), hash(record[self.distinct])))
            self.note_id(record["id"])
        else:
            self.compare_record(record, record[self.distinct])

    def note_id(self, id: str) -> None:
        """As columns, ids take a quarter of the memory."""
        self.ids[-1].append(id)
        if len(self.ids[-1]) == BLOCK:
            self.ids[-1:] = [pa.array(self.ids[-1]), []]

    def compare_record(self, record: Mapping, value: Any, number: int | None = None) -> None:
        """Args:
        number: of a record that is in the file already.
        """
        id = record["id"]
        if id in self.values and not self.is_copy(record, value):
            return self.note_namesake(record)
        known = self.held.get(value)
        if known is not None:
            self.replace_copy(value, known, record, number)
        elif self.bound is not None and (hash_position(id, self.seed), id) > self.bound:
            self.n_left_out += 1
        else:
            self.hold_record(value, record, number)
            if self.limit is not None and len(self.held) > 2 * self.limit:
                self.drop_last()
        return None

    def hold_record(self, value: Any, record: Mapping, number: int | None) -> None:
        number = self.file.write_record(record) if number is None else number
        self.held[value], self.values[record["id"]] = Held(record["id"], number), value

    def rank_record(self, id: str) -> Rank:
        return (0.0 if self.limit is None else hash_position(id, self.seed)), id

    def is_copy(self, record: Mapping, value: Any) -> bool:
        """Whether a record with a known id repeats, in another file, what is known of it."""
        known = self.values[record["id"]]
        return self.distinct != "id" and value == known and source_file(record) != source_file(self.held_record(known))

    def held_record(self, value: Any) -> dict:
        return self.file.read_record(self.held[value].number)

    def note_namesake(self, record: Mapping) -> None:
        id = record["id"]
        what = f"duplicate id, first seen at {self.held_record(self.values[id]).get('where', 'another record')}"
        where = record.get("where", id)
        self.ledger.note_error(InputError(where, what, id, "unique ids", "rename or remove one", "duplicate_id"), id)

    def replace_copy(self, value: Any, known: Held, record: Mapping, number: int | None) -> None:
        """Keeps the first of two records by rank, else by where they stand, and notes the other."""
        pair = (self.file.read_record(known.number), known.number), (record, number)
        (kept, at), (copy, _) = sorted(pair, key=lambda one: (self.rank_record(one[0]["id"]), one[0].get("where", "")))
        if self.limit is None and (joined := joined_lists(kept, copy)):
            kept, at = {**kept, **joined}, None
        if at != known.number:
            del self.values[known.id]
            self.hold_record(value, kept, at)
        place = file_and_record(copy.get("where", ""))
        self.ledger.drop_record(*place, copy["id"], f"duplicate_{self.distinct}", f"same as {kept['id']}")

    def drop_last(self) -> None:
        """Forgets what cannot be kept any more."""
        assert self.limit is not None
        order = sorted((self.rank_record(record.id), value) for value, record in self.held.items())
        for (_, id), value in order[self.limit :]:
            del self.held[value], self.values[id]
            self.n_left_out += 1
        if len(order) >= self.limit:
            self.bound = order[self.limit - 1][0]

    def compare_repeated(self) -> np.ndarray:
        """Compares what has the hash of another, in the order it came in; the numbers of all the others."""
        hashes = np.frombuffer(self.hashes, np.int64).reshape(-1, 2)
        repeated = is_repeated(hashes[:, 0]) | is_repeated(hashes[:, 1])
        for number in np.flatnonzero(repeated).tolist():
            record = self.file.read_record(number)
            self.compare_record(record, text_digest(record[self.distinct]), number)
        return np.flatnonzero(~repeated)

    def kept_records(self) -> Iterator[dict]:
        """What was kept, in id order; to be called once."""
        if self.limit is not None:
            self.drop_last()
        self.ledger.count_dropped("not_sampled", self.n_left_out)
        alone = self.compare_repeated()  # none, where there is a limit
        held = [*self.held.values()]
        numbers = np.r_[alone, np.array([record.number for record in held], np.int64)]
        ids = pa.chunked_array([pa.array(part, pa.string()) for part in self.ids]).take(alone)
        order = pc.sort_indices(pa.chunked_array([*ids.chunks, pa.array([record.id for record in held], pa.string())]))
        self.ids.clear()
        return map(self.file.read_record, numbers[order])


def is_repeated(values: np.ndarray) -> np.ndarray:
    """(n,) whether a number occurs more than once."""
    order = np.argsort(values)
    same = np.diff(values[order]) == 0
    marks = np.zeros(len(values), bool)
    marks[order] = np.r_[same, False] | np.r_[False, same] if len(values) else False
    return marks


def joined_lists(kept: Mapping, copy: Mapping) -> dict[str, list]:
    """The labels of a record to which its copy adds some, with these: lists of text. Coordinates are numbers."""
    return {
        column: sorted({*kept[column], *values})
        for column, values in copy.items()
        if isinstance(values, list) and values and isinstance(values[0], str) and not {*values} <= {*kept[column]}
    }


def text_digest(text: str) -> bytes:
    """16 bytes that stand for a text where very many are compared."""
    return blake2b(text.encode(), digest_size=16).digest()


def source_file(record: Mapping) -> str:
    return file_and_record(record.get("where", ""))[0]


def file_and_record(where: str | Path) -> tuple[str, str]:
    """`file:record` in two; the record is "-" where there is none."""
    file, _, record = str(where).rpartition(":")
    return (file, record) if file else (record, "-")
