"""From dataset folders to examples: what training and evaluation read."""

from loratory import registry
from loratory.data.splits import smallest
from loratory.domains.contract import Example
from loratory.domains.dataset import read_split


def read_records(folder, split: str, limit: int | None = None, seed: int = 0) -> list[dict]:
    """The records of a split, or the `limit` with the smallest id hashes, in id order."""
    return smallest(read_split(folder, split), limit, seed)


def examples(domain: str, records: list[dict], task, family: str) -> list[Example]:
    """How a domain puts records to a base of a family."""
    return registry.load("domain", domain, "task").examples(records, task, family)
