"""What a system answers to questions, and what that takes; systems of one base may answer in the same passes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import PreTrainedModel

from loratory.bases.core import IGNORED, Encoded
from loratory.bases.decoding import Sampling
from loratory.data.audio import RATE, clip_samples
from loratory.data.batching import batches_by_length
from loratory.domains.contract import ROW
from loratory.errors import InputError
from loratory.mixers.core import Mixture
from loratory.mixers.generation import StepsByShape

if TYPE_CHECKING:
    from loratory.bases.core import Base
    from loratory.bases.options import Decoding
    from loratory.domains.contract import Example, TaskOptions
    from loratory.serving.adapters import AdapterSet


@dataclass
class Cost:
    """What a system's predictions took.

    Attributes:
        read, reading: positions that were put through it where it scores or chooses, without padding; seconds for it.
        written, writing: tokens of the texts it wrote, as the tokenizer cuts them; seconds for it, prompts included.
        audio: seconds of sound that these are transcripts of; `writing` over them is the real-time factor.
        memory: bytes on the GPU at the peak, all that is held included; None on a CPU.
        systems: the most that shared a pass, whose seconds each has an equal part of; 1 of a system that was alone.
    """

    read: int = 0
    reading: float = 0.0
    written: int = 0
    writing: float = 0.0
    audio: float = 0.0
    memory: int | None = None
    systems: int = 1

    def __add__(self, other: Cost) -> Cost:
        memory = max(filter(None, (self.memory, other.memory)), default=None)
        reading, writing = self.reading + other.reading, self.writing + other.writing
        audio = self.audio + other.audio
        systems = max(self.systems, other.systems)
        return Cost(self.read + other.read, reading, self.written + other.written, writing, audio, memory, systems)


Answers = tuple[list[dict[str, Any]], Cost]  # the rows of a system, and what they took


def predict_examples(
    base: Base,
    model: torch.nn.Module,
    questions: Sequence[Example],
    wanted: Sequence[str],
    task: TaskOptions,
    evaluation: Any,
    seed: int,
) -> Answers:
    """One row for each record, in the order of first appearance; windows of one record are averaged in log odds."""
    return predict_together(base, model, [(None, seed)], questions, wanted, task, evaluation)[0]


@torch.no_grad()
def predict_together(
    base: Base,
    model: torch.nn.Module,
    systems: Sequence[tuple[str | None, int]],
    questions: Sequence[Example],
    wanted: Sequence[str],
    task: TaskOptions,
    evaluation: Any,
    adapters: AdapterSet | None = None,
) -> list[Answers]:
    """As `predict_examples`, of several systems that share the model's passes.

    A batch has the questions that it has for one system, so often as the budget allows: what a system says does not
    depend on the others.

    Args:
        systems: of each, its name in `adapters` (None: the bare base), and the seed of what it draws. A single one
            needs no set of adapters: the model is asked as it is.
    """
    items = encode_questions(base, questions, evaluation.decoding, written={*wanted} == {"text"})
    rows: list[list[dict[str, Any]]] = [
        [dict.fromkeys(ROW) | {"id": q.id, "group": q.group, "reference": q.asked or q.target} for q in questions]
        for _ in systems
    ]
    costs, in_place = [Cost() for _ in systems], None if adapters else steps_in_place(base, model)
    on_gpu = base.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(base.device)
    for batch in batches_by_length([item.length for item in items], evaluation.batch_tokens):
        part = [items[i] for i in batch]
        room = evaluation.batch_tokens // (len(part) * max(item.length for item in part))
        for start in range(0, len(systems), max(1, room)):
            some = systems[start : start + max(1, room)]
            names = [name for name, _ in some for _ in part]
            first, *others = (seed * 1_000_003 + batch[0] for _, seed in some)
            sampling = Sampling(first, evaluation.temperature, evaluation.top_p, others=tuple(others))
            choices, limit, asked = questions[batch[0]].choices, task.max_new_tokens, part * len(some)
            for output in wanted:
                started = perf_counter()
                with adapters.use_rows(names) if adapters else nullcontext():
                    filled = run_output(
                        base, model, output, asked, choices, limit, sampling, in_place, evaluation.decoding
                    )
                seconds = (perf_counter() - started) / len(some)
                for place in range(len(some)):
                    own = filled[place * len(part) : (place + 1) * len(part)]
                    spent = measure_cost(base, output, part, own, seconds)
                    costs[start + place] += replace(spent, systems=len(some))
                    for i, columns in zip(batch, own):
                        rows[start + place][i] |= columns
    if on_gpu:
        memory = torch.cuda.max_memory_allocated(base.device)
        costs = [replace(cost, memory=memory) for cost in costs]
    odds = [[row.pop("odds", None) for row in each] for each in rows]
    if "choice" in wanted:
        rows = [merge_windows(each, cast(list[float], own)) for each, own in zip(rows, odds)]
    return list(zip(rows, costs))


def encode_questions(
    base: Base, questions: Sequence[Example], decoding: Decoding, written: bool = False
) -> list[Encoded]:
    """The questions as the base reads them.

    Args:
        written: answers are written and no target is scored, so that a target without room is left out.

    Raises:
        InputError: as `Base.encode_question`.
    """
    found = []
    for question in questions:
        try:
            found.append(base.encode_question(question, decoding))
        except InputError as error:
            if error.reason != "too_long" or not written:
                raise
            found.append(base.encode_question(replace(question, target=""), decoding))
    return found


def steps_in_place(base: Base, model: torch.nn.Module) -> StepsByShape | None:
    """Steps that a GPU replays while a causal model writes; None elsewhere, and where its attention forbids them."""
    if base.family != "causal" or base.device.type != "cuda":
        return None
    try:
        return StepsByShape(cast(PreTrainedModel | Mixture, model))
    except InputError:
        return None


def run_output(
    base: Base,
    model: torch.nn.Module,
    output: str,
    items: list[Encoded],
    choices: tuple[str, ...],
    limit: int,
    sampling: Sampling,
    in_place: StepsByShape | None = None,
    decoding: Decoding | None = None,
) -> list[dict]:
    """One output for each item: the columns that it fills, or `odds` of the second choice in nats."""
    if output == "nll":
        return [{"nll": nll, "tokens": tokens} for nll, tokens in base.nll(model, items)]
    if output == "choice":
        logs = base.choice(model, items, choices).double()
        return [{"odds": odds} for odds in (logs[:, 1] - logs[:, 0]).tolist()]
    return base.text_columns(model, items, limit, sampling if output == "sample" else None, in_place, decoding)


def measure_cost(base: Base, output: str, items: Sequence[Encoded], filled: Sequence[dict], seconds: float) -> Cost:
    """What one output of one system took."""
    if output in ("text", "sample"):
        texts = [columns["text"] for columns in filled]
        if items[0].alphabet:  # each letter is a token
            return Cost(written=sum(map(len, texts)), writing=seconds)
        written = sum(len(base.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)
        audio = sum(clip_samples(item.audio) for item in items if item.audio) / RATE
        return Cost(written=written, writing=seconds, audio=audio)
    lengths = map(prompt_length if output == "choice" else base.scoring_positions, items)
    return Cost(read=sum(lengths), reading=seconds)


def prompt_length(item: Encoded) -> int:
    return item.length - sum(label != IGNORED for label in item.labels)


def merge_windows(rows: list[dict], odds: list[float]) -> list[dict]:
    """Windows of one record as one row with the probability of their mean log odds."""
    of: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        of.setdefault(row["id"], []).append(i)
    result = []
    for indices in of.values():
        odd = sum(odds[i] for i in indices) / len(indices)
        result.append(rows[indices[0]] | {"p": 1 / (1 + math.exp(-max(-700.0, min(700.0, odd))))})
    return result
