"""Records in columns, of which a dict is made when one is looked at: 25 million of them as dicts would fill a server.

`RecordTable` is what a domain builds in columns; `Records` is what was written, read when it is wanted.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from loratory.data.splits import hash_position
from loratory.errors import InputError

if TYPE_CHECKING:
    from loratory.data.ledger import Ledger

DICTS = 4096  # that are made at once
REBUILD = "delete the dataset's folder and run again"


class RecordTable(ABC):
    """Records of a domain that are never all dicts; `len` is their number, and their order is that of their ids."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def column(self, name: str) -> np.ndarray:
        """(n,) values of one column; of text, numbers that are equal where the text is."""

    @abstractmethod
    def ids(self) -> Iterator[str]:
        """The id of each record."""

    @abstractmethod
    def select(self, rows: np.ndarray) -> Self:
        """Those of the records, by place or by a mask."""

    @abstractmethod
    def with_splits(self, homes: np.ndarray, ledger: Ledger) -> Self:
        """The records with a column `split`, and with all that depends on which of them are held out.

        Args:
            homes: (n,) the place of each record's split in SPLITS.
            ledger: of records that are left out for it.
        """

    @abstractmethod
    def batches(self) -> Iterator[pa.Table]:
        """The records as they are written, some at a time."""

    @abstractmethod
    def join(self, others: Sequence[Self]) -> Self:
        """These records and those of other parts of the same whole."""

    def sample(self, limit: int, seed: int, ledger: Ledger) -> Self:
        """The `limit` records with the smallest hashes of their ids."""
        chosen = sample_places(self.ids(), limit, seed)
        ledger.count_dropped("not_sampled", len(self) - len(chosen))
        return self.select(chosen)


def sample_places(ids: Iterator[str], limit: int, seed: int) -> np.ndarray:
    """Where the `limit` ids with the smallest hashes stand, in their order."""
    hashes = np.fromiter((hash_position(id, seed) for id in ids), float)
    return np.sort(np.argsort(hashes, kind="stable")[:limit])


class Records(Sequence[dict]):
    """Records that are read as they are wanted.

    Going through them holds few at a time; asking for one by its number holds them all, in columns.

    Args:
        load: what yields them as tables. n: how many they are.
    """

    def __init__(self, load: Callable[[], Iterator[pa.Table]], n: int) -> None:
        self.batches, self.n = load, n

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[dict]:
        for table in self.batches():
            for batch in table.to_batches(DICTS):
                yield from batch.to_pylist()

    @overload
    def __getitem__(self, at: int) -> dict: ...

    @overload
    def __getitem__(self, at: slice) -> list[dict]: ...

    def __getitem__(self, at: int | slice) -> Any:
        if isinstance(at, slice):
            return self.table.take(np.arange(self.n)[at]).to_pylist()
        place = range(self.n)[at]
        return self.table.slice(place, 1).to_pylist()[0]

    @cached_property
    def table(self) -> pa.Table:
        return pa.concat_tables(self.batches()).unify_dictionaries()

    def column(self, name: str) -> pa.ChunkedArray:
        """One column of all records."""
        return pa.concat_tables(table.select([name]) for table in self.batches()).unify_dictionaries().column(0)

    def texts(self, name: str) -> Iterator[str]:
        """The values of one column of text."""
        for table in self.batches():
            for batch in table.select([name]).to_batches(DICTS):
                yield from batch.column(0).to_pylist()

    @staticmethod
    def join(parts: Sequence[Records]) -> Records:
        return Records(lambda: (table for part in parts for table in part.batches()), sum(map(len, parts)))

    def select(self, places: np.ndarray) -> Records:
        """Those at some places, ascending; they are held."""
        parts, start = [], 0
        for table in self.batches():
            ends = np.searchsorted(places, [start, start + len(table)])
            parts.append(table.take(places[ends[0] : ends[1]] - start))
            start += len(table)
        return Records(lambda: iter(parts), len(places))

    def sample(self, limit: int | None, seed: int) -> Records:
        """The `limit` records with the smallest hashes of their ids, or all, in id order."""
        records = self.in_id_order()
        if limit is None or limit >= self.n:
            return records
        return records.select(sample_places(records.texts("id"), limit, seed))

    def in_id_order(self) -> Records:
        """As datasets are written; records that are not are held, in columns."""
        if all(one <= other for one, other in pairwise(self.texts("id"))):
            return self
        table = self.table.take(pc.sort_indices(self.column("id")))
        return Records(lambda: iter([table]), self.n)


def open_records(path: Path, schema: pa.Schema) -> Records:
    """The records of a Parquet file.

    Args:
        schema: columns that it must hold, without missing values. What is damaged shows when it is read.

    Raises:
        InputError: no such file, a damaged one, other columns or types; when they are read, also a missing value.
    """
    if not path.is_file():
        raise InputError(path, "no such file", fix=REBUILD)
    try:
        with pq.ParquetFile(path) as file:
            found, n = file.schema_arrow, file.metadata.num_rows
    except (pa.ArrowException, OSError, ValueError) as error:
        raise damaged_file(path, error) from None
    for column in schema:
        at = found.get_field_index(column.name)
        if at < 0 or found.field(at).type != column.type:
            given = "none" if at < 0 else found.field(at).type
            raise InputError(path, f"column `{column.name}` is not as built", str(given), str(column.type), REBUILD)
    return Records(lambda: read_groups(path, schema), n)


def read_groups(path: Path, schema: pa.Schema) -> Iterator[pa.Table]:
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            for group in range(file.metadata.num_row_groups):
                table = file.read_row_group(group)
                table.validate(full=True)
                for column in schema:
                    if table.column(column.name).null_count:
                        raise InputError(path, f"column `{column.name}` has records without a value", fix=REBUILD)
                yield table
    except (pa.ArrowException, OSError, ValueError) as error:
        raise damaged_file(path, error) from None


def damaged_file(path: Path, error: Exception) -> InputError:
    return InputError(path, "the file is damaged", str(error), "a whole Parquet file", REBUILD)
