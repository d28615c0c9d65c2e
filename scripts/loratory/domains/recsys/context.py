"""A record in numbers: the item that is asked about and the user's past, as recommenders read them."""

import json
from functools import lru_cache
from hashlib import blake2b

from loratory.domains.contract import Context

UNIT = 100  # values are hundredths of a star


def record_context(record: dict) -> Context:
    """All events that the record carries, however few of them a prompt shows.

    The rating that is to be told, and all that came later, are no part of it.
    """
    past = ((item_key(title), round(UNIT * stars)) for _, title, stars in past_events(record))
    return ((item_key(record["title"]), 0), *past)


def past_events(record: dict) -> list[list]:
    """The [timestamp, title, stars] that a record carries, oldest first."""
    return json.loads(record["history"])


@lru_cache(1 << 20)
def item_key(name: str) -> int:
    """A whole number above 0 of 63 bits, the same everywhere."""
    return (int.from_bytes(blake2b(name.encode(), digest_size=8).digest()) >> 1) or 1
