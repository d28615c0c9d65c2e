"""Parquet files: damage is told in one line, and those of others are read in pieces that fit into memory.

A file of some kilobytes may unfold to any size, as a text that a million rows share stands in it once. So the texts of
others stay such dictionaries until a row of them is wanted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from loratory.data.files import LONGEST, check_size
from loratory.errors import one_error

ROWS = 1 << 16  # of a piece, which are asked for their dictionaries as a whole


def one_parquet_error(path: Path | str, fix: str = "write it again") -> AbstractContextManager[None]:
    """Makes one `InputError` of whatever Arrow raises for a damaged file."""
    what, expected = "the file is damaged", "a whole Parquet file"
    return one_error(path, what, expected, fix, "damaged", (pa.ArrowException, OSError, ValueError))


def column_names(path: Path | str) -> list[str]:
    """The names of a file's columns, in their order.

    Raises:
        InputError: the file is damaged.
    """
    with one_parquet_error(path):
        return pq.read_schema(path).names


def read_batches(path: Path | str, columns: Sequence[str]) -> Iterator[dict[str, pa.Array]]:
    """Yields {name: column} of some rows of a file from elsewhere at a time.

    A column is a dictionary where its texts would fill memory, all at once; `cell_values` makes them one by one.

    Raises:
        InputError: the file is damaged, holds what is no UTF-8, or a text that nobody wrote.
    """
    with one_parquet_error(path):
        schema = pq.read_schema(path)
        texts = [name for name in columns if is_text(schema.field(name).type)]
        file = pq.ParquetFile(path, page_checksum_verification=True, read_dictionary=texts)
        for batch in file.iter_batches(ROWS, columns=list(columns)):
            batch.validate(full=True)
            yield {name: unfold_texts(batch.column(name), path) for name in columns}


def is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind)


def unfold_texts(column: pa.Array, where: Path | str) -> pa.Array:
    """A dictionary of texts as these, if there is room for them."""
    if not pa.types.is_dictionary(column.type) or not is_text(column.type.value_type):
        return column
    lengths = pc.binary_length(column.dictionary)
    check_size(pc.max(lengths).as_py() or 0, where)
    fits = (pc.sum(lengths.take(column.indices)).as_py() or 0) <= LONGEST
    return column.dictionary_decode() if fits else column


def cell_values(column: pa.Array) -> Iterable[Any]:
    """The values of a column, None for none."""
    return (cell.as_py() for cell in column) if pa.types.is_dictionary(column.type) else column.to_pylist()


def plain_texts(column: pa.Array, where: Path | str) -> pa.Array:
    """A column of a batch as texts, "" for none.

    Raises:
        InputError: it is no column of cells, or there is no room for all of its texts.
    """
    with one_parquet_error(where):
        if pa.types.is_dictionary(column.type) and is_text(column.type.value_type):
            raise ValueError(f"more than {LONGEST >> 20} MB of text in {len(column)} rows")
        return column.cast(pa.string()).fill_null("")
