"""Rows come out of CSV, TSV and parquet alike, and what is malformed is named with file and row."""

import gzip
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loratory.data.ledger import Ledger
from loratory.data.tables import read_sequence_rows
from loratory.errors import InputError

COLUMNS = {"id": "entry", "sequence": "seq", "group": "family"}
TEXT = 'family,entry,other,seq\nf1,a,"x, y",MKV LLA\n,b,,"GGG"\n'


def written(folder, name: str, content: bytes):
    path = folder / name
    path.write_bytes(content)
    return path


def rows(path, columns=COLUMNS, on_error="fail"):
    return [
        (id, row["sequence"], row.get("group")) for _, id, row in read_sequence_rows(path, columns, Ledger(on_error))
    ]


@pytest.mark.parametrize(
    "content",
    [
        TEXT.encode(),
        TEXT.replace("\n", "\r\n").encode("utf-8-sig"),
        gzip.compress(TEXT.encode()),
        TEXT.replace("x, y", "x").replace(",", ";").encode(),
        TEXT.replace("x, y", "x").replace(",", "\t").encode(),
    ],
    ids=["commas", "CRLF and a mark", "gzip", "semicolons", "tabs"],
)
def test_tables_of_every_dialect_are_read_alike(tmp_path, content):
    assert rows(written(tmp_path, "x.txt", content)) == [("a", "MKVLLA", "f1"), ("b", "GGG", "")]


def test_parquet_is_told_by_its_content_and_numbers_become_text(tmp_path):
    table = pa.table({"seq": ["MKVLLA", "GGG"], "entry": [7, 8], "family": ["f1", None], "z": [0.5, None]})
    pq.write_table(table, tmp_path / "x.data")
    assert rows(tmp_path / "x.data") == [("7", "MKVLLA", "f1"), ("8", "GGG", "")]


def test_objects_on_lines_are_told_behind_a_byte_order_mark_and_in_an_archive(tmp_path):
    content = b'{"seq": "MKV", "entry": "a", "family": ["f", 1]}\n'
    found = [("a", "MKV", '["f", 1]')]
    assert rows(written(tmp_path, "x.jsonl", b"\xef\xbb\xbf" + content)) == found
    assert rows(written(tmp_path, "x.jsonl.gz", gzip.compress(content))) == found


def test_a_damaged_archive_and_parquet_are_named(tmp_path):
    with pytest.raises(InputError, match="the compressed file ends early or is damaged"):
        rows(written(tmp_path, "x.csv.gz", gzip.compress(TEXT.encode())[:-6]))
    pq.write_table(pa.table({"seq": ["MKVLLA"] * 9, "entry": [*"abcdefghi"], "family": ["f"] * 9}), tmp_path / "x")
    damaged = (tmp_path / "x").read_bytes().replace(b"MKVLLA", b"MK\xffLLA")
    with pytest.raises(InputError, match="x: the file is damaged"):
        rows(written(tmp_path, "x", damaged))


def test_rejected_rows_are_listed_without_control_characters(tmp_path):
    ledger = Ledger("skip")
    path = written(tmp_path, "x.csv", b"entry,seq,family\n\x1b[2J,,f\n")
    assert [*read_sequence_rows(path, COLUMNS, ledger)] == []
    assert ledger.rows[0][2] == "\\x1b[2J" and ledger.rows[0][4].isprintable()


def test_rows_without_ids_are_named_after_file_and_line(tmp_path):
    path = written(tmp_path, "x.csv", TEXT.encode())
    assert [row[0] for row in rows(path, {"sequence": "seq"})] == ["x.csv:2", "x.csv:3"]


def test_a_sequence_longer_than_the_standard_librarys_limit_is_read(tmp_path):
    path = written(tmp_path, "x.csv", b"seq\n" + b"M" * 200_000 + b"\n")
    assert [len(row[1]) for row in rows(path, {"sequence": "seq"})] == [200_000]


@pytest.mark.parametrize(
    "content, message",
    [
        (
            b"entry,sequence,family\n",
            ":1: no column `seq` (entry, sequence, family); expected a column of the sequence",
        ),
        (b"entry,seq,seq,family\na,b,c,d\n", ":1: more than one column `seq`"),
        (b"entry,seq,family\n", ": the table holds no rows"),
        (b"", ": the file is empty"),
        (b"entry,seq,family\na,MKV\n", ":2: 2 cells (a,MKV); expected 3: entry, seq, family"),
        (b"entry,seq,family\n,MKV,f\n", ":2: row without an id"),
        (b"entry,seq,family\na, ,f\n", ":2: row without a sequence (a)"),
        (b'entry,seq,family\na,"MKV,f\n', ":2: broken quotes"),
        (b"PAR1" * 8, ": the file is damaged"),
    ],
)
def test_a_bad_table_is_named_with_file_and_row(tmp_path, content, message):
    path = written(tmp_path, "x.csv", content)
    with pytest.raises(InputError, match="^" + re.escape(f"{path}{message}")) as caught:
        rows(path)
    assert "\n" not in str(caught.value)


def test_malformed_rows_can_be_skipped_and_are_counted(tmp_path):
    path, ledger = written(tmp_path, "x.csv", b"entry,seq,family\na,MKV\n,MKV,f\nb,MKV,f\n"), Ledger("skip")
    assert [id for _, id, _ in read_sequence_rows(path, COLUMNS, ledger)] == ["b"]
    assert (ledger.n_in, ledger.reason_counts()) == (3, {"cells": 1, "no_id": 1})
