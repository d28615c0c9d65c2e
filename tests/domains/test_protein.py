"""Proteins: what is kept of a file, that related sequences stay together, and what the numbers mean."""

import gzip
import json
import math
import random
import re
from collections import Counter
from itertools import pairwise

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from studies import as_records

from loratory.data import mmseqs
from loratory.data.alphabets import RESIDUES
from loratory.data.fasta import read_fasta
from loratory.data.ledger import Ledger
from loratory.data.sampling import HashSample
from loratory.data.splits import SPLITS
from loratory.domains.dataset import audit_split, build_dataset, read_split, record_schema
from loratory.domains.protein import build, metrics, simulate, task
from loratory.domains.protein.sources import FAMILIES, Dataset, Files, Simulation, Task
from loratory.errors import InputError
from loratory.evaluation.score import load_metrics

PROTEIN = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQVKVKALPDAQFEVVHSLAKWKRQTLGQHDFSAGEGLYTHM"


def fasta(folder, entries) -> Files:
    folder.mkdir(exist_ok=True)
    path = folder / "in.fasta"
    path.write_text("".join(f">{header}\n{sequence}\n" for header, sequence in entries))
    return Files(fasta=str(path))


def read(folder, entries, on_error="fail", **options) -> tuple[list[dict], Ledger]:
    return kept_of(fasta(folder, entries), on_error, **options)


def kept_of(files: Files, on_error="fail", **options) -> tuple[list[dict], Ledger]:
    """What a dataset takes of files, before it is split."""
    dataset, ledger = Dataset(on_error=on_error, **options), Ledger(on_error)
    sample = HashSample(dataset.max_records, 0, build.DISTINCT, ledger)
    for record in build.read(files, dataset, ledger):
        sample.add_record(record)
    return [*sample.kept_records()], ledger


def mutant(sequence: str, share: float, seed: int = 0) -> str:
    rng = random.Random(seed)
    places = set(rng.sample(range(len(sequence)), round(share * len(sequence))))
    return "".join(rng.choice(RESIDUES.replace(c, "")) if i in places else c for i, c in enumerate(sequence))


# reading


@pytest.mark.parametrize(
    "header, name, tax_id",
    [
        (
            "UniRef50_A0A5 Some isomerase n=1 Tax=Triplophysa tibetana TaxID=1572043 RepID=A0A5_9TELE",
            "Some isomerase",
            "1572043",
        ),
        (
            "UniRef50_P1 odd n=2 Tax=x name n=7 Tax=Homo sapiens TaxID=9606 RepID=P1_HUMAN",
            "odd n=2 Tax=x name",
            "9606",
        ),
        ("UniRef50_P1  n=1 Tax=Homo sapiens TaxID=9606 RepID=P1_HUMAN", "", "9606"),
        ("UniRef50_P1 n=1 Tax=Homo sapiens TaxID=9606 RepID=P1_HUMAN", "", "9606"),
        ("UniRef50_UPI0 kinase n=3 Tax=unknown RepID=UPI0", "kinase", ""),
        ("UniRef50_A0A009DWD5 TaxID=1310605.0 RepID=A0A009DWD5_ACIBA", "", "1310605"),
        ("UniRef50_A0A009DWD5 TaxID=nan RepID=A0A009DWD5_ACIBA", "", ""),
        ("sp|P29373|RABP2_HUMAN Retinoic OS=Homo sapiens OX=9606 GN=CRABP2 PE=1 SV=2", "Retinoic", "9606"),
        ("tr|A0A1|A0A1_9BACT Kinase OS=Bacterium (strain X) OX=77133", "Kinase", "77133"),
        ("tr|A0A1|A0A1_9BACT Kinase OS=Bacterium", "Kinase", ""),
        ("mine", "", ""),
        ("mine my favourite protein", "my favourite protein", ""),
    ],
)
def test_headers_of_every_dialect_are_understood(tmp_path, header, name, tax_id):
    [record], _ = read(tmp_path, [(header, PROTEIN)])
    assert (record["id"], record["name"], record["tax_id"]) == (header.split()[0], name, tax_id)


@pytest.mark.parametrize(
    "sequence, message, reason",
    [
        (PROTEIN[:30] + "7" + PROTEIN[30:], "'7' at position 31 of the sequence is no residue", "residue"),
        (PROTEIN[:30] + "*" + PROTEIN[30:], "'*' at position 31 of the sequence is no residue", "residue"),
        (PROTEIN + "**", f"'*' at position {len(PROTEIN) + 1} of the sequence is no residue", "residue"),
        (PROTEIN[:30] + "é" + PROTEIN[30:], "at position 31 of the sequence is no residue", "residue"),
        ("--" + PROTEIN, "'-' at position 1 of the sequence is no residue; expected unaligned sequences", "gap"),
        (
            PROTEIN + ".",
            f"'.' at position {len(PROTEIN) + 1} of the sequence is no residue; expected unaligned",
            "gap",
        ),
    ],
)
def test_what_is_no_protein_is_named_or_skipped(tmp_path, sequence, message, reason):
    entries = [("a", PROTEIN), ("b", sequence)]
    with pytest.raises(InputError, match="^" + re.escape(f"{tmp_path / 'in.fasta'}:2: ") + ".*" + re.escape(message)):
        read(tmp_path, entries)
    kept, ledger = read(tmp_path, entries, on_error="skip")
    assert [r["id"] for r in kept] == ["a"]
    assert ledger.reason_counts() == {reason: 1} and ledger.n_malformed == 1


@pytest.mark.parametrize(
    "sequence, options, expected",
    [
        (PROTEIN.lower(), {}, PROTEIN),
        (PROTEIN + "*", {}, PROTEIN),
        (PROTEIN + "UO", {}, PROTEIN + "CK"),
        (PROTEIN + "u", {"rare_residues": "drop"}, "rare_residue"),
        (PROTEIN + "B", {}, "ambiguous_residue"),
        (PROTEIN + "z", {}, "ambiguous_residue"),
        (PROTEIN + "J", {}, "ambiguous_residue"),
        (PROTEIN + "X", {}, "ambiguous_residue"),
        (PROTEIN[:50] + "*", {}, PROTEIN[:50]),
        (PROTEIN[:49] + "*", {}, "too_short"),
        ("*", {}, "too_short"),
        (PROTEIN, {"max_length": len(PROTEIN)}, PROTEIN),
        (PROTEIN, {"max_length": len(PROTEIN) - 1}, "too_long"),
    ],
)
def test_letters_and_lengths_follow_the_policy(tmp_path, sequence, options, expected):
    kept, ledger = read(tmp_path, [("a", sequence)], **options)
    assert [r["sequence"] for r in kept] + list(ledger.reason_counts()) == [expected]
    assert ledger.n_malformed == 0


def test_of_equal_sequences_the_smallest_id_stays_in_whatever_order_they_come(tmp_path):
    entries = [("b", PROTEIN), ("c", PROTEIN.lower() + "*"), ("a", PROTEIN), ("d", PROTEIN[::-1])]
    for order in (entries, entries[::-1], entries[1:] + entries[:1]):
        kept, ledger = read(tmp_path, order)
        assert sorted(r["id"] for r in kept) == ["a", "d"]
        assert sorted((row[2], row[3]) for row in ledger.rows) == [(id, "duplicate_sequence") for id in "bc"]


def random_protein(seed: int, length: int = 80) -> str:
    return "".join(random.Random(seed).choices(RESIDUES, k=length))


G_AND_T = "MYIYD" + "TG" * 70 + "VSLE"


@pytest.mark.parametrize(
    "entries",
    [
        [("a", G_AND_T)],
        [(f"t{i}", "MYIYD" + "TG" * (60 + i) + "VSLE") for i in range(9)],
        [(f"t{i}", "TG" * (60 + i)) for i in range(9)],
        [("only", "ACGT" * 30)],
        [("like", "ACGT" * 30), *((f"p{i}", random_protein(i)) for i in range(9))],
    ],
    ids=["one", "a family", "repeats alone", "a single record", "one among others"],
)
def test_proteins_rich_in_the_letters_of_nucleotides_are_kept(tmp_path, entries):
    kept, ledger = read(tmp_path, entries)
    assert [r["id"] for r in kept] == sorted(id for id, _ in entries) and not ledger.rows
    assert build.summary(as_records(kept, record_schema(build)))["like_nucleotides"] == sum(
        s == "ACGT" * 30 for _, s in entries
    )


@pytest.mark.parametrize("letters, n", [("ACGT", 40), ("acgu", 5), ("ACGTN", 12)])
@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_a_file_of_nucleotides_is_refused_by_its_many_records(tmp_path, letters, n, on_error):
    bases = [(f"n{i}", "".join(random.Random(i).choices(letters, k=200))) for i in range(n)]
    entries = [("p", PROTEIN), *bases, ("q", PROTEIN[::-1])]
    first = bases[0][1][:9].upper()
    told = f"in.fasta:2: {n} of {n + 2} records of the file look like nucleotides, the first of them ({first}"
    with pytest.raises(InputError, match=re.escape(told)):
        read(tmp_path, entries, on_error, max_ambiguous=0.5)


@pytest.mark.parametrize(
    "sequence, share, kept",
    [
        ("X" + PROTEIN, 0, None),
        ("X" + PROTEIN, 0.02, "X" + PROTEIN),
        ("bZjx" + PROTEIN, 0.05, "XXXX" + PROTEIN),
        ("bZjx" + PROTEIN, 0.02, None),
        ("U" + PROTEIN + "X", 0.02, "C" + PROTEIN + "X"),
    ],
)
def test_ambiguous_residues_are_tolerated_up_to_a_share_and_written_x(tmp_path, sequence, share, kept):
    found, ledger = read(tmp_path, [("a", sequence)], max_ambiguous=share)
    assert [r["sequence"] for r in found] == ([kept] if kept else [])
    assert ledger.reason_counts() == ({} if kept else {"ambiguous_residue": 1})
    assert build.summary(as_records(found))["ambiguous_residues"] == kept.count("X") if kept else True


def test_x_is_a_letter_of_the_controls_and_of_no_closed_alphabet():
    records = [{"id": s, "group": s, "sequence": s} for s in ("MKXV", "MKV", "KVM", "VMK", "MMK")]
    for rows in task.baselines(records, records, Task()).values():
        assert all(math.isfinite(row["nll"]) for row in rows)
        assert rows[0]["nll"] > rows[1]["nll"]
    drawn = task.sample_baselines(records, 8, Task())["natural"]
    assert {row["text"] for row in drawn} == {s + ">" for s in ("MKV", "KVM", "VMK", "MMK")}
    assert Task().dataset_conflict(Dataset(max_ambiguous=0.1)) is None
    assert Task(tokens="letters").dataset_conflict(Dataset()) is None
    assert "cannot write the X" in Task(tokens="letters").dataset_conflict(Dataset(max_ambiguous=0.1))


def test_a_long_protein_is_dropped_cropped_or_cut_into_windows(tmp_path):
    entries = [("long", random_protein(1, 250)), ("short", random_protein(2, 60))]

    def outcome(**options):
        kept, ledger = read(tmp_path, entries, min_length=40, max_length=100, **options)
        assert ledger.n_in == len(kept) + ledger.n_rejected.total()
        return {r["id"]: (r["sequence"], r["unit"]) for r in kept}, ledger

    long, short = (s for _, s in entries)
    kept, ledger = outcome()
    assert kept == {"short": (short, "")} and ledger.reason_counts() == {"too_long": 1}
    kept, ledger = outcome(too_long="crop")
    assert kept == {"long": (long[:100], ""), "short": (short, "")} and ledger.n_changed == {"cropped": 1}
    kept, ledger = outcome(too_long="windows")
    windows = {f"long/{a + 1}-{min(a + 100, 250)}": (long[a : a + 100], "long") for a in (0, 100, 200)}
    assert kept == windows | {"short": (short, "")} and ledger.n_changed == {"windows": 3} and ledger.n_in == 4
    entries[0] = ("long", long[:230])
    kept, ledger = outcome(too_long="windows")
    assert len(kept) == 3 and ledger.reason_counts() == {"too_short": 1}


def table(folder, rows, name="in.csv") -> str:
    path = folder / name
    path.write_text("entry,seq,family\n" + "".join(f"{','.join(row)}\n" for row in rows))
    return str(path)


def test_files_patterns_and_tables_are_pooled(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.fa").write_text(f">p{number} x\n{random_protein(number)}\n")
    rows = [("t", random_protein(9), "f"), ("copy", random_protein(0), "")]
    columns = {"id": "entry", "sequence": "seq", "group": "family"}
    files = Files(fasta=f"{tmp_path}/*.fa", tables=table(tmp_path, rows), columns=columns)
    assert files.file_paths() == [f"{tmp_path}/{name}" for name in ("0.fa", "1.fa", "2.fa", "in.csv")]
    kept, ledger = kept_of(files)
    assert {r["id"]: r["unit"] for r in kept} == {"copy": "", "p1": "", "p2": "", "t": "f"}
    assert ledger.rows == [(f"{tmp_path}/0.fa", "1", "p0", "duplicate_sequence", "same as copy")]


@pytest.mark.parametrize("twice", [["0.fa", "0.fa"], ["*.fa", "0.fa"], ["0.fa", "link.txt"], ["0.fa", "./0.fa"]])
def test_a_file_that_is_given_twice_is_named(tmp_path, twice):
    (tmp_path / "0.fa").write_text(f">p\n{PROTEIN}\n")
    (tmp_path / "link.txt").symlink_to(tmp_path / "0.fa")
    with pytest.raises(InputError, match="the same file is given twice, as `fasta` and as `fasta`"):
        kept_of(Files(fasta=[f"{tmp_path}/{name}" for name in twice]))


def test_a_pattern_that_matches_nothing_is_a_missing_file(tmp_path):
    pattern = f"{tmp_path}/none*.fa"
    assert Files(fasta=pattern).file_paths() == [pattern]
    with pytest.raises(InputError, match=re.escape(f"{pattern}: no such file")):
        kept_of(Files(fasta=pattern))


def test_a_file_whose_name_looks_like_a_pattern_is_itself(tmp_path):
    for name in ("a[1].fa", "a1.fa"):
        (tmp_path / name).write_text(f">{name}\n{PROTEIN}\n")
    assert Files(fasta=f"{tmp_path}/a[1].fa").file_paths() == [f"{tmp_path}/a[1].fa"]


def test_a_sample_of_a_file_adds_up_and_is_the_same_from_several_files(tmp_path):
    entries = [(f"p{i}", random_protein(i, 60)) for i in range(200)] + [("copy", random_protein(7, 60))]
    kept, ledger = read(tmp_path, entries, max_records=20)
    assert len(kept) == 20 and ledger.n_in == 201 == 20 + ledger.n_rejected.total()
    parts = [fasta(tmp_path / name, part).fasta for name, part in (("a", entries[:90]), ("b", entries[90:]))]
    again, _ = kept_of(Files(fasta=[*parts[1], *parts[0]]), max_records=20)
    assert [r["id"] for r in again] == [r["id"] for r in kept]


def test_windows_and_rows_of_one_group_stay_in_one_split(tmp_path):
    long = [(f"long{i}", random_protein(i, 180)) for i in range(12)]
    columns = {"id": "entry", "sequence": "seq", "group": "family"}
    families = table(tmp_path, [(f"t{i}", random_protein(50 + i, 70), f"f{i % 4}") for i in range(16)])
    files = Files(fasta=fasta(tmp_path, long).fasta, tables=families, columns=columns)
    dataset = Dataset(min_length=50, max_length=90, too_long="windows")
    build_dataset("protein", files, dataset, 1, tmp_path / "data")
    audit_split("protein", tmp_path / "data", dataset, tmp_path / "audit.json")
    card = json.loads((tmp_path / "data" / "card.json").read_text())
    assert card["n_changed"] == {"windows": 24} and card["n_in"] == 40 == card["n_kept"]
    groups = {r["unit"]: set() for split in SPLITS for r in read_split(tmp_path / "data", split)}
    for split in SPLITS:
        for r in read_split(tmp_path / "data", split):
            groups[r["unit"]].add((split, r["group"]))
    assert len(groups) == 16 and all(len(places) == 1 for places in groups.values())


def test_a_few_malformed_records_among_many_are_tolerated_and_many_are_not(tmp_path):
    rng = random.Random(1)
    entries = [(f"p{i}", "".join(rng.choices(RESIDUES, k=60))) for i in range(300)]
    entries[100] = ("bad", PROTEIN + "7")
    _, ledger = read(tmp_path, entries, on_error="skip")
    ledger.check_counts("protein", 299, 0.01)
    entries[200:205] = [(f"bad{i}", PROTEIN + "-") for i in range(5)]
    _, ledger = read(tmp_path, entries, on_error="skip")
    with pytest.raises(
        InputError, match=r"6 of 300 records are malformed; expected at most 1\.0%.*in\.fasta:101: '7'"
    ):
        ledger.check_counts("protein", 294, 0.01)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(RESIDUES + "UOBZJX*-7acgt", min_size=1, max_size=40), min_size=1, max_size=12))
def test_every_record_is_kept_within_policy_or_accounted_for(tmp_path_factory, sequences):
    entries = [(f"r{i}", sequence) for i, sequence in enumerate(sequences)]
    kept, ledger = read(tmp_path_factory.getbasetemp(), entries, on_error="skip", min_length=5, max_length=30)
    assert ledger.n_in == len(sequences) == len(kept) + len(ledger.rows)
    assert all(set(r["sequence"]) <= set(RESIDUES) and 5 <= r["length"] == len(r["sequence"]) <= 30 for r in kept)
    assert len({r["sequence"] for r in kept}) == len(kept)
    again = [example.target for example in task.examples([r | {"group": "g"} for r in kept], Task(), "causal")]
    assert [re.fullmatch("([A-Z]*)>", target)[1] for target in again] == [r["sequence"] for r in kept]


@pytest.mark.parametrize("options", [{"min_length": 60, "max_length": 50}, {"identity": 0}, {"unknown": 1}])
def test_impossible_options_are_refused(options):
    with pytest.raises(ValidationError):
        Dataset(**options)


def test_more_families_than_sequences_are_refused():
    with pytest.raises(ValidationError, match="families 5 > n 4"):
        Simulation(n=4, families=5)


# datasets


@pytest.fixture(scope="module")
def entries(tmp_path_factory) -> list[tuple[str, str]]:
    """Ninety simulated sequences of thirty families and, under another id, one of them with 5 % replaced."""
    folder = tmp_path_factory.mktemp("simulated")
    files = simulate.simulate(Simulation(n=90, families=30), "domain", 7, folder)
    found = [(header, s.decode()) for _, _, header, s in read_fasta(folder / files["fasta"], Ledger())]
    return [*found, ("mutant", mutant(found[0][1], 0.05))]


@pytest.fixture(scope="module")
def dataset(entries, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataset")
    build_dataset("protein", fasta(folder, entries), Dataset(), 1, folder / "data")
    return folder / "data"


def homes(folder) -> dict[str, str]:
    return {record["id"]: split for split in SPLITS for record in read_split(folder, split)}


def test_the_account_adds_up_and_the_audit_passes(dataset, tmp_path):
    card = json.loads((dataset / "card.json").read_text())
    assert card["n_in"] == 91 == card["n_kept"] + sum(card["n_rejected"].values())
    assert card["n_kept"] == len(homes(dataset)) > 70
    audit_split("protein", dataset, Dataset(), tmp_path / "audit.json")
    counts = json.loads((tmp_path / "audit.json").read_text())["counts"]
    assert {"clusters_in_two_splits", "sequences_in_two_splits", "resembles_test"} <= counts.keys()
    assert set(counts.values()) == {0}


def test_a_mutant_is_in_its_parents_split(dataset, entries):
    home = homes(dataset)
    assert home["mutant"] == home[entries[0][0].split()[0]]


def test_file_order_changes_neither_records_nor_splits(dataset, entries, tmp_path):
    shuffled = random.Random(2).sample(entries, len(entries))
    build_dataset("protein", fasta(tmp_path, shuffled), Dataset(), 1, tmp_path / "data")
    for split in SPLITS:
        assert read_split(tmp_path / "data", split) == read_split(dataset, split)


def test_the_audit_finds_a_relative_that_was_smuggled_into_train(dataset, tmp_path):
    table = {split: pq.read_table(dataset / f"{split}.parquet") for split in SPLITS}
    stolen = table["test"].to_pylist()[0]
    smuggled = stolen | {"id": "smuggled", "group": "smuggled", "sequence": mutant(stolen["sequence"], 0.3)}
    for split in SPLITS:
        rows = table[split].to_pylist() + [smuggled] * (split == "train")
        pq.write_table(type(table[split]).from_pylist(rows, schema=table[split].schema), tmp_path / f"{split}.parquet")
    with pytest.raises(InputError, match=r"the splits leak.*resembles_test"):
        audit_split("protein", tmp_path, Dataset(), tmp_path / "audit.json")


@pytest.mark.parametrize("covered", ["shorter", "both"])  # what was built for the first passes the second too
def test_an_audit_makes_no_search_twice_and_says_all_three_counts(covered, dataset, tmp_path, monkeypatch):
    made, search = [], mmseqs.run_search

    def noted_search(queries, targets, relation, method):
        made.append((frozenset(queries), frozenset(targets), relation))
        return search(queries, targets, relation, method)

    monkeypatch.setattr(mmseqs, "run_search", noted_search)
    monkeypatch.setattr(mmseqs, "SEARCHED", {})
    audit_split("protein", dataset, Dataset(covered=covered), tmp_path / "audit.json")
    assert len(made) == len({*made}) >= 4
    shared = json.loads((tmp_path / "audit.json").read_text())["shared"]["other splits"]
    assert next(iter(shared.values())) == {"records": 0, "sensitivity": 1.0} and len(shared) == 3


def test_proof_counts_shared_clusters_and_sequences():
    def record(id, group, sequence):
        return {"id": id, "group": group, "sequence": sequence}

    parts = {"train": [record("a", "g", "MK"), record("b", "h", "ML")], "test": [record("c", "g", "ML")]}
    parts["train"][0]["unit"] = parts["test"][0]["unit"] = "u"
    counts = {"clusters_in_two_splits": 1, "units_in_two_splits": 1, "sequences_in_two_splits": 1}
    assert build.proof({split: as_records(part) for split, part in parts.items()}, Dataset()) == counts


def test_real_uniref_records_are_split_without_a_leak(shared_data, tmp_path):
    source = shared_data / "proteins" / "uniref" / "uniref50_train_filt.fasta"
    records = [(header, s.decode()) for _, _, header, s in read_fasta(source, Ledger())]
    parent = next((header, s) for header, s in records if 100 < len(s) < 200 and not set(s) - set(RESIDUES))
    files = fasta(tmp_path, [parent, ("mutant", mutant(parent[1], 0.05)), *(r for r in records if r != parent)][:700])
    build_dataset("protein", files, Dataset(max_records=400), 1, tmp_path / "data")
    audit_split("protein", tmp_path / "data", Dataset(), tmp_path / "audit.json")
    card = json.loads((tmp_path / "data" / "card.json").read_text())
    assert card["n_in"] == 700 == card["n_kept"] + sum(card["n_rejected"].values())
    assert card["n_kept"] > 350 and card["n_rejected"]["too_long"] > 20
    home = homes(tmp_path / "data")
    assert {"mutant", parent[0].split()[0]} <= home.keys(), "not sampled: choose another seed"
    assert home["mutant"] == home[parent[0].split()[0]]
    assert all(r["tax_id"] for r in read_split(tmp_path / "data", "test"))


# task and baseline


def test_a_protein_is_asked_for_in_the_stage_1_format():
    assert FAMILIES == {"causal": ("nll", "text", "sample"), "masked": ("nll",)}
    assert [*map(Task().choose_outputs, FAMILIES.values())] == [("nll", "sample"), ("nll",)]
    [example] = task.examples([{"id": "a", "group": "g", "sequence": "MKV"}], Task(), "causal")
    assert (example.id, example.group) == ("a", "g")
    assert example.prompt + example.target == "Seq=<MKV>"
    assert example.prompt == "Seq=<"
    first, second = task.sample_prompts([], 2, Task(), "causal")
    assert (first.prompt, first.target) == (example.prompt, "")
    assert first.id != second.id


def test_as_letters_residues_and_the_bracket_that_closes_are_the_whole_alphabet():
    asked = Task(tokens="letters")
    examples = [*task.examples([{"id": "a", "group": "g", "sequence": "MKV"}], asked, "causal")]
    examples += task.sample_prompts([], 1, asked, "causal")
    assert {example.alphabet for example in examples} == {(*RESIDUES, ">")}
    assert {example.alphabet for example in task.sample_prompts([], 1, Task(), "causal")} == {()}


def test_residue_frequency_is_a_distribution_fitted_on_train_alone():
    def records(*sequences):
        return [{"id": s, "group": s, "sequence": s} for s in sequences]

    def rows(train, *test):
        return task.baselines(records(*train), records(*test), Task())["residue_frequency"]

    [row] = rows(["AAC", "A"], "AC")
    assert row["nll"] == pytest.approx(-math.log((3 + 1) / 27) - math.log((1 + 1) / 27) - math.log((2 + 1) / 27))
    assert (row["id"], row["reference"], row["tokens"], row["text"]) == ("AC", "AC>", 3, None)
    end = rows(["AAC", "A"], "A")[0]["nll"] + math.log(4 / 27)
    once = [math.exp(end - row["nll"]) for row in rows(["AAC", "A"], *RESIDUES)]
    assert sum(once) + math.exp(-end) == pytest.approx(1)


def test_the_trigram_is_a_distribution_in_every_context_and_equals_a_hand_count():
    counts = task.count_trigrams([{"sequence": "ACA"}, {"sequence": "AC"}])
    shares = task.trigram_shares(counts, (2.0, 10.0))
    assert shares.shape == (22, 22, 21) and (shares > 0).all()
    np.testing.assert_allclose(shares.sum(axis=-1), 1)
    a, c, end = map(task.LETTERS.index, "AC>")
    # letters A 3, C 2, > 2 of 7, one added to each of 21; after C come A and >, after AC too
    of_a, of_end = 4 / 28, 3 / 28
    for letter, share in ((a, of_a), (end, of_end)):
        after_c = (1 + 2 * share) / (2 + 2)
        assert shares[a, c, letter] == pytest.approx((1 + 10 * after_c) / (2 + 10))
    assert shares[c, c, a] == pytest.approx((1 + 2 * of_a) / (2 + 2)), "an unseen context is the shorter one"
    first = (2 + 2 * of_a) / (2 + 2)
    assert shares[task.OPEN, task.OPEN, a] == pytest.approx((2 + 10 * first) / (2 + 10)), "both begin with A"


def test_the_trigram_learns_from_train_what_single_letters_do_not_show():
    def records(name, n):
        return [{"id": f"{name}{i}", "group": f"{name}{i}", "sequence": "ACD" * (3 + i % 4)} for i in range(n)]

    train, test = records("train", 40), records("test", 4)
    nll = {name: sum(row["nll"] for row in rows) for name, rows in task.baselines(train, test, Task()).items()}
    assert nll["trigram"] < 0.4 * nll["residue_frequency"]
    own, other = (task.baselines(train, part, Task())["trigram"] for part in (test[:1], test[::-1]))
    assert own[0] == other[-1], "no record of test changes what is said of another"


# metrics


def row(**values) -> dict:
    return dict.fromkeys(("reference", "nll", "tokens", "p", "text")) | {"id": "i", "group": "g"} | values


METRICS = load_metrics("protein", Task()).METRICS


def value(name: str, rows) -> float:
    metric = next(metric for metric in METRICS if metric.name == name)
    return metric.compute_value(metrics.columns(rows, [], Task()))


def test_likelihoods_and_plddt_stand_by_length_too():
    rows = [
        row(reference="M" * n + ">", nll=nll, tokens=n + 1)
        for n, nll in ((100, 200.0), (20, 10.0), (101, 303.0), (301, 903.0))
    ]
    assert [value(f"nll_{name}", rows) for name in ("to_100", "101_300", "over_300")] == [1.75, 3, 3]
    samples = [row(text="M" * n + ">", plddt=plddt) for n, plddt in ((100, 40.0), (101, 60.0), (300, 80.0))]
    assert [value(f"plddt_{name}", samples) for name in ("to_100", "101_300")] == [40, 70]


def test_nll_is_pooled_over_residues_without_the_end():
    rows = [row(reference="MKV>", nll=6.0, tokens=4), row(reference="M" * 7 + ">", nll=9.0, tokens=3)]
    assert value("nll_per_residue", rows) == pytest.approx(1.5)
    assert value("perplexity", rows) == pytest.approx(math.exp(1.5))
    assert [metric.name for metric in METRICS if metric.primary] == ["nll_per_residue"]


@pytest.mark.parametrize(
    "text, valid",
    [
        (PROTEIN + ">", True),
        (PROTEIN, False),
        (PROTEIN + "X>", False),
        (PROTEIN + "m>", False),
        (PROTEIN + " >", False),
        (PROTEIN + "é>", False),
        (">", False),
        ("", False),
        (PROTEIN[:30] + ">", True),
        (PROTEIN[:29] + ">", False),
        ((PROTEIN * 11)[:1022] + ">", True),
        ((PROTEIN * 11)[:1023] + ">", False),
        (PROTEIN + "A" * 10 + ">", True),
        (PROTEIN + "A" * 11 + ">", False),
        (PROTEIN[:30] + "MKT" * 9 + ">", True),
        (PROTEIN[:30] + "MKTA" * 8 + ">", False),
        ("MKTAYW" * 9 + PROTEIN[:30] + ">", False),
        ("MKTAYWL" * 9 + PROTEIN[:30] + ">", True),
    ],
)
def test_valid_samples_are_closed_plausible_and_do_not_loop(text, valid):
    assert value("validity", [row(text=text)]) == valid


@given(st.integers(1, 6), st.integers(1, 12), st.text("ACD", max_size=8), st.text("EFG", max_size=8))
def test_a_planted_repeat_is_measured_in_full(period, copies, before, after):
    unit = "KLMNPQ"[:period]
    length = metrics.tandem_length(before + unit * copies + after, period)
    assert length >= period * copies if copies > 1 else length <= max(len(before), len(after))


def test_a_sample_that_never_closes_is_no_copy_of_one_that_does():
    rows = [row(text=text) for text in ("MK>", "MK>>", "MKV>", "MK", "")]
    assert value("uniqueness", rows) == pytest.approx(4 / 5)
    assert value("truncated", rows) == pytest.approx(2 / 5)
    assert value("uniqueness", [row(text="MK"), row(text="MK")]) == pytest.approx(1 / 2)
    assert metrics.VERSION == 3


def test_structures_are_averaged_where_they_were_folded():
    norms = {"tm_longer": 0.3, "tm_query": 0.4, "tm_reference": 0.5}
    unscored = {"plddt": math.nan} | dict.fromkeys(norms)
    rows = [row(text="MK>", plddt=80.0, **norms), row(text="MK", **unscored), row(text="ML>", plddt=60.0)]
    assert value("plddt", rows) == pytest.approx(70)
    assert {name: value(name, rows) for name in norms} == pytest.approx(norms)


def test_rows_of_another_output_change_nothing_and_no_row_gives_nan():
    scored, scores = (
        row(reference="MKV>", nll=6.0, tokens=4),
        dict.fromkeys(("tm_longer", "tm_query", "tm_reference"), 0.4),
    )
    sample = row(text=PROTEIN + ">", plddt=50.0, **scores)
    sets = {"nll": [scored], "sample": [sample], "both": [scored, sample], "none": []}
    columns = {name: metrics.columns(rows, [{"sequence": PROTEIN}], Task()) for name, rows in sets.items()}
    for metric in METRICS:
        own, other = ("nll", "sample") if metric.output == "nll" else ("sample", "nll")
        np.testing.assert_equal(metric.compute_value(columns["both"]), metric.compute_value(columns[own]))
        assert math.isnan(metric.compute_value(columns[other]))
        assert math.isnan(metric.compute_value(columns["none"]))


def test_resampled_columns_keep_uniqueness_unbiased():
    """Rows drawn twice by a bootstrap are not the model's duplicates."""
    columns = metrics.columns([row(text=f"{residue}>") for residue in RESIDUES], [], Task())
    drawn = np.zeros(len(RESIDUES), int)
    assert metrics.mean_of("distinct")({name: column[drawn] for name, column in columns.items()}) == 1


# simulation


def sequences(folder, population: str, seed: int, **size) -> dict[str, str]:
    files = simulate.simulate(Simulation(**size), population, seed, folder)
    return {header: s.decode() for _, _, header, s in read_fasta(folder / files["fasta"], Ledger())}


def test_a_simulation_is_the_same_bytes_again_and_other_bytes_with_another_seed(tmp_path):
    def content(folder, seed):
        [name] = simulate.simulate(Simulation(n=20, families=5), "general", seed, tmp_path / folder).values()
        return (tmp_path / folder / name).read_bytes()

    assert content("a", 1) == content("b", 1) != content("c", 2)
    assert gzip.decompress(content("a", 1)).startswith(b">UniRef50_SIMG000001 Simulated protein of family ")


def test_a_simulation_is_as_large_as_asked_in_unirefs_format(tmp_path):
    found = sequences(tmp_path, "domain", 1, n=60, families=20, min_length=50, max_length=70)
    assert len(found) == 60
    assert all(50 <= len(s) <= 70 and not set(s) - set(RESIDUES) for s in found.values())
    headers = [build.UNIREF.fullmatch(header) for header in found]
    assert all(headers) and all(header["tax_id"] for header in headers)
    assert len({header["name"] for header in headers}) == 20


def test_the_populations_share_no_record(tmp_path):
    general, domain = (sequences(tmp_path / p, p, 1, n=100, families=20) for p in ("general", "domain"))
    assert not {h.split()[0] for h in general} & {h.split()[0] for h in domain}
    assert not set(general.values()) & set(domain.values())


def test_unseen_families_of_the_domain_are_predicted_better_after_learning_from_the_domain(tmp_path):
    """Pairs of neighbours, learnt on some families and scored on others: what an adapter can gain at the least."""

    def halves(population):
        found = sequences(tmp_path / population, population, 1, n=300, families=150)
        family = {header: int(header.split(" n=")[0].rsplit(None, 1)[1]) for header in found}
        return [[s + ">" for h, s in found.items() if (family[h] <= 100) is train] for train in (True, False)]

    def nll(train, test):
        pairs, singles = Counter(), Counter()
        for s in train:
            pairs.update(pairwise(s))
            singles.update(s[:-1])
        cost = [-math.log((pairs[a, b] + 1) / (singles[a] + 21)) for s in test for a, b in pairwise(s)]
        return sum(cost) / len(cost)

    (general, general_test), (domain, domain_test) = halves("general"), halves("domain")
    assert nll(domain, domain_test) < nll(general, domain_test) - 0.1
    assert nll(general, general_test) < nll(domain, general_test) - 0.1
    unigram = np.array(list(Counter("".join(domain_test)).values()), float)
    assert nll(domain, domain_test) < -(unigram / unigram.sum() * np.log(unigram / unigram.sum())).sum() - 0.1
