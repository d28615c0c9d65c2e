"""Labels of proteins: which record has which, that rows are accounted for, and that none is lost on the way."""

import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from loratory.data.alphabets import RESIDUES
from loratory.data.ledger import Ledger
from loratory.data.sampling import HashSample
from loratory.data.splits import SPLITS
from loratory.domains.dataset import audit_split, build_dataset, read_split
from loratory.domains.protein import build
from loratory.domains.protein.sources import Dataset, Files, Task
from loratory.errors import InputError

FAMILY = {"superfamily": {"column": "InterPro", "names": {"IPR011006": "CheY-like", "IPR036249": "Trx-like"}}}
UNIPROT = "Entry\tEntry Name\tEC number\tInterPro\n"


def protein(seed: int, length: int = 60) -> str:
    return "".join(random.Random(f"label {seed}").choices(RESIDUES, k=length))


def files(folder: Path, ids, table: str, **options) -> Files:
    """FASTA with a protein for each id (or `(id, sequence)`), and a label table beside it."""
    pairs = [(id, protein(i)) if isinstance(id, str) else id for i, id in enumerate(ids)]
    (folder / "in.fasta").write_text("".join(f">{id}\n{sequence}\n" for id, sequence in pairs))
    (folder / "labels.tsv").write_text(table)
    return Files(fasta=str(folder / "in.fasta"), labels=str(folder / "labels.tsv"), **options)


def labels_of(given: Files, labels=FAMILY, on_error="fail", **options) -> tuple[dict[str, list[str]], Ledger]:
    dataset, ledger = Dataset(labels=labels, on_error=on_error, **options), Ledger(on_error)
    sample = HashSample(dataset.max_records, 0, build.DISTINCT, ledger)
    for record in build.read(given, dataset, ledger):
        sample.add_record(record)
    return {record["id"]: record["labels"] for record in sample.kept_records()}, ledger


def test_a_table_of_uniprot_is_joined_by_accession_name_or_cluster_member(tmp_path):
    ids = ["sp|P1|ONE_ECOLI", "UniRef50_P2", "tr|P3|THREE_ECOLI", "P4", "P5"]
    rows = "P1\tA\t\tIPR000001;IPR011006;\nP2\tB\t\tIPR036249;\nTHREE_ECOLI\tC\t\tIPR011006;\nP4\tD\t\tIPR000001;\n"
    found, ledger = labels_of(files(tmp_path, ids, UNIPROT + rows))
    assert found == {
        "sp|P1|ONE_ECOLI": ["superfamily=CheY-like"],
        "UniRef50_P2": ["superfamily=Trx-like"],
        "tr|P3|THREE_ECOLI": ["superfamily=CheY-like"],
        **{"P4": [], "P5": []},
    }
    account = ledger.joined["labels"]
    assert (account.n_in, account.reason_counts()) == (4, {"no_label": 1})


@pytest.mark.parametrize(
    ("cell", "levels", "expected"),
    [
        ("2.7.11.1", 1, ["ec=2"]),
        ("2.7.11.1; 2.7.10.2", 1, ["ec=2"]),
        ("2.7.11.1; 2.7.10.2", 2, ["ec=2.7"]),
        ("3.-.-.-", 1, ["ec=3"]),
        ("3.-.-.-", 2, []),
        ("2.7.7.n1", 4, ["ec=2.7.7.n1"]),
        ("1.1.1.1; 3.4.21.4", 1, ["ec=1", "ec=3"]),
    ],
)
def test_an_ec_number_is_cut_to_its_levels(tmp_path, cell, levels, expected):
    table = f"Entry\tEC\nP1\t{cell}\nP2\t1.1.1.1\n"
    label = {"ec": {"column": "EC", "levels": levels, "several": True}}
    assert labels_of(files(tmp_path, ["P1", "P2"], table), label)[0]["P1"] == expected


def test_rows_of_no_record_are_counted_in_the_card_and_listed_in_the_rejects(tmp_path):
    ids = [f"P{i}" for i in range(12)]
    rows = "".join(f"P{i}\t\t\tIPR011006\n" for i in range(11)) + "Q9\t\t\tIPR036249\n"
    dataset = Dataset(labels=FAMILY)
    build_dataset("protein", files(tmp_path, ids, UNIPROT + rows), dataset, 0, tmp_path / "data")
    card = json.loads((tmp_path / "data/card.json").read_text())
    assert card["joined"] == {"labels": {"n_in": 12, "n_joined": 11, "n_rejected": {"unmatched_id": 1}}}
    assert card["n_in"] == card["n_kept"] == 12 and card["n_rejected"] == {}
    rejects = (tmp_path / "data/rejects.tsv").read_text().splitlines()[1:]
    assert [line.split("\t")[1:] for line in rejects] == [["13", "Q9", "unmatched_id", "no record has this id"]]


def test_labels_survive_the_splits_and_the_card_counts_them_in_each(tmp_path):
    names = ["IPR011006", "IPR036249", ""]
    ids = [f"P{i}" for i in range(40)]
    rows = "".join(f"P{i}\t\t\t{names[i % 3]}\n" for i in range(40))
    dataset = Dataset(labels=FAMILY)
    build_dataset("protein", files(tmp_path, ids, UNIPROT + rows), dataset, 0, tmp_path / "data")
    audit_split("protein", tmp_path / "data", dataset, tmp_path / "audit.json")
    counts = json.loads((tmp_path / "data/card.json").read_text())["summary"]["labels"]["superfamily"]
    known = {"IPR011006": ["superfamily=CheY-like"], "IPR036249": ["superfamily=Trx-like"], "": []}
    for split in SPLITS:
        records = read_split(tmp_path / "data", split)
        assert all(record["labels"] == known[names[int(record["id"][1:]) % 3]] for record in records)
        one = [record["labels"][0].partition("=")[2] for record in records if record["labels"]]
        expected = {"one": len(one), "none": len(records) - len(one)}
        assert counts[split]["records"] == {key: n for key, n in expected.items() if n}
        assert counts[split]["values"] == {name: one.count(name) for name in sorted({*one})}
    assert sum(sum(counts[split]["records"].values()) for split in SPLITS) == 40


CONTRADICTIONS = {
    "in a cell": ("P1\t\t\tIPR011006;IPR036249\n", r"labels.tsv:2: 2 values of superfamily \(CheY-like, Trx-like\)"),
    "in two rows": (
        "P1\t\t\tIPR011006\nP1\t\t\tIPR036249\n",
        r"labels.tsv:2: its superfamily contradicts that at .*labels.tsv:3 \(CheY-like\)",
    ),
}


@pytest.mark.parametrize("rows, message", CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_two_values_where_one_may_stand_are_refused_or_leave_the_record_without(tmp_path, rows, message):
    given = files(tmp_path, ["P1", "P2"], UNIPROT + rows + "P2\t\t\tIPR011006\n")
    with pytest.raises(InputError, match=message):
        labels_of(given)
    found, ledger = labels_of(given, on_error="skip", max_reject_fraction=0.9)
    assert found == {"P1": [], "P2": ["superfamily=CheY-like"]}
    assert ledger.joined["labels"].reason_counts() == {"contradicting_labels": rows.count("\n")}
    assert ledger.n_malformed == 0
    with pytest.raises(InputError, match=r"labels: .* records are malformed"):
        labels_of(given, on_error="skip")


def test_several_values_are_kept_where_a_record_may_have_them(tmp_path):
    rows = "P1\t\t\tIPR011006\nP1\t\t\tIPR036249\nP2\t\t\tIPR011006\n"
    several = {"superfamily": FAMILY["superfamily"] | {"several": True}}
    found, ledger = labels_of(files(tmp_path, ["P1", "P2"], UNIPROT + rows), several)
    assert found["P1"] == ["superfamily=CheY-like", "superfamily=Trx-like"]
    assert ledger.joined["labels"].reason_counts() == {}


REFUSED = {
    "no id in common": ("Q1\t\t\tIPR011006\n", r"no id of the label tables is that of a record \(Q1\); .*P2"),
    "names that nothing has": ("P1\t\t\tIPR9\n", r"dataset.labels.superfamily: no record has a value of it"),
    "no id": ("\t\t\tIPR011006\n", r"labels.tsv:2: row without an id \(Entry\)"),
    "too few cells": ("P1\tIPR011006\n", r"labels.tsv:2: 2 cells"),
}


@pytest.mark.parametrize("rows, message", REFUSED.values(), ids=REFUSED)
def test_what_labels_nothing_is_refused_by_name(tmp_path, rows, message):
    with pytest.raises(InputError, match=message):
        labels_of(files(tmp_path, ["P1", "P2"], UNIPROT + rows))


@pytest.mark.parametrize(
    ("column", "cell", "options", "message"),
    [
        ("kind", "a<b", {}, r"labels.tsv:2: a label with letters that enclose labels \(a<b\)"),
        ("kind", "kinase", {"levels": 1}, r"labels.tsv:2: no EC number \(kinase\)"),
        ("absent", "x", {}, r"labels.tsv:1: no column `absent`.*fix: say which column holds the label kind"),
    ],
)
def test_a_value_that_cannot_be_a_label_is_refused(tmp_path, column, cell, options, message):
    given = files(tmp_path, ["P1"], f"Entry\tkind\nP1\t{cell}\n")
    with pytest.raises(InputError, match=message):
        labels_of(given, {"kind": {"column": column, **options}})


def test_a_table_of_sequences_brings_its_own_labels_and_a_bad_row_is_its_records_fault(tmp_path):
    rows = [("a", protein(1), "7.1.2.2"), ("b", protein(2), None), ("c", protein(3), "1.1.1.1;2.1.1.1")]
    columns = dict(zip(("Entry", "Sequence", "EC number"), map(list, zip(*rows))))
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    given = Files(tables=str(tmp_path / "t.parquet"), columns={"id": "Entry", "sequence": "Sequence"})
    label = {"ec": {"column": "EC number", "levels": 1}}
    with pytest.raises(InputError, match=r"t\.parquet:3: 2 values of ec \(1, 2\)"):
        labels_of(given, label)
    found, ledger = labels_of(given, label, on_error="skip", max_reject_fraction=0.5)
    assert found == {"a": ["ec=7"], "b": []}
    assert ledger.reason_counts() == {"contradicting_labels": 1} and ledger.joined == {}


@pytest.mark.parametrize("order", [1, -1])
def test_of_equal_sequences_the_one_kept_has_the_labels_of_all(tmp_path, order):
    pairs = [("A", protein(0)), ("B", protein(0)), ("C", protein(1))]
    given = files(tmp_path, pairs[::order], UNIPROT + "B\t\t\tIPR011006\nC\t\t\tIPR036249\n")
    assert labels_of(given)[0] == {"A": ["superfamily=CheY-like"], "C": ["superfamily=Trx-like"]}


@pytest.mark.parametrize("too_long", ["crop", "windows"])
def test_a_piece_of_a_protein_has_no_label_of_the_whole(tmp_path, too_long):
    given = files(
        tmp_path, [("A", protein(0, 130)), ("B", protein(1))], UNIPROT + "A\t\t\tIPR011006\nB\t\t\tIPR036249\n"
    )
    found, ledger = labels_of(given, too_long=too_long, max_length=60, min_length=5)
    assert found.pop("B") == ["superfamily=Trx-like"]
    assert {*map(tuple, found.values())} == {()}
    assert ledger.n_changed["unlabelled_pieces"] == len(found)


def test_records_without_a_required_label_are_left_out_and_counted(tmp_path):
    rows = "P1\t\t\tIPR011006\nP3\t\t\tIPR036249\n"
    required = {"superfamily": FAMILY["superfamily"] | {"required": True}}
    given = files(tmp_path, ["P1", "P2", ("P3", protein(9, 130)), "P4"], UNIPROT + rows)
    found, ledger = labels_of(given, required, too_long="crop", max_length=60)
    assert [*found] == ["P1"] and ledger.reason_counts() == {"unlabelled": 3} and ledger.n_in == 4


def test_labels_without_a_table_and_a_table_without_labels_are_refused(tmp_path):
    given = files(tmp_path, ["P1"], UNIPROT + "P1\t\t\tIPR011006\n")
    with pytest.raises(InputError, match=r"labels\.tsv: no column of the label tables is named"):
        labels_of(given, {})
    with pytest.raises(InputError, match=r"dataset\.labels: no table is given that labels could stand in"):
        labels_of(given.model_copy(update={"labels": []}))


def test_a_task_asks_only_for_labels_that_are_read():
    asked = Task(ask="generate", label="superfamly")
    assert "did you mean `superfamily`?" in asked.dataset_conflict(Dataset(labels=FAMILY))
    assert "(none)" in asked.dataset_conflict(Dataset())
    assert Task(ask="determine", label="superfamily").dataset_conflict(Dataset(labels=FAMILY)) is None
    assert "no weight of the X" in Task(ask="calculate").dataset_conflict(Dataset(max_ambiguous=0.1))


@pytest.mark.parametrize("options", [{}, {"ask": "generate", "label": "ec"}, {"ask": "design", "quantities": ["pi"]}])
def test_a_task_in_plain_values_is_the_task_again(options):
    asked = Task(**options)
    assert Task(**asked.model_dump(mode="json")) == asked


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ask": "generate"}, "`ask: generate` needs `label`"),
        ({"label": "ec"}, "`ask: sequence` has no use for `label`"),
        ({"quantities": ["pi"]}, "`ask: sequence` has no use for `quantities`"),
        ({"ask": "calculate", "quantities": ["pi", "pi"]}, "pi is given twice"),
        ({"ask": "calculate", "tokens": "letters"}, "`tokens: letters` writes sequences"),
    ],
)
def test_options_that_a_question_has_no_use_for_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        Task(**options)
