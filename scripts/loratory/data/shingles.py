"""Texts that say nearly the same: by the runs of words (shingles) that they share, found quickly or found all.

The similarity of two texts is the Jaccard index of their sets of shingles (Broder 1997,
doi:10.1109/SEQUEN.1997.666900).
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from hashlib import blake2b

import numpy as np

RUN = 5  # words of a shingle
HASHES, MISSED = 128, 1e-3  # of a text; how many pairs at the threshold may be missed, for `link_similar`
# Scripts that put no blanks between words: each of their letters counts as a word.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
WORD = re.compile(f"[{UNSPACED}]|[^\\W{UNSPACED}]+")


def split_words(text: str) -> list[str]:
    """Words in lower case, without punctuation; of a text without letters and digits, what stands between blanks."""
    folded = text.casefold()
    return WORD.findall(folded) or folded.split()


def shingle_hashes(words: Sequence[str]) -> np.ndarray:
    """Sorted 64-bit hashes of the different shingles; of fewer words than RUN, of all of them together."""
    runs = {" ".join(words[at : at + RUN]) for at in range(max(1, len(words) - RUN + 1))}
    digests = b"".join(blake2b(run.encode(), digest_size=8).digest() for run in runs)
    return np.sort(np.frombuffer(digests, "<u8"))


def jaccard_index(one: np.ndarray, other: np.ndarray) -> float:
    """Of two sorted sets without repeats."""
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / (len(one) + len(other) - common)


def link_similar(sets: Sequence[np.ndarray], least: float) -> Iterator[tuple[int, int]]:
    """Yields pairs of sets with a Jaccard index of at least `least`, so that nearly all such sets are connected.

    Sets whose minhashes agree in a band of them are compared (locality-sensitive hashing: Indyk and Motwani 1998,
    doi:10.1145/276698.276876). A set that is almost an earlier one is not compared with later ones, which would be
    compared with that: a thousand copies with a word changed take no million comparisons.
    """
    rows, almost = band_rows(least), (3 + least) / 4
    signatures = np.array([minhash_signature(each) for each in sets]).reshape(len(sets), HASHES)
    for start in range(0, HASHES - rows + 1, rows):
        bands: dict[bytes, list[int]] = defaultdict(list)
        for i, signature in enumerate(signatures):
            band = bands[signature[start : start + rows].tobytes()]
            similar = {other: jaccard_index(sets[i], sets[other]) for other in band}
            yield from ((other, i) for other, similarity in similar.items() if similarity >= least)
            if max(similar.values(), default=0.0) < almost:
                band.append(i)


def band_rows(least: float) -> int:
    """The most minhashes in a band by which no more than MISSED of the pairs at the threshold agree in no band."""
    fitting = (rows for rows in range(HASHES, 1, -1) if (1 - least**rows) ** (HASHES // rows) <= MISSED)
    return next(fitting, 1)


def minhash_signature(hashes: np.ndarray) -> np.ndarray:
    """(HASHES,) the least of the hashes in each of as many orders: SplitMix64's mixer (Steele et al. 2014,
    doi:10.1145/2660193.2660195) of the hash and the order's number."""
    mixed = hashes ^ (np.arange(1, HASHES + 1, dtype=np.uint64)[:, None] * np.uint64(0x9E3779B97F4A7C15))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return (mixed ^ (mixed >> np.uint64(31))).min(1)


def find_similar(
    queries: Sequence[np.ndarray], others: Sequence[np.ndarray], least: float
) -> Iterator[tuple[int, int, float]]:
    """Yields `(query, other, Jaccard index)` of all pairs with an index of at least `least`, by an inverted index.

    Sets of such a pair share one of the few rarest shingles of each (prefix filter: Chaudhuri et al. 2006,
    doi:10.1109/ICDE.2006.9), so only these are looked up; what is found is compared whole.
    """
    names, counts = np.unique(np.concatenate([*queries, *others, np.array([], np.uint64)]), return_counts=True)

    def rarest_hashes(hashes: np.ndarray) -> list[int]:
        order = np.lexsort((hashes, counts[np.searchsorted(names, hashes)]))
        # a hair less than the threshold: rounding must not hide a pair that stands exactly on it
        return hashes[order][: len(hashes) - math.ceil(least * len(hashes) - 1e-9) + 1].tolist()

    places: dict[int, list[int]] = defaultdict(list)
    for j, hashes in enumerate(others):
        for each in rarest_hashes(hashes):
            places[each].append(j)
    for i, hashes in enumerate(queries):
        for j in sorted({j for each in rarest_hashes(hashes) for j in places.get(each, ())}):
            similarity = jaccard_index(hashes, others[j])
            if similarity >= least:
                yield i, j, similarity
