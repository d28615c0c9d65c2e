"""Full ranking: the item that a user liked next, among all items that are new to this user."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from loratory.data.splits import sample_by_hash

OF_ITEM = ("item", "title", "item_ratings", "item_mean")


def ranking_lists(parts: Mapping[str, list[dict]], users: int) -> Iterator[list[dict]]:
    """One list of records for each of some test users: the first one of test that the user liked, then the same user
    at the same second with every other item of any split, but those that the user is known to have rated by then.

    How often and how well an item was rated is what its latest record of an earlier second tells.
    """
    in_time = sorted((record for part in parts.values() for record in part), key=time_key)
    own: dict[str, list[dict]] = defaultdict(list)
    items: dict[str, dict[str, Any]] = {}
    for record in in_time:
        own[record["user"]].append(record)
        unrated = {"item_ratings": 0, "item_mean": 0.0}
        items.setdefault(record["item"], {name: record[name] for name in OF_ITEM} | unrated)
    told = 0
    for target in sorted(sample_by_hash(first_liked(parts["test"]), users, 0), key=time_key):
        while told < len(in_time) and in_time[told]["timestamp"] < target["timestamp"]:
            items[in_time[told]["item"]] = item_after(in_time[told])
            told += 1
        rated = rated_items(own[target["user"]], target["timestamp"])
        others = [items[item] for item in sorted(items) if item not in rated]
        yield [target, *(target | other | {"id": f"{target['id']}|{other['item']}"} for other in others)]


def time_key(record: dict) -> tuple[int, str]:
    return record["timestamp"], record["id"]


def first_liked(test: Sequence[dict]) -> list[dict]:
    """The first record of each user that is a like."""
    found: dict[str, dict] = {}
    for record in sorted(test, key=time_key):
        if record["label"]:
            found.setdefault(record["user"], record)
    return list(found.values())


def item_after(record: dict) -> dict[str, Any]:
    """What is known of an item once a record of it is past."""
    n, mean = record["item_ratings"], record["item_mean"]
    known = {name: record[name] for name in OF_ITEM}
    return known | {"item_ratings": n + 1, "item_mean": (n * mean + record["rating"]) / (n + 1)}


def rated_items(records: Sequence[dict], second: int) -> set[str]:
    """What a user rated up to a second, as far as his records and their histories tell."""
    past = [record for record in records if record["timestamp"] <= second]
    return {item for record in past for item in (record["item"], *record["history_items"])}
