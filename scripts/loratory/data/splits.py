"""Which split a group belongs to, and whether two splits share anything."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import TypeVar

from loratory.errors import InputError

Record = TypeVar("Record", bound=Mapping)

SPLITS = ("train", "gate", "valid", "test")
PROTECTED = ("test", "valid", "gate", "train")  # a record that leaks is dropped from the later of two splits


def hash_position(key: str, seed: int) -> float:
    """A number in [0, 1) that depends on nothing but `key` and `seed`; equal on every machine."""
    started = started_hash(seed).copy()
    started.update(key.encode())
    return int.from_bytes(started.digest(), "big") / 2**64


@cache
def started_hash(seed: int) -> blake2b:
    return blake2b(digest_size=8, salt=seed.to_bytes(8, "little"))


def sample_by_hash(records: Sequence[Record], limit: int | None, seed: int) -> list[Record]:
    """The `limit` records with the smallest id hashes, in id order: the same ones in whatever order they came."""
    order = sorted(records, key=lambda record: (hash_position(record["id"], seed), record["id"]))
    return sorted(order[:limit], key=lambda record: record["id"])


def assign_splits(groups: Sequence[str], fractions: Mapping[str, float], seed: int, where: Path | str) -> list[str]:
    """The split of each record, decided by its group alone.

    Groups are ordered by `hash_position` and cut where the running count of *records* reaches each fraction, so that
    file order is irrelevant and splits keep their share even when groups are few and unequal.

    Raises:
        InputError: there are too few groups to fill every split.
    """
    sizes: dict[str, int] = {}
    for group in groups:
        sizes[group] = sizes.get(group, 0) + 1
    wanted = [split for split in PROTECTED if fractions[split] > 0]
    if len(sizes) < len(wanted):
        largest = max(sizes.values(), default=0) / max(1, len(groups))
        raise InputError(
            where,
            f"{len(sizes)} groups cannot fill {len(wanted)} splits; the largest holds {largest:.0%} of the records",
            expected="at least one group a split",
            fix="give more data, or loosen what makes a group",
            reason="degenerate_split",
        )
    order = sorted(sizes, key=lambda group: (hash_position(group, seed), group))
    home: dict[str, str] = {}
    done, at = 0, 0
    bounds = [sum(fractions[s] for s in wanted[: i + 1]) * len(groups) for i in range(len(wanted))]
    for index, group in enumerate(order):
        left_groups = len(order) - index
        home[group] = wanted[at]
        done += sizes[group]
        full = done >= bounds[at]
        needed = len(wanted) - 1 - at == left_groups - 1  # the splits after this one need every group left
        if at < len(wanted) - 1 and (full or needed):
            at += 1
    return [home[group] for group in groups]


def connected_components(n: int, links: Iterable[tuple[int, int]]) -> list[int]:
    """Connected components of `n` items: the smallest member's index stands for each item's component."""
    parent = list(range(n))

    def find_root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for a, b in links:
        a, b = find_root(a), find_root(b)
        parent[max(a, b)] = min(a, b)
    return [find_root(i) for i in range(n)]


def links_by_key(*keys: Sequence[str]) -> list[tuple[int, int]]:
    """Links between items that share a value of any of the key columns; empty values link nothing."""
    links: list[tuple[int, int]] = []
    for column in keys:
        last: dict[str, int] = {}
        for i, key in enumerate(column):
            if key in last:
                links.append((last[key], i))
            if key:
                last[key] = i
    return links


def count_shared(splits: Mapping[str, Sequence[Mapping]], column: str) -> int:
    """How many values of `column` occur in more than one split."""
    home: dict = {}
    twice = set()
    for split, records in splits.items():
        for record in records:
            if home.setdefault(record[column], split) != split:
                twice.add(record[column])
    return len(twice)
