"""From dataset folders to examples: what training and evaluation read."""

from dataclasses import replace

from loratory import registry
from loratory.data.splits import smallest
from loratory.domains.contract import Example
from loratory.domains.dataset import read_split
from loratory.errors import InputError


def read_records(folder, split: str, limit: int | None = None, seed: int = 0) -> list[dict]:
    """The records of a split, or the `limit` with the smallest id hashes, in id order."""
    return smallest(read_split(folder, split), limit, seed)


def examples(domain: str, records: list[dict], task, family: str) -> list[Example]:
    """How a domain puts records to a base of a family.

    Raises:
        InputError: a chat is asked for with a base of a family that has none.
    """
    return in_chat(domain, registry.load_module("domain", domain, "task").examples(records, task, family), task, family)


def samples(domain: str, n: int, task, family: str) -> list[Example]:
    """What a base is to continue freely, `n` times."""
    return in_chat(domain, registry.load_module("domain", domain, "task").samples(n, task, family), task, family)


def in_chat(domain: str, asked: list[Example], task, family: str) -> list[Example]:
    if not task.chat:
        return asked
    if family != "causal":
        where, fix = f"domains.{domain}.task.chat", "set `chat: false`"
        raise InputError(where, "only causal bases have chat templates", family, "a base of family causal", fix)
    return [replace(example, chat=True) for example in asked]
