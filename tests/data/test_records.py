"""Records on disk are read as the dicts that they were; while they are sorted, memory does not hold their letters."""

import gc
import random
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from studies import as_records

from loratory.data import mmseqs, records, splits
from loratory.data.ledger import Ledger
from loratory.data.records import RecordFile, TextById, even_tables, spill_records, table_records
from loratory.data.sampling import HashSample
from loratory.domains.dataset import gather_records
from loratory.domains.lncrna import build as lncrna
from loratory.domains.lncrna.sources import Dataset as TranscriptDataset
from loratory.domains.lncrna.sources import Files as TranscriptFiles
from loratory.domains.protein import build as protein
from loratory.domains.protein.sources import Dataset, Files
from loratory.errors import InputError

N, LONG = 300, 20_000  # records, and letters of each: 6 MB
SCHEMA = pa.schema({"id": pa.string(), "length": pa.int32(), "points": pa.list_(pa.float32())})


def letters(alphabet: str, seed: int) -> str:
    return "".join(random.Random(seed).choices(alphabet, k=LONG))


def write_fasta(path, alphabet: str, first: int, n: int = N) -> str:
    path.write_text("".join(f">r{i:04d}\n{letters(alphabet, i)}\n" for i in range(first, first + n)))
    return str(path)


@pytest.fixture
def peak_of():
    """A function that runs another one, and says what it returned and how many bytes were held at most meanwhile."""

    def measure(function):
        gc.collect()
        tracemalloc.start()
        columns = pa.total_allocated_bytes()
        try:
            found = function()
            return found, tracemalloc.get_traced_memory()[1] + pa.total_allocated_bytes() - columns
        finally:
            tracemalloc.stop()

    return measure


@pytest.fixture
def alone(monkeypatch):
    """MMseqs2 that clusters nothing."""

    def write_singletons(command, fasta, out, *others):
        with open(fasta) as lines:
            numbers = [line[1:-1] for line in lines if line.startswith(">")]
        out.with_name(out.name + "_cluster.tsv").write_text("".join(f"{n}\t{n}\n" for n in numbers))

    monkeypatch.setattr(mmseqs, "run_mmseqs", write_singletons)


def some_records(n=5) -> list[dict]:
    points = np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32)
    return [{"id": f"r{i:04d}", "length": i, "points": points[i], "where": f"a.fa:{i}"} for i in range(n)]


def test_a_record_in_a_file_reads_as_the_dict_that_it_was_in_whatever_order():
    file, given = RecordFile(), some_records()
    numbers = [file.write_record(record) for record in given]
    for number, record in [*zip(numbers, given)][::-1]:
        assert file.read_record(number) == record | {"points": record["points"].tolist()}


def test_spilled_records_have_the_columns_asked_for_and_are_read_by_several_at_once(monkeypatch):
    monkeypatch.setattr(records, "DICTS", 2)
    given = some_records()
    kept = spill_records(iter(given), SCHEMA)
    columns = [{name: record[name] for name in SCHEMA.names} for record in given]
    assert len(kept) == 5 and [*kept] == [record | {"points": record["points"].tolist()} for record in columns]
    pairs = zip(kept.texts("id"), kept.texts("id"))
    assert [*pairs] == [(each["id"], each["id"]) for each in given]
    assert not len(spill_records([], SCHEMA)) and [*spill_records([], SCHEMA)] == []


def test_a_column_is_added_or_replaced_and_goes_with_its_record(monkeypatch):
    monkeypatch.setattr(records, "DICTS", 2)
    kept = spill_records(iter(some_records()), SCHEMA).with_column("group", ["a", "b", "c", "d", "e"])
    few = kept.select(np.array([True, False, False, True, True])).with_column("length", [7, 8, 9])
    assert [(r["id"], r["group"], r["length"]) for r in few] == [
        ("r0000", "a", 7),
        ("r0003", "d", 8),
        ("r0004", "e", 9),
    ]
    assert [*kept.texts("group")] == [*"abcde"] and [*kept.texts("unit")] == []


def test_tables_of_any_size_become_tables_of_one_size(monkeypatch):
    monkeypatch.setattr(records, "ROWS", 4)
    tables = [pa.table({"n": np.arange(start, end)}) for start, end in ((0, 3), (3, 3), (3, 14), (14, 15))]
    found = [*even_tables(tables)]
    assert [len(table) for table in found] == [4, 4, 4, 3]
    assert pa.concat_tables(found).column("n").to_pylist() == list(range(15))


def test_a_text_is_looked_up_by_id_and_of_one_id_the_last_counts():
    rows = [{"id": id, "text": text} for id, text in ("b1", "a2", "c3", "a4")]
    found = TextById(as_records(rows), "text")
    assert {**found} == {"a": "4", "b": "1", "c": "3"} and [*found] == ["a", "b", "c"] and len(found) == 3
    assert [found[id] for id in "cabbc"] == ["3", "4", "1", "1", "3"]
    with pytest.raises(KeyError):
        found["d"]


def write_less(data: bytes) -> int:
    return len(data) - 1


def write_nothing(data: bytes) -> int:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("write", [write_less, write_nothing])
def test_a_full_disk_is_named_with_the_way_out(write, monkeypatch):
    file = RecordFile()
    monkeypatch.setattr(file, "file", SimpleNamespace(write=write))
    with pytest.raises(InputError, match=r"temporary records cannot be written.*fix: set TMPDIR"):
        file.write_record({"id": "a"})


def test_spilling_to_a_full_disk_is_named_too(monkeypatch):
    with open("/dev/full", "w+b", buffering=0) as full:
        monkeypatch.setattr(records, "TemporaryFile", lambda **_: full)
        with pytest.raises(InputError, match=r"temporary records cannot be written.*fix: set TMPDIR"):
            spill_records(some_records(), SCHEMA)


def read_all(build, files, dataset):
    return gather_records(build, files, dataset, 0, Ledger())


@pytest.fixture
def few_at_once(monkeypatch):
    monkeypatch.setattr(records, "DICTS", 8)


def test_reading_and_grouping_all_proteins_holds_no_letters(tmp_path, peak_of, alone, few_at_once):
    files, dataset = Files(fasta=write_fasta(tmp_path / "p.fa", "ACDEFGHIKLMNPQRSTVWY", 0)), Dataset(max_length=LONG)
    kept, peak = peak_of(lambda: read_all(protein, files, dataset))
    assert len(kept) == N and peak < N * LONG
    groups, peak = peak_of(lambda: protein.group(kept, dataset))
    assert groups == [f"r{i:04d}" for i in range(N)] and peak < N * LONG / 6
    assert [*kept][7]["sequence"] == letters("ACDEFGHIKLMNPQRSTVWY", 7)


def test_reading_transcripts_of_both_classes_holds_no_letters(tmp_path, peak_of, alone, few_at_once):
    paths = [write_fasta(tmp_path / f"{first}.fa", "ACGT", first, N // 2) for first in (0, N)]
    files, dataset = TranscriptFiles(coding=paths[0], noncoding=paths[1]), TranscriptDataset(max_length=LONG)
    kept, peak = peak_of(lambda: read_all(lncrna, files, dataset))
    assert len(kept) == N and peak < N * LONG
    groups, peak = peak_of(lambda: lncrna.group(kept, dataset))
    assert len({*groups}) == N and peak < N * LONG / 6


def test_without_a_limit_a_record_takes_its_id_and_some_numbers(peak_of):
    sample, draw = HashSample(None, 0, "sequence", Ledger()), random.Random(0)

    def add_all():
        for i in range(2000):
            sample.add_record({"id": f"r{i}", "sequence": "".join(draw.choices("ACDEFGHIK", k=1000))})

    assert peak_of(add_all)[1] < 2000 * 150


def test_a_text_of_several_splits_is_counted_once_however_many_there_are(monkeypatch):
    monkeypatch.setattr(splits, "BLOCK", 2)
    texts = {"train": "abcdefgha", "gate": "xay", "valid": ["b", "", "a"], "test": ["", "z", "y"]}
    parts = {split: table_records(pa.table({"text": [*values]})) for split, values in texts.items()}
    assert len(splits.distinct_hashes(parts["train"], "text")) == 8
    assert splits.count_shared(parts, "text") == 3, "a, b, y; not the empty one"
