"""Records in tables that are read as they are wanted: millions of them as dicts would fill a server.

All that is built and all that was built is `Records`: rows of a Parquet file, rows that lie on disk until they are in
splits (`spill_records`), or what a domain makes of columns of its own (a subclass).
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import groupby, islice, pairwise
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import Any, Self, TypeAlias, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from loratory.data.parquet import one_parquet_error
from loratory.data.splits import hash_position
from loratory.errors import InputError

Names: TypeAlias = Sequence[str] | None
ROWS = 20_000  # of a table that is selected, and so of a row group
DICTS = 1024  # that are made at once
REBUILD = "delete the dataset's folder and run again"


class Records(Sequence[dict]):
    """Records that are read as they are wanted.

    Going through them holds few at a time; asking for one by its number holds them all, in columns.

    Args:
        load: what yields them as tables; see `batches`. n: how many they are.
    """

    def __init__(self, load: Callable[[Names], Iterator[pa.Table]], n: int) -> None:
        self.load, self.n = load, n

    def batches(self, names: Names = None) -> Iterator[pa.Table]:
        """The records, some at a time.

        Args:
            names: the columns that are read, those of them that there are; None: all.
        """
        return self.load(names)

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
            return self.table.take(np.arange(len(self))[at]).to_pylist()
        place = range(len(self))[at]
        return self.table.slice(place, 1).to_pylist()[0]

    @cached_property
    def table(self) -> pa.Table:
        return pa.concat_tables(self.batches()).unify_dictionaries()

    def column(self, name: str) -> pa.ChunkedArray:
        """One column of all records."""
        return pa.concat_tables(self.batches([name])).unify_dictionaries().column(0)

    def texts(self, name: str) -> Iterator[str]:
        """The values of one column of text; none where there is no such column."""
        for table in self.batches([name]):
            for column in table.columns:
                for start in range(0, len(column), DICTS):
                    yield from column.slice(start, DICTS).to_pylist()

    def with_column(self, name: str, values: Iterable) -> Records:
        """The records with (n,) values of one more column, or others of one that they have; these are held."""
        added = pa.array(values)

        def load(names: Names) -> Iterator[pa.Table]:
            if names == [name]:
                yield pa.table({name: added})
                return
            start, read = 0, None if names is None else [other for other in names if other != name]
            for table in self.batches(read):
                found = table.drop_columns([name]) if name in table.column_names else table
                wanted = names is None or name in names
                yield found.append_column(name, added.slice(start, len(table))) if wanted else found
                start += len(table)

        return Records(load, len(self))

    def narrow(self, *names: str) -> Records:
        """The records with some of their columns."""
        return Records(lambda some: self.batches([n for n in names if some is None or n in some]), len(self))

    def select(self, rows: np.ndarray) -> Records:
        """Those of the records, by a mask or by ascending places."""
        places = np.flatnonzero(rows) if rows.dtype == bool else rows

        def load(names: Names) -> Iterator[pa.Table]:
            start = 0
            for table in self.batches(names):
                first, end = np.searchsorted(places, [start, start + len(table)])
                yield table.take(places[first:end] - start)
                start += len(table)

        return Records(lambda names: even_tables(load(names)), len(places))

    def join(self, others: Sequence[Self]) -> Records:
        """These records and then those of others."""
        parts = (self, *others)
        return Records(lambda names: (table for part in parts for table in part.batches(names)), sum(map(len, parts)))

    def sample(self, limit: int | None, seed: int) -> Records:
        """The `limit` records with the smallest hashes of their ids, or all, in id order."""
        records = self.in_id_order()
        if limit is None or limit >= len(self):
            return records
        hashes = np.fromiter((hash_position(id, seed) for id in records.texts("id")), float)
        return records.select(np.sort(np.argsort(hashes, kind="stable")[:limit]))

    def in_id_order(self) -> Records:
        """As datasets are written; records that are not are held, in columns."""
        if all(one <= other for one, other in pairwise(self.texts("id"))):
            return self
        return table_records(self.table.take(pc.sort_indices(self.column("id"))))


def table_records(table: pa.Table) -> Records:
    """The records of a table, which is held."""
    return Records(lambda names: iter([table if names is None else some_columns(table, names)]), len(table))


def some_columns(table: pa.Table, names: Sequence[str]) -> pa.Table:
    return table.select([name for name in names if name in table.column_names])


def join_records(parts: Iterable[Records]) -> Records:
    first, *others = parts
    return first.join(others)


def even_tables(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of ROWS, the last one of what is left; none where there are no rows."""
    held: list[pa.Table] = []
    n = 0
    for table in tables:
        held, n = [*held, table], n + len(table)
        if n >= ROWS:
            whole = pa.concat_tables(held).unify_dictionaries()
            yield from (whole.slice(at, ROWS).combine_chunks() for at in range(0, n - n % ROWS, ROWS))
            held, n = [whole.slice(n - n % ROWS)], n % ROWS
    if held:
        yield pa.concat_tables(held).unify_dictionaries().combine_chunks()


class TextById(Mapping[str, str]):
    """{id of a record: its text in a column}: asked for in the order of ids, all cost one pass over the records.

    Of records with the same id the last counts.
    """

    def __init__(self, records: Records, column: str) -> None:
        self.records, self.column = records.narrow("id", column).in_id_order(), column
        self.ahead: Iterator[tuple[str, str]] = iter(())

    def __iter__(self) -> Iterator[str]:
        return (id for id, _ in groupby(self.records.texts("id")))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __getitem__(self, id: str) -> str:
        for _ in range(2):  # from where the last one was, and from the beginning
            for known, text in self.ahead:
                if known == id:
                    return text
            self.ahead = self.pairs()
        raise KeyError(id)

    def pairs(self) -> Iterator[tuple[str, str]]:
        for id, same in groupby(zip(self.records.texts("id"), self.records.texts(self.column)), itemgetter(0)):
            *_, (_, text) = same
            yield id, text


# What lies on disk while a dataset is built.


class RecordFile:
    """Single records of any keys in a nameless file in the folder for temporary files (TMPDIR), gone with this object.

    In memory is where each of them ends.
    """

    def __init__(self) -> None:
        self.file = TemporaryFile(prefix="loratory-", buffering=0)  # noqa: SIM115 open as long as it is needed
        self.ends = array("q", [0])

    def write_record(self, record: Mapping) -> int:
        """The number of the record, counted from 0.

        Raises:
            InputError: the disk is full.
        """
        written = json.dumps(record, default=np.ndarray.tolist).encode()  # float32 survives the way there and back
        with name_full_disk():
            if self.file.write(written) < len(written):
                raise OSError
        self.ends.append(self.ends[-1] + len(written))
        return len(self.ends) - 2

    def read_record(self, number: int) -> dict:
        start, end = self.ends[number : number + 2]
        return json.loads(os.pread(self.file.fileno(), end - start, start))


def spill_records(records: Iterable[dict], schema: pa.Schema) -> Records:
    """Records in a nameless file in the folder for temporary files, gone with the last of them.

    Args:
        schema: their columns. What a record lacks of them is missing, and what it has beside them is left out.

    Raises:
        InputError: the disk is full.
    """
    file, rest, n = TemporaryFile(prefix="loratory-"), iter(records), 0  # noqa: SIM115 open as long as it is needed
    with name_full_disk():
        writer = pq.ParquetWriter(pa.PythonFile(file, "w"), schema, compression="none", use_dictionary=False)
    while rows := list(islice(rest, DICTS)):
        with name_full_disk():
            writer.write_table(pa.Table.from_pylist(rows, schema))
        n += len(rows)
    with name_full_disk():
        writer.close()
        file.flush()
    pa.default_memory_pool().release_unused()

    def load(names: Names) -> Iterator[pa.Table]:
        if not n:
            return iter([schema.empty_table() if names is None else some_columns(schema.empty_table(), names)])
        # Arrow's own file: its threads, reading a Python file, can abort the interpreter at exit (apache/arrow #50482)
        reader = pq.ParquetFile(pa.OSFile(f"/dev/fd/{file.fileno()}"))
        return (reader.read_row_group(group, names) for group in range(reader.num_row_groups))

    return Records(load, n)


@contextmanager
def name_full_disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what, expected, fix = "temporary records cannot be written", "space for all records", "set TMPDIR to a folder"
        raise InputError(gettempdir(), what, str(error) or None, expected, f"{fix} on a larger disk", "disk") from None


# What was built.


def open_records(path: Path, schema: pa.Schema) -> Records:
    """The records of a Parquet file.

    Args:
        schema: columns that it must hold, without missing values. What is damaged shows when it is read.

    Raises:
        InputError: no such file, a damaged one, other columns or types; when they are read, also a missing value.
    """
    if not path.is_file():
        raise InputError(path, "no such file", fix=REBUILD)
    with one_parquet_error(path, REBUILD), pq.ParquetFile(path) as file:
        found, n = file.schema_arrow, file.metadata.num_rows
    for column in schema:
        at = found.get_field_index(column.name)
        if at < 0 or found.field(at).type != column.type:
            given = "none" if at < 0 else found.field(at).type
            raise InputError(path, f"column `{column.name}` is not as built", str(given), str(column.type), REBUILD)
    return Records(lambda names: read_groups(path, schema, names), n)


def has_missing(column: pa.ChunkedArray) -> bool:
    """Whether a value is missing, or one within a list."""
    return column.null_count > 0 or (pa.types.is_list(column.type) and has_missing(pc.list_flatten(column)))


def read_groups(path: Path, schema: pa.Schema, names: Names) -> Iterator[pa.Table]:
    with one_parquet_error(path, REBUILD), pq.ParquetFile(path, page_checksum_verification=True) as file:
        for group in range(file.metadata.num_row_groups):
            table = file.read_row_group(group, names)
            table.validate(full=True)
            for name, column in zip(table.column_names, table.columns):
                if name in schema.names and has_missing(column):
                    raise InputError(path, f"column `{name}` has records without a value", fix=REBUILD)
            yield table
