"""A record in numbers: the item that is asked about and the user's past, as recommenders read them."""

from functools import lru_cache
from hashlib import blake2b

from loratory.domains.contract import Context

UNIT = 100  # values are hundredths of a star


def record_context(record: dict) -> Context:
    """All events that the record carries, however few of them a prompt shows.

    The rating that is to be told, and all that came later, are no part of it.
    """
    items, stars = record["history_items"], record["history_stars"]
    past = ((item_key(item), round(UNIT * value)) for item, value in zip(items, stars))
    return ((item_key(record["item"]), 0), *past)


def past_events(record: dict) -> list[list]:
    """The [timestamp, title, stars] that a record carries, oldest first."""
    return [*map(list, zip(*(record[f"history_{name}"] for name in ("times", "titles", "stars"))))]


@lru_cache(1 << 20)
def item_key(name: str) -> int:
    """A whole number above 0 of 63 bits, the same everywhere."""
    return (int.from_bytes(blake2b(name.encode(), digest_size=8).digest()) >> 1) or 1
