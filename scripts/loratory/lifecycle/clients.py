"""Which training records each client of a federation has: natural groups of them, or shares of every kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, cast

import numpy as np
from torch.utils.data import ConcatDataset, Subset

from loratory.bases.core import Encoded
from loratory.errors import InputError
from loratory.lifecycle.room import Room
from loratory.registry import unknown_name_error
from loratory.training.encoding import EncodedExamples

DRAWS = 1000  # of shares, until every client has a record


def client_examples(
    room: Room, domains: Sequence[str], column: str, clients: int | None, dirichlet: float | None
) -> list[Sequence[Encoded]]:
    """The training examples of each client, in the order of the datasets; all examples of a record stay together.

    Args:
        column: of the records, whose values are dealt out. clients: how many; None: one for each value.
        dirichlet: None: a client has all records of its values. Else it has a share of those of every value, drawn
            from a Dirichlet distribution with this concentration: the smaller, the less alike clients are.

    Raises:
        InputError: no such column, or too few values or records for so many clients.
    """
    where = f"lifecycle.{room.name}"
    splits = [cast(EncodedExamples, room.examples(domain, "train")) for domain in domains]
    values: list[str] = []  # of each record that has examples
    places: list[list[int]] = []  # of those
    for examples, start in zip(splits, accumulate(map(len, splits), initial=0)):
        known = record_values(examples, column, where)
        held: dict[int, list[int]] = {}
        for place, record in enumerate(examples.places[:, 0].tolist(), start):
            held.setdefault(record, []).append(place)
        values += [known[record] for record in held]
        places += held.values()
    clients = len({*values}) if clients is None else clients
    if dirichlet is None:
        dealt = deal_values(values, clients, where)
    else:
        dealt = deal_shares(values, clients, dirichlet, room.seed, where)
    everything = join_examples(splits)
    return [some_examples(everything, [place for record in own for place in places[record]]) for own in dealt]


def join_examples(parts: Sequence[Sequence[Encoded]]) -> Sequence[Encoded]:
    """All of them, one part after the other; none is encoded for it."""
    return cast(Sequence[Encoded], ConcatDataset(cast(Any, parts)))


def some_examples(examples: Sequence[Encoded], places: Sequence[int]) -> Sequence[Encoded]:
    return cast(Sequence[Encoded], Subset(cast(Any, examples), places))


def record_values(examples: EncodedExamples, column: str, where: str) -> list[str]:
    """The value of each record in a column, as text."""
    known = examples.records[:1][0].keys()
    if column not in known:
        raise unknown_name_error(f"{where}.by", f"column of {examples.domain}", column, known)
    return [*map(str, examples.records.column(column).to_pylist())]


def deal_values(values: Sequence[str], clients: int, where: str) -> list[list[int]]:
    """The places of each client's values; whole values go, the most frequent first, to the client that has least."""
    sizes = Counter(values)
    if len(sizes) < clients:
        raise InputError(f"{where}.clients", "more clients than values to deal out", clients, f"at most {len(sizes)}")
    held, owner = [0] * clients, {}
    for value in sorted(sizes, key=lambda value: (-sizes[value], value)):
        owner[value] = held.index(min(held))
        held[owner[value]] += sizes[value]
    return [[place for place, value in enumerate(values) if owner[value] == client] for client in range(clients)]


def deal_shares(values: Sequence[str], clients: int, concentration: float, seed: int, where: str) -> list[list[int]]:
    """The places of each client's shares of every value, drawn anew until each client has one."""
    kinds, random = np.array(values), np.random.default_rng(seed)
    for _ in range(DRAWS):
        dealt: list[list[int]] = [[] for _ in range(clients)]
        for kind in sorted({*values}):
            places = random.permutation(np.flatnonzero(kinds == kind))
            shares = random.dirichlet([concentration] * clients)
            cuts = np.rint(np.cumsum(shares)[:-1] * len(places)).astype(int)
            for own, part in zip(dealt, np.split(places, cuts)):
                own += part.tolist()
        if all(dealt):
            return [sorted(own) for own in dealt]
    what, fix = "the shares leave a client without a record", "take fewer clients, or a larger concentration"
    raise InputError(f"{where}.dirichlet", what, concentration, fix=fix)
