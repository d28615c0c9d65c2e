"""A dataset that was damaged after it was built is refused in one line that names its file."""

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from studies import as_records

from loratory import registry
from loratory.data.splits import SPLITS
from loratory.domains.dataset import audit_split, build_dataset, read_split, shortage_note
from loratory.domains.fetch import fetch_source, open_source
from loratory.errors import InputError

SOURCES = registry.load_module("domain", "protein", "sources")


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict[str, bytes]:
    """{file name: content} of a small dataset of proteins."""
    folder = tmp_path_factory.mktemp("proteins")
    fetch_source("protein", SOURCES.Simulation(n=40, families=40), "domain", 0, folder / "raw")
    build_dataset("protein", open_source("protein", folder / "raw"), SOURCES.Dataset(), 0, folder / "data")
    return {path.name: path.read_bytes() for path in (folder / "data").iterdir()}


@pytest.fixture
def folder(built, tmp_path) -> Path:
    for name, content in built.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def audit(folder: Path) -> None:
    audit_split("protein", folder, SOURCES.Dataset(), folder / "audit.json")


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        audit(folder)
    assert not (folder / "audit.json").exists()
    return str(caught.value)


def flipped(content: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(rng.choice([1, 4, 40])):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def filled(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content))
    return content[:start] + bytes(len(content) - start)


def test_a_whole_dataset_passes(folder):
    audit(folder)
    assert (folder / "audit.json").is_file()


def test_mutated_files_are_read_or_refused_in_one_line(folder, built):
    rng, refused = random.Random(0), 0
    for change in (flipped, cut, filled):
        for _ in range(20):
            split = rng.choice(SPLITS)
            path = folder / f"{split}.parquet"
            path.write_bytes(change(built[path.name], rng))
            try:
                read_split(folder, split)
            except InputError as error:
                refused += 1
                assert str(error).startswith(f"{path}: ") and len(str(error).splitlines()) == 1
            path.write_bytes(built[path.name])
    assert refused >= 40


@pytest.mark.parametrize(
    "content", [b"", b"PAR1", b"id\tgroup\n", b"PAR1" * 9], ids=["empty", "mark", "text", "marks"]
)
def test_a_file_that_is_no_parquet_file_is_refused(folder, content):
    (folder / "train.parquet").write_bytes(content)
    assert refusal(folder).startswith(f"{folder}/train.parquet: the file is damaged (")


def test_a_lost_file_is_named(folder):
    (folder / "gate.parquet").unlink()
    assert refusal(folder).startswith(f"{folder}/gate.parquet: no such file; fix: delete the dataset's folder")


CHANGES = {  # what is told: the change of the table
    "column `sequence` is not as built (none); expected string": lambda table: table.drop_columns("sequence"),
    "column `group` is not as built (none); expected string": lambda table: table.drop_columns("group"),
    "column `length` is not as built (string); expected int32": lambda table: table.set_column(
        table.schema.get_field_index("length"), "length", pa.array(["12"] * len(table))
    ),
    "column `id` is not as built (int64); expected string": lambda table: table.set_column(
        table.schema.get_field_index("id"), "id", pa.array(range(len(table)))
    ),
    "column `sequence` has records without a value": lambda table: table.set_column(
        table.schema.get_field_index("sequence"), "sequence", pa.nulls(len(table), pa.string())
    ),
}


@pytest.mark.parametrize("told", CHANGES)
def test_other_columns_types_and_missing_values_are_told_with_the_column(folder, told):
    path = folder / "test.parquet"
    pq.write_table(CHANGES[told](pq.read_table(path)), path)
    assert refusal(folder).startswith(f"{path}: {told}")


def test_who_does_not_know_the_domain_still_wants_ids_and_groups(folder):
    path = folder / "valid.parquet"
    pq.write_table(pq.read_table(path).drop_columns("id"), path)
    with pytest.raises(InputError, match=r"valid\.parquet: column `id` is not as built"):
        read_split(folder, "valid")


@pytest.mark.parametrize(
    ("records", "groups", "rarest", "said"),
    [
        (9, 9, 0, "the test split has 9 records: tables print numbers from 10 on, unless `evaluation.min_records`"),
        (20, 2, 0, "the test split has 2 groups of records: tables print numbers from 3 on"),
        (20, 20, 4, "the test split has 4 records of its rarest class: "),
        (20, 3, 10, ""),
    ],
)
def test_a_test_split_that_is_too_small_for_numbers_is_noted(records, groups, rarest, said):
    test = as_records([{"group": f"g{i % groups}", "label": int(i < rarest)} for i in range(records)])
    note = shortage_note(test, labelled=rarest > 0)
    assert note.startswith(said) and bool(note) == bool(said)


def test_that_stands_in_the_log_of_the_audit_before_anything_is_trained(tmp_path, capsys):
    fetch_source("protein", SOURCES.Simulation(n=12, families=12), "domain", 0, tmp_path / "raw")
    build_dataset("protein", open_source("protein", tmp_path / "raw"), SOURCES.Dataset(), 0, tmp_path)
    capsys.readouterr()
    audit(tmp_path)
    assert capsys.readouterr().out.startswith("note: the test split has ")
