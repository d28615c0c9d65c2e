"""Records that lie on disk while they are sorted into splits: in memory is what they are called and where they lie."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from tempfile import TemporaryFile, gettempdir
from typing import Any

import numpy as np

from loratory.errors import InputError

Place = tuple[int, int]  # where a record begins, and its bytes


class RecordStore:
    """A nameless file of records in the folder for temporary files (TMPDIR), gone when nobody holds one of them."""

    def __init__(self) -> None:
        self.file = TemporaryFile(prefix="loratory-", buffering=0)  # noqa: SIM115 open as long as a record is held
        self.end = 0
        self.last: tuple[int, dict] = -1, {}

    def write_record(self, record: Mapping) -> Place:
        """Raises:
        InputError: the disk is full.
        """
        written, at = json.dumps(dict(record), default=plain_numbers).encode(), self.end
        try:
            self.end += self.file.write(written)
        except OSError as error:
            raise full_disk_error(str(error)) from None
        if self.end - at < len(written):
            raise full_disk_error()
        return at, len(written)

    def read_record(self, at: int, size: int) -> dict:
        """The record that lies there: the same object as before if it is asked for twice in a row."""
        if self.last[0] != at:
            self.last = at, json.loads(os.pread(self.file.fileno(), size, at))
        return self.last[1]

    def keep_record(self, record: Mapping) -> "StoredRecord":
        return StoredRecord(self, self.write_record(record), record["id"])


def plain_numbers(array: np.ndarray) -> list:
    """Arrays as JSON has them: float32 survives the way there and back."""
    return array.tolist()


def full_disk_error(said: str | None = None) -> InputError:
    fix = "set TMPDIR to a folder on a larger disk"
    return InputError(gettempdir(), "temporary records cannot be written", said, "space for all records", fix, "disk")


class StoredRecord(Mapping):
    """A record as a dict has it, which is read anew whenever it is looked at; only `id`, `group` and `split` are held.

    What is set of it lasts; what is changed in a value that it gave does not.
    """

    __slots__ = ("at", "group", "id", "size", "split", "store")
    HELD = ("group", "split")

    def __init__(self, store: RecordStore, place: Place, id: str) -> None:
        self.store, self.id = store, id
        self.at, self.size = place

    def __getitem__(self, key: str) -> Any:
        if key == "id":
            return self.id
        if key in self.HELD and hasattr(self, key):
            return getattr(self, key)
        return self.store.read_record(self.at, self.size)[key]

    def __setitem__(self, key: str, value: Any) -> None:
        if key in self.HELD:
            setattr(self, key, value)
        else:
            self.at, self.size = self.store.write_record({**self, key: value})

    def __or__(self, other: Mapping) -> dict:
        return {**self, **other}

    def __iter__(self) -> Iterator[str]:
        own = self.store.read_record(self.at, self.size)
        yield from own
        yield from (key for key in self.HELD if key not in own and hasattr(self, key))

    def __len__(self) -> int:
        return sum(1 for _ in self)


class ColumnById(Mapping[str, Any]):
    """{id of a record: its value of a column}, which is asked of the record whenever it is looked at."""

    def __init__(self, records: Iterable[Mapping], column: str) -> None:
        self.records, self.column = {record["id"]: record for record in records}, column

    def __getitem__(self, id: str) -> Any:
        return self.records[id][self.column]

    def __iter__(self) -> Iterator[str]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)


def text_digest(text: str) -> bytes:
    """16 bytes that stand for a text where very many are compared."""
    return blake2b(text.encode(), digest_size=16).digest()
