"""Parquet files of others are read in pieces that fit into memory, whatever they unfold to."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loratory.data import parquet
from loratory.data.ledger import Ledger
from loratory.data.tables import read_table
from loratory.domains.recsys.tables import parquet_chunks
from loratory.errors import InputError

ROWS, LETTERS = 60_000, 100_000  # 6 GB of text
COLUMNS = {"id": "id", "sequence": "sequence"}


@pytest.fixture
def bomb(tmp_path):
    """All rows share one text."""
    shared = pa.DictionaryArray.from_arrays(pa.array([0] * ROWS, pa.int32()), pa.array(["A" * LETTERS]))
    ids = pa.array([str(n) for n in range(ROWS)])
    pq.write_table(pa.table({"id": ids, "sequence": shared}), tmp_path / "bomb.parquet")
    assert (tmp_path / "bomb.parquet").stat().st_size < 1_000_000
    return str(tmp_path / "bomb.parquet")


def test_a_text_that_all_rows_share_does_not_fill_memory(bomb):
    pool, n = pa.default_memory_pool(), 0
    before = pool.max_memory()
    for _, row in read_table(bomb, COLUMNS, Ledger("fail")):
        n += len(row["sequence"]) == LETTERS
    assert n == ROWS and pool.max_memory() - before < 1 << 28


def test_a_column_that_must_be_whole_is_refused_where_it_fills_memory(bomb):
    with pytest.raises(InputError, match=r"the file is damaged \(more than 256 MB of text in 60000 rows\)"):
        list(parquet_chunks(bomb, {"item": "sequence"}))


def test_a_text_without_end_is_refused(bomb, monkeypatch):
    monkeypatch.setattr("loratory.data.files.LONGEST", LETTERS - 1)
    with pytest.raises(InputError, match="without an end"):
        list(read_table(bomb, COLUMNS, Ledger("fail")))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())])
@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_every_type_of_text_is_read_as_it_is(kind, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "ROWS", rows)
    texts = ["a", None, "", "é", "a"]
    pq.write_table(pa.table({"id": pa.array(texts, pa.string()).cast(kind), "n": range(5)}), tmp_path / "t.parquet")
    batches = list(parquet.read_batches(tmp_path / "t.parquet", ["n", "id"]))
    found = [value for batch in batches for value in parquet.cell_values(batch["id"])]
    assert [each.decode() if isinstance(each, bytes) else each for each in found] == texts
    assert [value for batch in batches for value in batch["n"].to_pylist()] == [*range(5)]
    plain = [value for batch in batches for value in parquet.plain_texts(batch["id"], "t").to_pylist()]
    assert plain == ["a", "", "", "é", "a"]


def test_what_is_no_column_of_cells_is_told(tmp_path):
    pq.write_table(pa.table({"item": [[1], [2]]}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"t\.parquet: the file is damaged \(.*\); expected a whole Parquet file"):
        list(parquet_chunks(str(tmp_path / "t.parquet"), {"item": "item"}))


def test_letters_that_are_no_text_are_told(tmp_path):
    odd = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")])
    pq.write_table(pa.table({"id": odd}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"the file is damaged \(.*Invalid"):
        list(parquet.read_batches(tmp_path / "t.parquet", ["id"]))
