"""The long table of predictions: one row for each (split, system, record)."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from loratory.data.files import atomic_write

SCHEMA = pa.schema(
    [
        *[(name, pa.string()) for name in ("split", "system", "kind", "id", "group", "reference")],
        ("nll", pa.float64()),
        ("tokens", pa.int64()),
        ("p", pa.float64()),
        ("text", pa.string()),
        ("above", pa.int64()),
        ("tied", pa.int64()),
        ("no_speech", pa.bool_()),
        ("too_long", pa.bool_()),
    ]
)


def write_rows(path: Path | str, rows: list[dict]) -> None:
    """Writes rows as parquet; a column that a row lacks is null."""
    with atomic_write(path) as aside:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), aside, compression="zstd")
