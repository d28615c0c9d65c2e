"""Near-copies are found: all of them by the index, nearly all by minhashes."""

import random

import numpy as np
import pytest

from loratory.data import shingles
from loratory.data.splits import connected_components


def test_words_know_neither_case_nor_punctuation_and_every_script():
    assert shingles.split_words("Don't stop, Ä!") == ["don", "t", "stop", "ä"]
    assert shingles.split_words("今天 3 度") == ["今", "天", "3", "度"]
    assert shingles.split_words("?! …") == ["?!", "…"]


def test_a_short_text_is_one_shingle():
    assert len(shingles.shingle_hashes(["a", "b"])) == len(shingles.shingle_hashes([])) == 1
    assert len(shingles.shingle_hashes(["a", "b", "c", "d", "e", "f"])) == 2


def random_sets(rng: random.Random) -> list[np.ndarray]:
    """Families of sets that share more or less, and strangers."""
    sets = []
    for _ in range(30):
        root = [rng.getrandbits(64) for _ in range(rng.randrange(1, 40))]
        for _ in range(3):
            own = {rng.getrandbits(64) if rng.random() < 0.12 else each for each in root}
            sets.append(np.array(sorted(own), "<u8"))
    return sets


@pytest.mark.parametrize("least", [0.2, 0.5, 0.8, 1.0])
def test_the_index_finds_exactly_the_pairs_that_comparing_all_finds(least):
    sets = random_sets(random.Random(0))
    queries, others = sets[::2], sets[1::2]
    found = {(i, j) for i, j, _ in shingles.find_similar(queries, others, least)}
    every = {
        (i, j)
        for i, one in enumerate(queries)
        for j, other in enumerate(others)
        if len({*one.tolist()} & {*other.tolist()}) >= least * len({*one.tolist()} | {*other.tolist()})
    }
    assert found == every and len(found) > 0


@pytest.mark.parametrize("least", [0.5, 0.8])
def test_minhashes_connect_what_the_index_connects(least):
    sets = random_sets(random.Random(1))
    n = len(sets)
    exact = [(i, j) for i, j, _ in shingles.find_similar(sets, sets, least)]
    assert connected_components(n, shingles.link_similar(sets, least)) == connected_components(n, exact)


def test_a_set_is_linked_to_one_that_resembles_an_earlier_one_too():
    rng = random.Random(2)
    for _ in range(60):
        hashes = [rng.getrandbits(64) for _ in range(113)]
        chain = [np.array(sorted(hashes[start : start + 100]), "<u8") for start in (0, 3, 13)]
        first, second, third = chain
        assert shingles.jaccard_index(first, third) < 0.8 < shingles.jaccard_index(second, third)
        assert connected_components(3, shingles.link_similar(chain, 0.8)) == [0, 0, 0]


def test_bands_miss_few_pairs_at_the_threshold():
    for least in (0.2, 0.5, 0.8, 0.95):
        rows = shingles.band_rows(least)
        assert (1 - least**rows) ** (shingles.HASHES // rows) <= shingles.MISSED
    assert shingles.band_rows(1.0) == shingles.HASHES
