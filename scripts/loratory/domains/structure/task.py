"""A chain as a question to a folding base: its sequence. The answer is no text; `evaluation.assess` compares it."""

from loratory.domains.contract import Example, no_baselines
from loratory.domains.structure.sources import Task

baselines = no_baselines


def examples(records: list[dict], task: Task, family: str) -> list[Example]:
    return [Example(r["id"], r["group"], r["sequence"], "") for r in records]
