"""From dataset folders to examples: what training and evaluation read."""

from loratory import registry
from loratory.data.splits import position
from loratory.domains.contract import Example
from loratory.domains.dataset import read_split


def read_records(folder, split: str, limit: int | None = None, seed: int = 0) -> list[dict]:
    """The records of a split, or the `limit` with the smallest id hashes, in id order."""
    records = read_split(folder, split)
    if limit is None or len(records) <= limit:
        return records
    kept = sorted(records, key=lambda record: (position(record["id"], seed), record["id"]))[:limit]
    return sorted(kept, key=lambda record: record["id"])


def examples(domain: str, records: list[dict], task, family: str) -> list[Example]:
    """How a domain puts records to a base of a family."""
    return registry.load("domain", domain, "task").examples(records, task, family)
