"""Which split a group belongs to, and whether two splits share anything."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from loratory.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from loratory.data.records import Records

Record = TypeVar("Record", bound=Mapping)
BLOCK = 1 << 20  # hashes that are sorted at once

SPLITS = ("train", "gate", "valid", "test")
FEWEST_RECORDS, FEWEST_GROUPS = 10, 3  # of a test split behind a printed number, if the config says nothing else
PROTECTED = ("test", "valid", "gate", "train")  # a record that leaks is dropped from the later of two splits


def hash_position(key: str, seed: int) -> float:
    """A number in [0, 1) that depends on nothing but `key` and `seed`; equal on every machine."""
    started = started_hash(seed).copy()
    started.update(key.encode())
    return int.from_bytes(started.digest(), "big") * 2.0**-64  # exact as a quotient is, and a third faster


@cache
def started_hash(seed: int) -> blake2b:
    return blake2b(digest_size=8, salt=seed.to_bytes(8, "little"))


def sample_by_hash(records: Sequence[Record], limit: int | None, seed: int) -> list[Record]:
    """The `limit` records with the smallest id hashes, in id order: the same ones in whatever order they came."""
    order = sorted(records, key=lambda record: (hash_position(record["id"], seed), record["id"]))
    return sorted(order[:limit], key=lambda record: record["id"])


def assign_splits(groups: Iterable[str], fractions: Mapping[str, float], seed: int, where: Path | str) -> list[str]:
    """The split of each record, decided by its group alone.

    Groups are ordered by `hash_position` and cut where the running count of *records* reaches each fraction, so that
    file order is irrelevant and splits keep their share even when groups are few and unequal.

    Raises:
        InputError: there are too few groups to fill every split.
    """
    import numpy as np  # the config needs this module, and is read without

    hashes = np.fromiter((hash_position(group, seed) for group in groups), float)
    _, members, sizes = np.unique(hashes, return_inverse=True, return_counts=True)
    wanted = [split for split in PROTECTED if fractions[split] > 0]
    if len(sizes) < len(wanted):
        largest = max(sizes, default=0) / max(1, len(hashes))
        raise InputError(
            where,
            f"{len(sizes)} groups cannot fill {len(wanted)} splits; the largest holds {largest:.0%} of the records",
            expected="at least one group a split",
            fix="give more data, or loosen what makes a group",
            reason="degenerate_split",
        )
    home = np.empty(len(sizes), np.int8)
    done, at = 0, 0
    bounds = [sum(fractions[s] for s in wanted[: i + 1]) * len(hashes) for i in range(len(wanted))]
    for index, size in enumerate(sizes.tolist()):
        left_groups = len(sizes) - index
        home[index] = at
        done += size
        full = done >= bounds[at]
        needed = len(wanted) - 1 - at == left_groups - 1  # the splits after this one need every group left
        if at < len(wanted) - 1 and (full or needed):
            at += 1
    return [wanted[place] for place in home[members].tolist()]


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


def count_shared(parts: "Mapping[str, Records]", column: str) -> int:
    """How many texts of `column`, but "", occur in more than one split."""
    import numpy as np

    hashes = np.concatenate([distinct_hashes(part, column) for part in parts.values()])
    hashes.sort()
    again = hashes[1:] == hashes[:-1]
    return int(np.count_nonzero(again) - np.count_nonzero(again[1:] & again[:-1]))


def distinct_hashes(records: "Records", column: str) -> "np.ndarray":
    """(n,) one number for each text of `column`, but "": millions of texts would fill memory."""
    import numpy as np

    hashes, found = map(hash, filter(None, records.texts(column))), np.empty(0, np.int64)
    while len(block := np.fromiter(islice(hashes, max(BLOCK, len(found))), np.int64)):
        found = np.concatenate([found, block])
        found.sort()  # np.unique hashes integers since NumPy 2.3, which takes fifty times as long
        found = found[np.append(True, found[1:] != found[:-1])]
    return found
