"""From dataset folders to examples: what training and evaluation read."""

from dataclasses import replace
from pathlib import Path
from typing import cast

from loratory import registry
from loratory.domains.contract import Example, SamplingTaskModule, TaskOptions
from loratory.domains.dataset import open_split
from loratory.errors import InputError


def read_records(folder: Path | str, split: str, limit: int | None = None, seed: int = 0) -> list[dict]:
    """The records of a split, or the `limit` with the smallest id hashes, in id order."""
    return [*open_split(folder, split).sample(limit, seed)]


def domain_examples(domain: str, records: list[dict], task: TaskOptions, family: str) -> list[Example]:
    """The examples that a domain makes of records for a base of a family.

    Raises:
        InputError: the task wants a chat, and bases of the family have no chat template.
    """
    module = registry.load_module("domain", domain, "task")
    return chat_examples(domain, module.examples(records, task, family), task, family)


def domain_prompts(domain: str, test: list[dict], n: int, task: TaskOptions, family: str) -> list[Example]:
    """What a base is to continue freely, `n` times; what is asked for may be that of test records."""
    module = cast(SamplingTaskModule, registry.load_module("domain", domain, "task"))
    return chat_examples(domain, module.sample_prompts(test, n, task, family), task, family)


def chat_examples(domain: str, examples: list[Example], task: TaskOptions, family: str) -> list[Example]:
    """The examples, as a user's turns of a chat if the task says so."""
    if not task.chat:
        return examples
    if family != "causal":
        where, fix = f"domains.{domain}.task.chat", "set `chat: false`"
        raise InputError(where, "only causal bases have chat templates", family, "a base of family causal", fix)
    return [replace(example, chat=True) for example in examples]
