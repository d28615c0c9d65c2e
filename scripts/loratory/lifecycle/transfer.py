"""From inputs without answers to an adapter of another base: a source labels them, the target learns from that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from loratory.adapters import core
from loratory.adapters.deltas import Adapter
from loratory.bases.core import Base, Encoded
from loratory.data.batching import batches_by_length
from loratory.domains.contract import Example
from loratory.errors import InputError
from loratory.lifecycle import inventing
from loratory.lifecycle.contract import Arm
from loratory.lifecycle.inventing import Invention, RealInputs
from loratory.lifecycle.likeness import nearest_likeness
from loratory.lifecycle.room import Room
from loratory.lifecycle.sequence import JointTraining
from loratory.training.encoding import split_places
from loratory.training.fit import Loss, MicroBatch, step_seed
from loratory.training.session import AdapterSession


@dataclass(frozen=True)
class Question:
    """What is known of a domain before anything is invented.

    Attributes:
        seeds: the real examples that may be shown. real: digests of all others.
        spoken: what is asked is a clip, and nothing is invented. is_open: nothing is asked, see `inventing.is_open`.
        known: real examples that a discriminator may learn from; of clips, those that no adapter learns from, their
            transcripts taken away.
    """

    domain: str
    seeds: list[Example]
    real: RealInputs
    spoken: bool
    is_open: bool
    known: list[Example]


def read_question(room: Room, domain: str, number: int) -> Question:
    """Raises:
    InputError: train has too few records.
    """
    train = inventing.real_examples(room, domain, "train")
    seeds = inventing.choose_seeds(train, number, room.seed)
    if len(seeds) < number:
        where = f"lifecycle.{room.name}.seed_examples"
        raise InputError(where, f"{domain} has too few train records", len(seeds), f"at least {number}")
    spoken = bool(seeds[0].audio)
    digest = inventing.clip_digest if spoken else text_digest
    known = train
    if spoken:
        known = [replace(each, target="") for each in inventing.real_examples(room, domain, "gate")]
    valid = inventing.real_examples(room, domain, "valid")
    real = RealInputs([*train, *valid], seeds, digest)
    return Question(domain, seeds, real, spoken, not spoken and inventing.is_open(seeds), known)


def text_digest(example: Example) -> str:
    return inventing.input_digest(inventing.input_text(example))


def check_labels(room: Room, target: Base, questions: Sequence[Question]) -> None:
    """Raises:
    InputError: soft labels of tokens, which the other base does not have.
    """
    source = room.base
    for question in questions:
        seed = question.seeds[0]
        by_letters = bool(seed.alphabet) and source.family == "causal"
        if not (seed.choices or by_letters or source.tokenizer.get_vocab() == target.tokenizer.get_vocab()):
            where, names = f"lifecycle.{room.name}.labels", f"{source.manifest['name']} and {target.manifest['name']}"
            what = f"no soft labels of {question.domain}: the vocabularies of {names} differ"
            raise InputError(where, what, "soft", "`hard`, or two bases of one vocabulary")


def check_generator(room: Room, questions: Sequence[Question], name: str | None) -> None:
    """Raises:
    InputError: a generator is named, and a domain has no inputs that it could invent.
    """
    for question in questions:
        if name is not None and (question.spoken or question.is_open):
            what = "clips are not invented" if question.spoken else "the source itself writes whole records"
            where = f"lifecycle.{room.name}.generator"
            raise InputError(where, f"{question.domain}: {what}", name, fix="leave `generator` out")


def have_same_shapes(one: Base, other: Base, room: Room) -> bool:
    """Whether an adapter of one base fits on the other."""

    def shapes(base: Base) -> dict[str, tuple[int, ...]]:
        layers = core.target_layers(base.model, room.method.target_modules, base.heads)
        heads = core.head_parameters(base.model, base.heads)
        sizes = {name: tuple(core.weight_of(layer).shape) for name, layer in layers.items()}
        return sizes | {name: tuple(parameter.shape) for name, parameter in heads.items()}

    return shapes(one) == shapes(other)


# Inputs.


def invent_for(question: Question, room: Room, source: Adapter, options: Any) -> Invention:
    """What a generator and a discriminator make of a domain's seeds.

    Args:
        room: of the source. source: its adapter. options: those of the procedure.
    """
    domain = question.domain
    wanted = options.inputs or len(room.examples(domain, "train"))

    def draw(stream: int, judge: inventing.Judge, wanted: int, threshold: float) -> Invention:
        shown = [inventing.input_text(each) for each in question.seeds]
        write, most = make_writer(question, room, source, options, stream), options.tries * wanted
        return inventing.invent_inputs(write, judge, shown, question.real.digests, wanted, most, threshold)

    def compute() -> Invention:
        number = min(options.judged, len(question.known))
        real = sorted(question.known, key=text_digest)[:number]
        invented = as_examples(question, draw(1, inventing.take_all, number, 0.0).unfiltered)
        judge = inventing.Discriminator(f"discriminator {domain}", room, real, invented)
        found = draw(0, lambda texts: judge.shares(as_examples(question, texts)), wanted, options.threshold)
        return replace(found, accuracy=judge.accuracy)

    return inventing.recalled(room, f"invention {domain}", compute)


def as_examples(question: Question, texts: Sequence[str]) -> list[Example]:
    """Invented inputs in the form of the seeds."""
    form = replace(question.seeds[0], group="", target="", context=())
    made = [replace(form, id=f"invented-{number}") for number in range(1, len(texts) + 1)]
    if question.is_open:
        return [replace(each, target=text) for each, text in zip(made, texts)]
    return [replace(each, prompt=text) for each, text in zip(made, texts)]


def invented_examples(question: Question, found: Invention, filtered: bool) -> list[Example]:
    return as_examples(question, found.kept if filtered else found.unfiltered)


def make_writer(question: Question, room: Room, source: Adapter, options: Any, stream: int) -> inventing.Writer:
    """The domain's generator; candidates of two streams have nothing to do with each other."""
    seeds = question.seeds
    base = room.base if options.generator is None else room.others[options.generator].base
    if base.family == "masked":
        make = inventing.fill_seeds
        if not question.is_open:
            seeds = [Example(each.id, each.group, "", each.prompt) for each in seeds]
    else:
        make = inventing.continue_prompt if question.is_open else inventing.write_prompts
    write = make(base, seeds, 2 * room.seed + stream, options)

    def write_batch(batch: int) -> list[str | None]:
        with inventing.wear_stored(base, source) if question.is_open else nullcontext():
            return write(batch)

    return write_batch


# Labels.


@dataclass(frozen=True)
class Lesson:
    """Labelled inputs of a domain, as the source reads them and as the target does.

    Attributes:
        examples: with the labels as their targets. choices: those between which all of them are, if any.
    """

    examples: list[Example]
    source: list[Encoded]
    target: list[Encoded]
    choices: tuple[str, ...]

    def measures(self) -> dict[str, float]:
        """Of choices, how many have the second; of answers, how many of them are different."""
        labels = [each.target for each in self.examples]
        found: dict[str, float] = {"records learnt": len(labels)}
        if self.choices:
            return found | {f"labelled{self.choices[1]}": labels.count(self.choices[1]) / len(labels)}
        return found | {"different labels": len({*labels}) / len(labels)}


def make_lesson(room: Room, target: Base, question: Question, inputs: Sequence[Example], source: Adapter) -> Lesson:
    """Inputs with what the source says of them; those of an open question are their own labels.

    Raises:
        InputError: one of them is a real record and no seed; or nothing is left to learn from.
    """
    where = f"lifecycle.{room.name}: {question.domain}"
    question.real.check_none(where, inputs)
    labelled = [*inputs]
    if not question.is_open:
        with inventing.wear_stored(room.base, source):
            limit, budget = room.tasks[question.domain].max_new_tokens, room.recipe.batch_tokens
            labelled = answer_inputs(room.base, inputs, limit, budget)
    lesson = read_lesson(room.base, target, labelled)
    if not lesson.examples:
        what = f"nothing is left of {len(inputs)} inputs to learn from"
        expected, fix = (
            "inputs that the source can label",
            "lower `threshold`, raise `tries`, or take another generator",
        )
        raise InputError(where, what, None, expected, fix, "empty")
    return lesson


def read_lesson(source: Base, target: Base, examples: Sequence[Example]) -> Lesson:
    """Labelled examples, those left out that do not fit into both bases."""
    pairs = [(each, fitting_item(source, each), fitting_item(target, each)) for each in examples]
    kept = [(each, one, other) for each, one, other in pairs if one is not None and other is not None]
    first, second, third = ([*column] for column in zip(*kept)) if kept else ([], [], [])
    return Lesson(first, second, third, examples[0].choices if examples else ())


def fitting_item(base: Base, example: Example) -> Encoded | None:
    try:
        return base.encode(example)
    except InputError as error:
        if error.reason != "too_long":
            raise
        return None


@torch.no_grad()
def answer_inputs(base: Base, examples: Sequence[Example], limit: int, budget: int) -> list[Example]:
    """The examples with what the base's model, as it stands, answers; those left out that it has no answer to.

    Args:
        limit: most tokens of an answer. budget: positions of a batch.
    """
    known = [(example, item) for example in examples if (item := fitting_item(base, example)) is not None]
    answers: dict[int, str] = {}
    for chosen in batches_by_length([item.length for _, item in known], budget):
        items, choices = [known[i][1] for i in chosen], known[chosen[0]][0].choices
        if choices:
            best = base.choice(base.model, items, choices).argmax(-1).tolist()
            answers |= zip(chosen, [choices[i] for i in best])
        else:
            answers |= zip(chosen, base.text(base.model, items, limit))
    return [replace(example, target=answers[i]) for i, (example, _) in enumerate(known) if answers[i]]


# Learning.


class SoftTraining(JointTraining):
    """Learns what the source takes for how likely: −Σ p_source log p over choices, or over tokens at each target.

    The source must stand with its adapter on as long as this learns.
    """

    def __init__(
        self, name: str, room: Room, domains: Sequence[str], source: Base, lessons: Mapping[str, Lesson]
    ) -> None:
        super().__init__(name, room, domains)
        self.source, self.lessons = source, lessons

    def make_hooks(self, domain: str, layers: dict[str, core.AdaptedLinear]) -> AdapterSession:
        own = super().make_hooks(domain, layers)
        self.plans = {each: session.batch_plan(session.items) for each, session in self.sessions.items()}
        return own

    def micro_batches(self, session: AdapterSession, domain: str, step: int) -> list[MicroBatch]:
        numbers = self.room.recipe.batch_numbers(step)
        return [
            self.shares_batch(each, number, part)
            for each in self.every
            for number in numbers
            for part in split_places(self.plans[each](number), self.lessons[each].target, self.room.recipe)
        ]

    def shares_batch(self, domain: str, number: int, chosen: Sequence[int]) -> MicroBatch:
        lesson, draw = self.lessons[domain], step_seed(self.room.seed, number)
        with torch.no_grad():
            shares = log_shares(self.source, [lesson.source[i] for i in chosen], lesson.choices, draw).exp()
        items = self.sessions[domain].augment_items([lesson.target[i] for i in chosen], number)
        return MicroBatch(domain, {"items": items, "draw": draw, "shares": shares}, len(shares), number=number)

    def loss(self, micro: MicroBatch) -> Loss:
        choices = self.lessons[micro.task].choices
        logs = log_shares(self.base, micro.batch["items"], choices, micro.batch["draw"])
        return Loss(-(micro.batch["shares"] * logs).sum(), len(logs))


def log_shares(base: Base, items: Sequence[Encoded], choices: tuple[str, ...], draw: int) -> torch.Tensor:
    """Log probabilities by a base's model as it stands: of the choices `[items, choices]`, or of tokens at each target
    `[targets, tokens]`, of an alphabet its letters."""
    if choices:
        return base.choice(base.model, items, choices)
    return base.target_logits(base.model, base.training_batch(items, draw)).log_softmax(-1)


def learn_lessons(
    name: str, target: Room, lessons: Mapping[str, Lesson], source: Base, adapter: Adapter, labels: str
) -> Iterator[Arm]:
    """The target's adapter that has learnt from labelled inputs.

    Args:
        source, adapter: asked again at every step for soft labels.
    """
    room, domains = replace(target, examples=lambda domain, split: lessons[domain].target), [*lessons]
    if labels == "hard":
        yield from JointTraining(name, room, domains).iterate_arms()
        return
    with inventing.wear_stored(source, adapter):
        yield from SoftTraining(name, room, domains, source, lessons).iterate_arms()


def learn_inputs(
    name: str,
    room: Room,
    target: Room,
    questions: Sequence[Question],
    inputs: Mapping[str, Sequence[Example]],
    adapter: Adapter,
    labels: str,
) -> Iterator[Arm]:
    """As `learn_lessons`, of inputs that the source has yet to label; with what is measured of them."""
    lessons = {own.domain: make_lesson(room, target.base, own, inputs[own.domain], adapter) for own in questions}
    measures = lesson_measures(lessons, questions)
    texts = {own.domain: lesson_texts(lessons[own.domain], own) for own in questions if not own.spoken}
    for arm in learn_lessons(name, target, lessons, room.base, adapter, labels):
        yield replace(arm, measures={**arm.measures, **measures}, invented=texts)


def lesson_measures(lessons: Mapping[str, Lesson], questions: Sequence[Question]) -> dict[str, float]:
    """How many and how various what is learnt from is; and how far from the seeds, which of clips nobody measures."""
    measured = []
    for question in questions:
        lesson = lessons[question.domain]
        found = lesson.measures()
        if not question.spoken:
            shown = [inventing.input_text(each) for each in question.seeds]
            found["distance to seeds"] = 1 - float(np.mean(nearest_likeness(lesson_texts(lesson, question), shown)))
        measured.append(found)
    return inventing.mean_of(measured)


def lesson_texts(lesson: Lesson, question: Question) -> list[str]:
    return [each.target if question.is_open else each.prompt for each in lesson.examples]
