"""Records on disk are read as the dicts that they were; while they are sorted, memory does not hold their letters."""

import gc
import random
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest

from loratory.data import mmseqs
from loratory.data.ledger import Ledger
from loratory.data.sampling import HashSample
from loratory.data.store import ColumnById, RecordStore
from loratory.domains.dataset import sample_records
from loratory.domains.lncrna import build as lncrna
from loratory.domains.lncrna.sources import Dataset as TranscriptDataset
from loratory.domains.lncrna.sources import Files as TranscriptFiles
from loratory.domains.protein import build as protein
from loratory.domains.protein.sources import Dataset, Files
from loratory.errors import InputError

N, LONG = 300, 20_000  # records, and letters of each: 6 MB


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
        try:
            found = function()
            return found, tracemalloc.get_traced_memory()[1]
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


def test_a_record_reads_as_the_dict_that_it_was_with_what_was_set_since():
    given = [{"id": f"r{i}", "sequence": "M" * i, "length": i, "points": np.arange(i)} for i in range(5)]
    store = RecordStore()
    kept = [store.keep_record(record) for record in given]
    for record, stored in zip(given[::-1], kept[::-1]):
        assert [*stored] == [*record] and stored["length"] == record["length"]
        np.testing.assert_array_equal(stored["points"], record["points"])
        stored["group"], stored["length"] = "g", -1
        assert (stored["group"], stored["length"], stored.get("other", 7)) == ("g", -1, 7)
        assert {**stored}.keys() == {*record, "group"} == (stored | {}).keys() and len(stored) == len(record) + 1
    assert [record["length"] for record in given] == [0, 1, 2, 3, 4], "what was given is as it was"
    with pytest.raises(KeyError, match="split"):
        kept[0]["split"]


def test_a_column_is_looked_up_by_id():
    store = RecordStore()
    records = [store.keep_record({"id": id, "sequence": 2 * id}) for id in "ba"]
    column = ColumnById(records, "sequence")
    assert {**column} == {"a": "aa", "b": "bb"} and [*column] == ["b", "a"] and len(column) == 2


def write_less(data: bytes) -> int:
    return len(data) - 1


def write_nothing(data: bytes) -> int:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("write", [write_less, write_nothing])
def test_a_full_disk_is_named_with_the_way_out(write, monkeypatch):
    store = RecordStore()
    monkeypatch.setattr(store, "file", SimpleNamespace(write=write))
    with pytest.raises(InputError, match=r"temporary records cannot be written.*fix: set TMPDIR"):
        store.keep_record({"id": "a"})


def read_all(build, files, dataset):
    ledger = Ledger()
    return sample_records(build.read(files, dataset, ledger), None, 0, build.DISTINCT, ledger)


def test_reading_and_grouping_all_proteins_holds_no_letters(tmp_path, peak_of, alone):
    files, dataset = Files(fasta=write_fasta(tmp_path / "p.fa", "ACDEFGHIKLMNPQRSTVWY", 0)), Dataset(max_length=LONG)
    records, peak = peak_of(lambda: read_all(protein, files, dataset))
    assert len(records) == N and peak < N * LONG
    groups, peak = peak_of(lambda: protein.group(records, dataset))
    assert groups == [f"r{i:04d}" for i in range(N)] and peak < N * LONG / 10
    assert records[7]["sequence"] == letters("ACDEFGHIKLMNPQRSTVWY", 7)


def test_reading_transcripts_of_both_classes_holds_no_letters(tmp_path, peak_of, alone):
    paths = [write_fasta(tmp_path / f"{first}.fa", "ACGT", first, N // 2) for first in (0, N)]
    files, dataset = TranscriptFiles(coding=paths[0], noncoding=paths[1]), TranscriptDataset(max_length=LONG)
    records, peak = peak_of(lambda: read_all(lncrna, files, dataset))
    assert len(records) == N and peak < N * LONG
    groups, peak = peak_of(lambda: lncrna.group(records, dataset))
    assert len({*groups}) == N and peak < N * LONG / 10


def test_without_a_limit_a_record_takes_less_than_a_kilobyte(peak_of):
    sample = HashSample(None, 0, "sequence", Ledger())
    draw = random.Random(0)

    def add_all():
        for i in range(2000):
            sample.add_record(
                {"id": f"r{i}", "sequence": "".join(draw.choices("ACDEFGHIK", k=1000)), "name": "x" * 99}
            )

    assert peak_of(add_all)[1] < 2000 * 1000
