"""A split as a base reads it, encoded when a batch wants it: what a large split costs in memory is its columns.

Of one that is larger still, not even these: it is read and encoded in rounds, each of some records that are drawn.
"""

from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, reduce
from math import ceil
from typing import Any, Self, TypeAlias, overload

import numpy as np

from loratory.bases.checks import check_readable
from loratory.bases.core import Base, Encoded
from loratory.data.batching import split_batch
from loratory.data.records import Records, join_records, table_records
from loratory.domains.contract import Example, TaskOptions
from loratory.domains.examples import domain_examples
from loratory.errors import InputError
from loratory.training.schedule import Schedule

LEFT_OUT = 0.1  # share of a split that may be too long for a base; beyond, the data are not made for it
KEPT = 1 << 21  # positions of encoded examples that are kept, about 100 MB; what is beyond is encoded each time
ROUND = 1 << 15  # records that are encoded at once to learn from; a split of no more is encoded whole
FIRST = 100  # records that say whether the base can read the domain at all


class EncodedExamples(Sequence[Encoded]):
    """The examples of records, in order, each made of its record when it is asked for.

    Attributes:
        lengths: (n,) positions of each example.
        left_out: the errors of those that do not fit into the base's context.
    """

    def __init__(self, base: Base, domain: str, records: Records, task: TaskOptions) -> None:
        """Goes through all records once, for the lengths and for what cannot be encoded.

        Raises:
            InputError: the base cannot read the examples, or cannot tell their choices apart. More than LEFT_OUT of
                them do not fit.
        """
        self.base, self.domain, self.records, self.task = base, domain, records, task
        self.kept: dict[int, Encoded] = {}
        self.positions = 0  # that are kept
        self.left_out: list[InputError] = []
        check_examples(base, domain, [each for record in records[:FIRST] for each in self.make_examples(record)])
        places, lengths = array("i"), array("i")
        for at, record in enumerate(records):
            for window, example in enumerate(self.make_examples(record)):
                encoded = self.encode_or_leave_out(example)
                if encoded is not None:
                    self.keep_example(len(lengths), encoded)
                    places.extend((at, window))
                    lengths.append(encoded.length)
        if len(self.left_out) > LEFT_OUT * (len(lengths) + len(self.left_out)):
            raise self.left_out[0]
        self.places = np.array(places).reshape(-1, 2)  # (n, 2): the record, and which of its examples
        self.lengths = np.array(lengths)

    def make_examples(self, record: dict) -> list[Example]:
        return domain_examples(self.domain, [record], self.task, self.base.family)

    def encode_or_leave_out(self, example: Example) -> Encoded | None:
        try:
            return self.base.encode(example)
        except InputError as error:
            if error.reason != "too_long":
                raise
            self.left_out.append(error)
            return None

    def keep_example(self, at: int, encoded: Encoded) -> None:
        if self.positions + encoded.length <= KEPT:
            self.kept[at] = encoded
            self.positions += encoded.length

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[Encoded]:
        return (self[at] for at in range(len(self)))

    @overload
    def __getitem__(self, at: int) -> Encoded: ...

    @overload
    def __getitem__(self, at: slice) -> list[Encoded]: ...

    def __getitem__(self, at: int | slice) -> Any:
        if isinstance(at, slice):
            return [self[place] for place in range(len(self))[at]]
        at = range(len(self))[at]
        if at in self.kept:
            return self.kept[at]
        record, window = self.places[at].tolist()
        return self.base.encode(self.make_examples(self.records[record])[window])

    def join(self, other: Self) -> Self:
        """These examples and then those of another split."""
        found = object.__new__(type(self))
        found.base, found.domain, found.task = self.base, self.domain, self.task
        found.records = self.records.join([other.records])
        found.places = np.concatenate([self.places, other.places + np.array([len(self.records), 0], np.int32)])
        found.lengths = np.concatenate([self.lengths, other.lengths])
        found.kept = self.kept | {at + len(self): encoded for at, encoded in other.kept.items()}
        found.positions, found.left_out = self.positions + other.positions, self.left_out + other.left_out
        return found


class DrawnExamples:
    """The examples of more than ROUND records, in rounds of that many that are drawn, so that none is encoded before
    it is wanted. Every record comes once before any comes again.

    A round costs a pass over the file: records of one class or of one person may lie side by side there.
    """

    def __init__(self, base: Base, domain: str, records: Records, task: TaskOptions) -> None:
        self.base, self.domain, self.records, self.task = base, domain, records, task
        self.parts = ceil(len(records) / ROUND)  # rounds in which every record comes once
        self.round = lru_cache(maxsize=2)(self.encode_round)

    def __len__(self) -> int:
        """Records; how many examples they make is known when they are read."""
        return len(self.records)

    def encode_round(self, seed: int, number: int) -> EncodedExamples:
        """Raises:
        InputError: as `EncodedExamples`.
        """
        epoch, part = divmod(number, self.parts)
        order = np.random.default_rng([seed, epoch]).permutation(len(self.records))
        chosen = np.sort(np.array_split(order, self.parts)[part])
        held = table_records(self.records.select(chosen).table)
        found = EncodedExamples(self.base, self.domain, held, self.task)
        if found.left_out:
            print(f"{self.domain}, left out: {len(found.left_out)} examples, such as {found.left_out[0]}", flush=True)
        return found


Examples: TypeAlias = Sequence[Encoded] | DrawnExamples  # what a training learns from


def round_examples(examples: Examples, seed: int, number: int) -> Sequence[Encoded]:
    """What one round of a training goes through: all examples, or those that are drawn for it."""
    return examples.round(seed, number) if isinstance(examples, DrawnExamples) else examples


def join_examples(parts: Sequence[EncodedExamples | DrawnExamples]) -> EncodedExamples | DrawnExamples:
    """Those of several splits, one after another."""
    encoded = [part for part in parts if isinstance(part, EncodedExamples)]
    if len(encoded) == len(parts):
        return reduce(EncodedExamples.join, encoded)
    first = parts[0]
    return DrawnExamples(first.base, first.domain, join_records(part.records for part in parts), first.task)


def round_lengths(
    examples: Examples, seed: int, measure: Callable[[Sequence[Encoded]], np.ndarray]
) -> np.ndarray | Callable[[int], np.ndarray]:
    """The lengths that `data.batching.Batches` takes: of all examples, or a function of the round."""
    if isinstance(examples, DrawnExamples):
        return lambda number: measure(examples.round(seed, number))
    return measure(examples)


def check_examples(base: Base, domain: str, examples: Sequence[Example]) -> None:
    """Raises:
    InputError: the base cannot read them, or cannot tell their choices apart: nothing is trained for predictions that
        it could not make.
    """
    for choices in {example.choices for example in examples}:
        base.check_choices(choices)
    check_readable(base, domain, [example.prompt + example.target for example in examples[:FIRST]])


def example_lengths(items: Sequence[Encoded]) -> np.ndarray:
    """(n,) positions of each example; none is encoded for it."""
    return items.lengths if isinstance(items, EncodedExamples) else np.array([item.length for item in items], np.int64)


def padded_positions(items: Sequence[Encoded]) -> int:
    """What the examples cost as one batch, padding included."""
    return len(items) * max(item.length for item in items)


def split_items(items: Sequence[Encoded], recipe: Schedule) -> list[list[Encoded]]:
    """A batch in the parts that are put through a model one after another."""
    return [[items[i] for i in part] for part in split_places(range(len(items)), items, recipe)]


def split_places(chosen: Sequence[int], items: Sequence[Encoded], recipe: Schedule) -> list[list[int]]:
    """As `split_items`, of a batch that is known by the places of its examples."""
    parts = split_batch(example_lengths([items[i] for i in chosen]), recipe.micro_batch_tokens)
    return [[chosen[i] for i in part] for part in parts]
