"""How like inputs are to others: by the runs of words that they share."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from loratory.data.shingles import RUN, shingle_hashes, split_words

COMMON = 0.5  # share of the others from which on a run is their frame: it says nothing of one


def nearest_likeness(texts: Sequence[str], others: Sequence[str]) -> list[float]:
    """Of each text the largest Jaccard index of its runs of RUN words with those of one of the others.

    Runs that more than COMMON of the others have are left out of both. Of a text with fewer words than RUN, letters
    stand for words.
    """
    runs = [{*shingle_hashes(text_units(text)).tolist()} for text in others]
    counts = Counter(run for own in runs for run in own)
    frame = {run for run, count in counts.items() if len(others) > 1 and count > COMMON * len(others)}
    places: dict[int, list[int]] = defaultdict(list)
    for at, own in enumerate(runs):
        for run in own - frame:
            places[run].append(at)
    found = []
    for text in texts:
        mine = {*shingle_hashes(text_units(text)).tolist()} - frame
        shared = Counter(at for run in mine for at in places.get(run, ()))
        indices = (common / (len(mine) + len(runs[at] - frame) - common) for at, common in shared.items())
        found.append(max(indices, default=0.0))
    return found


def text_units(text: str) -> list[str]:
    words = split_words(text)
    return words if len(words) >= RUN else [*text.casefold()]
