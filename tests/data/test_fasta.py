"""The reader gives back what was written, wherever blocks and lines end, and names what is malformed."""

import bz2
import gzip
import lzma
import random
import re

import pyarrow
import pytest
from archives import zipped
from hypothesis import given, settings
from hypothesis import strategies as st

from loratory.data import fasta, files
from loratory.data.fasta import read_fasta
from loratory.data.ledger import Ledger
from loratory.errors import InputError

SOUND = b">a first\nMKV\nLLA\n>b\nGGG\n"
SOUND_RECORDS = [("a", "a first", b"MKVLLA"), ("b", "b", b"GGG")]


def records(path, on_error="fail", encoding="utf-8"):
    return [found[1:] for found in read_fasta(path, Ledger(on_error), encoding)]


COMPRESSORS = {
    "gzip": lambda content: gzip.compress(content, mtime=0),
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zstd": lambda content: pyarrow.Codec("zstd").compress(content, asbytes=True),
    "zip": lambda content: zipped({"x.fasta": content}),
}


@pytest.mark.parametrize("name", COMPRESSORS)
def test_a_damaged_file_is_read_whole_or_refused_in_one_line(tmp_path, name):
    content = COMPRESSORS[name](
        b"".join(b">r%d\n%s\n" % (i, bytes(random.Random(i).choices(b"ACDEFG", k=60))) for i in range(40))
    )
    draw = random.Random(name)
    damaged = [content[: draw.randrange(1, len(content))] for _ in range(10)]
    for _ in range(40):
        place = draw.randrange(len(content))
        damaged.append(content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :])
    for each in damaged:
        try:
            records(written(tmp_path, each), "skip", "latin-1")
        except InputError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("content", [b">a\n" + b"M" * 9_000_000, b"M" * 9_000_000], ids=["record", "line"])
def test_a_line_or_record_without_an_end_is_refused_before_memory_ends(tmp_path, monkeypatch, content):
    monkeypatch.setattr(files, "LONGEST", 1 << 20)
    path = written(tmp_path, gzip.compress(content, mtime=0))
    reader = records if content.startswith(b">") else lambda path: list(files.read_lines(path))
    with pytest.raises(InputError, match=r"x.fasta:1: more than 1 MB without an end"):
        reader(path)


def written(folder, content: bytes):
    path = folder / "x.fasta"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "content",
    [
        SOUND,
        SOUND.rstrip(),
        SOUND.replace(b"\n", b"\r\n"),
        b"\n \r\n" + SOUND,
        SOUND.replace(b"\n", b"\n\n"),
        b"\xef\xbb\xbf" + SOUND,
        SOUND.replace(b"\n", b"\r"),
        SOUND.replace(b"MKV", b"M KV \t"),
        bz2.compress(SOUND),
        lzma.compress(SOUND),
        pyarrow.Codec("zstd").compress(SOUND, asbytes=True),
        zipped({"x.fasta": SOUND}),
        gzip.compress(SOUND, mtime=0),
        gzip.compress(SOUND[:10], mtime=0) + gzip.compress(SOUND[10:], mtime=0),
    ],
    ids=[
        "plain",
        "no last line end",
        "CRLF",
        "blank first lines",
        "blank lines",
        "mark",
        "CR",
        "blanks",
        "bz2",
        "xz",
        "zstd",
        "zip",
        "gzip",
        "gzip of two members",
    ],
)
def test_dialects_of_fasta_are_read_alike(tmp_path, content):
    assert records(written(tmp_path, content)) == SOUND_RECORDS


@pytest.mark.parametrize(
    "content, where, message",
    [
        (b"", "", "the file is empty"),
        (b"\n \n\n", "", "the file holds no records"),
        (gzip.compress(b"", mtime=0), "", "the file holds no records"),
        (b"# a comment\n" + SOUND, ":1", "not FASTA (# a comment"),
        (b"<html><body>404", ":1", "not FASTA (<html><body>404)"),
        (SOUND + b">\nMKV\n", ":3", "header without an id"),
        (SOUND + b"> \t\nMKV\n", ":3", "header without an id"),
        (SOUND + b">c\n>d\nMKV\n", ":3", "record without a sequence (c)"),
        (SOUND + b">c", ":3", "record without a sequence (c)"),
        (SOUND + b">a again\nMKV\n", ":3", "duplicate id, first seen at record 1 (a)"),
        (SOUND.decode().encode("utf-16"), "", "wrong text encoding (UTF-16)"),
        (zipped({"a.fasta": SOUND, "b.fasta": SOUND}), "", "a zip archive of several files (2)"),
        (zipped({}), "", "a zip archive of several files (0)"),
        (SOUND + ">c Müller\nMKV\n".encode("latin-1"), ":3", "not utf-8 at byte 3 of the line"),
        (gzip.compress(SOUND * 50, mtime=0)[:-12], "", "the compressed file ends early or is damaged"),
        (gzip.compress(SOUND, mtime=0)[:12] + b"\xff" * 40, "", "the compressed file ends early or is damaged"),
    ],
)
def test_bad_input_is_named_with_file_and_record(tmp_path, content, where, message):
    path = written(tmp_path, content)
    with pytest.raises(InputError, match="^" + re.escape(f"{path}{where}: {message}")) as caught:
        records(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        records(tmp_path / "none.fasta")


def test_malformed_records_can_be_skipped_and_are_accounted_for(tmp_path):
    path = written(tmp_path, b">\nMK\n" + SOUND + b">c\n>a\nMKV\n>d\nWW\n")
    ledger = Ledger("skip")
    assert [found[1] for found in read_fasta(path, ledger)] == ["a", "b", "d"]
    assert (ledger.n_in, ledger.n_malformed) == (6, 3)
    assert ledger.reason_counts() == {"duplicate_id": 1, "no_id": 1, "no_sequence": 1}
    assert [row[:3] for row in ledger.rows] == [(str(path), "1", ""), (str(path), "4", "c"), (str(path), "5", "a")]


def test_another_encoding_can_be_asked_for(tmp_path):
    path = written(tmp_path, ">c Müller\nMKV\n".encode("latin-1"))
    assert records(path, encoding="latin-1") == [("c", "c Müller", b"MKV")]


words = st.text(st.characters(codec="utf-8", exclude_categories=("Z", "C")), min_size=1, max_size=8)
entries = st.lists(
    st.tuples(
        words, st.lists(words, max_size=3), st.lists(st.text("ACDEFGHIKLMNPQRSTVWYX*-", min_size=1), min_size=1)
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda entry: entry[0],
)


@settings(max_examples=150, deadline=None)
@given(entries, st.sampled_from(["\n", "\r\n", "\n\n"]), st.integers(1, 40), st.booleans())
def test_round_trip_whatever_the_lines_and_blocks(tmp_path_factory, entries, end, size, zipped):
    text = "".join(
        ">" + " ".join([id, *rest]) + end + "".join(line + end for line in lines) for id, rest, lines in entries
    )
    content = gzip.compress(text.encode()) if zipped else text.encode()
    path = written(tmp_path_factory.getbasetemp(), content)
    expected = [(id, " ".join([id, *rest]), "".join(lines).encode()) for id, rest, lines in entries]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fasta, "read_blocks", lambda path: files.read_blocks(path, size))
        assert records(path) == expected
