"""Systems that answer together: the base, adapters and their cuts share batches, each row with its own adapter.

Most is gained where texts are written: a step costs little more for many rows than for a few, as it reads the base's
weights once. Adapters whose change is not of low rank, and mixtures, answer alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratory.adapters.ranks import cut_adapter
from loratory.domains.examples import domain_examples
from loratory.evaluation.answers import Answers, Cost, predict_together
from loratory.evaluation.ranking import rank_row
from loratory.evaluation.systems import (
    AnswerKey,
    System,
    TrainedModels,
    answer_key,
    is_evaluated,
    ranks_candidates,
    split_outputs,
)
from loratory.mixers.store import open_expert
from loratory.serving.adapters import AdapterSet, refusal_reason

if TYPE_CHECKING:
    from loratory.adapters.deltas import Adapter
    from loratory.bases.core import Base
    from loratory.domains.contract import Example, TaskOptions

TOGETHER = 64  # systems on a base at once: 64 adapters of rank 8 on a base of 135 M weights take 0.6 GB
REPLAYED = 5  # times as fast as a shared step is one of a system alone that a GPU replays (benchmarks/RESULTS.md)


@dataclass(frozen=True)
class Sharer:
    """A system that can share batches: `adapter`, from `folder`, on the base; the bare base without."""

    system: System
    seed: int
    adapter: Adapter | None = None
    folder: Path | str = ""

    @property
    def row_name(self) -> str | None:
        """What its rows are called by."""
        return f"{self.system.name}, seed {self.seed}" if self.adapter else None


@dataclass(frozen=True)
class SharedBase:
    """A base that carries the adapters of several systems, and what it is asked with."""

    base: Base
    adapters: AdapterSet
    domain: str
    task: TaskOptions
    evaluation: Any

    def predict(self, asked: Iterable[Sharer], questions: Sequence[Example], wanted: Sequence[str]) -> list[Answers]:
        systems = [(one.row_name, one.seed) for one in asked]
        given = self.task, self.evaluation, self.adapters
        return predict_together(self.base, self.base.model, systems, questions, wanted, *given)

    def answer_split(
        self, split: str, questions: Sequence[Example], asked: Mapping[AnswerKey, Sharer]
    ) -> dict[AnswerKey, Answers]:
        """The rows of each system on one split, and their `Cost`."""
        found = {}
        answers = self.predict(asked.values(), questions, split_outputs(self.base, self.domain, self.task, split))
        for (key, one), (rows, cost) in zip(asked.items(), answers):
            found[key] = [row_label(split, one) | row for row in rows], cost
        print(f"{self.domain}: {len(asked)} systems answered {len(questions)} {split} questions together", flush=True)
        return found

    def rank_candidates(
        self, candidates: Sequence[list[dict]], asked: Mapping[AnswerKey, Sharer]
    ) -> dict[AnswerKey, Answers]:
        """The rows of each system on the split "rank", and their `Cost`; each candidate is a question."""
        found: dict[AnswerKey, Answers] = {key: ([], Cost()) for key in asked}
        for records in candidates:
            questions = domain_examples(self.domain, records, self.task, self.base.family)
            answers = self.predict(asked.values(), questions, ("choice",))
            for (key, one), (rows, cost) in zip(asked.items(), answers):
                ranked, spent = found[key]
                found[key] = [*ranked, row_label("rank", one) | rank_row(rows)], spent + cost
        print(f"{self.domain}: {len(asked)} systems ranked the candidates of {len(candidates)} users together")
        return found


def row_label(split: str, sharer: Sharer) -> dict[str, str]:
    return {"split": split, "system": sharer.system.name, "kind": sharer.system.kind}


def answer_together(
    base: Base,
    domain: str,
    trained: Mapping[int, TrainedModels],
    sets: Mapping[str, Sequence[Example]],
    candidates: Sequence[list[dict]],
    task: TaskOptions,
    evaluation: Any,
) -> dict[AnswerKey, Answers]:
    """What systems say that share batches, on all that they are asked about; nothing of those that answer alone.

    Args:
        sets: {split: its examples}. candidates: records of all candidates of each question: the split "rank".
    """
    found: dict[AnswerKey, Answers] = {}
    if not base.keeps_rows(evaluation.decoding):
        return found
    sharers, too_few = iterate_sharers(base, domain, trained), 1 if base.device.type == "cpu" else REPLAYED
    while len(some := list(islice(sharers, TOGETHER))) > too_few:
        with put_adapters_on(base, some) as adapters:
            shared = SharedBase(base, adapters, domain, task, evaluation)
            for split, questions in sets.items():
                asked = [one for one in some if is_evaluated(split, one.system, domain)]
                found |= shared.answer_split(split, questions, select_unanswered(asked, split, found))
            if candidates:
                asked = [one for one in some if ranks_candidates(one.system)]
                found |= shared.rank_candidates(candidates, select_unanswered(asked, "rank", found))
    return found


@contextmanager
def put_adapters_on(base: Base, sharers: Sequence[Sharer]) -> Iterator[AdapterSet]:
    """Inside, the base carries the sharers' adapters."""
    changes = {one.row_name: one.adapter for one in sharers if one.row_name and one.adapter}
    adapters = AdapterSet(base.model, changes, {one.row_name: one.folder for one in sharers if one.row_name})
    try:
        yield adapters
    finally:
        adapters.remove()


def select_unanswered(
    asked: Sequence[Sharer], split: str, answered: Mapping[AnswerKey, Any]
) -> dict[AnswerKey, Sharer]:
    """By what they answer to, each once: the bare base is the same whatever the seed."""
    keys = {answer_key(one.system, split, one.seed): one for one in asked}
    return {key: one for key, one in keys.items() if key not in answered}


def iterate_sharers(base: Base, domain: str, trained: Mapping[int, TrainedModels]) -> Iterator[Sharer]:
    """Systems of all seeds that can share batches; those that cannot are named in the log."""
    for seed, made in trained.items():
        if not base.heads:  # predictions of a head that is not trained mean nothing
            yield Sharer(System(("base",), "base", base.model), seed)
        for name in (*made.adapters, *made.cuts):
            adapter, folder = open_adapter(base, made, name), made.folder(name)
            if reason := refusal_reason(base.model, adapter):
                print(f"{domain}: {name} answers alone: {reason}", flush=True)
            else:
                system = System((name,), "cut" if name in made.cuts else "adapter", base.model)
                yield Sharer(system, seed, adapter, folder)


def open_adapter(base: Base, made: TrainedModels, name: str) -> Adapter:
    """An adapter, or what is cut of one.

    Raises:
        InputError: it was trained on another base, or its folder is damaged.
    """
    adapter = open_expert(made.folder(name), base.fingerprint)
    return cut_adapter(adapter, made.cuts[name][1]) if name in made.cuts else adapter
