"""Which events of a long past a short prompt shows: the latest, or those of items like the one that is asked about.

The second is the retrieval of ReLLa (arXiv:2308.11131) and of RecLoRA's long-short modality retriever
(arXiv:2408.03533): a recommender reads the long past, the language model a few events of it. There items are alike
whose titles a language model's hidden states say to be; here, so that what is shown depends on no base and controls
can read it too, titles that share words and letters in threes.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import sqrt

Event = list  # [timestamp, title, stars]


def similar_events(events: Sequence[Event], title: str, n: int) -> list[Event]:
    """The `n` events whose titles are most like a title, later ones before earlier ones that are as like it; oldest
    first, as they came."""
    order = sorted(range(len(events)), key=lambda i: (title_similarity(events[i][1], title), i), reverse=True)
    return [events[i] for i in sorted(order[:n])]


def title_similarity(first: str, second: str) -> float:
    """Cosine of the sets of two titles' parts, from 0 to 1."""
    a, b = title_parts(first), title_parts(second)
    return len(a & b) / sqrt(len(a) * len(b)) if a and b else 0.0


@lru_cache(1 << 17)
def title_parts(title: str) -> frozenset[str]:
    """Words, and letters in threes within them."""
    words = "".join(letter if letter.isalnum() else " " for letter in title.lower()).split()
    padded = (f"<{word}>" for word in words)
    return frozenset(part for word in padded for part in (word, *(word[i : i + 3] for i in range(len(word) - 2))))
