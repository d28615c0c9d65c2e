"""Which examples a training step takes: a pure function of (seed, step)."""

from collections.abc import Callable, Iterable, MutableMapping, Sequence
from functools import lru_cache

import numpy as np

Lengths = Sequence[int] | np.ndarray


class Batches:
    """Endless batches of near-equal lengths under a token budget; every example once an epoch.

    An epoch shuffles the examples, sorts slices of `POOL` batches' worth by length, cuts them where the padded size
    would pass the budget, and shuffles the batches. Examples of one length keep the order of the shuffle, not that of
    the file: files list one class after the other, one speaker after the other, and a batch must not be of one alone.
    Nothing but the sizes of epochs is remembered between calls, so training can go on at any step.

    Args:
        lengths: positions that each example costs; or epoch → these, where each epoch has examples of its own.
        budget: most positions of a batch, padding included; a longer single example is a batch of its own.
        sizes: {epoch: its number of batches} as far as they are known; those that are found are added.
    """

    POOL = 32

    def __init__(
        self,
        lengths: Lengths | Callable[[int], Lengths],
        budget: int,
        seed: int,
        sizes: MutableMapping[int, int] | None = None,
    ) -> None:
        self.lengths = lengths if callable(lengths) else np.asarray(lengths)
        self.budget, self.seed, self.sizes = budget, seed, {} if sizes is None else sizes
        if not callable(lengths) and not len(lengths):
            raise ValueError("no examples to make batches of")
        self._epoch = lru_cache(maxsize=2)(self.epoch_batches)

    def epoch_batches(self, number: int) -> list[list[int]]:
        """The batches (lists of example indices) of one epoch."""
        lengths = np.asarray(self.lengths(number) if callable(self.lengths) else self.lengths)
        random = np.random.default_rng([self.seed, number])
        order = random.permutation(len(lengths))
        batches: list[list[int]] = []
        pool: list[int] = []
        cost = 0
        for index in order:
            pool.append(int(index))
            cost += int(lengths[index])
            if cost >= self.POOL * self.budget:
                batches += cut_batches(pool, lengths, self.budget)
                pool, cost = [], 0
        batches += cut_batches(pool, lengths, self.budget)
        return [batches[i] for i in random.permutation(len(batches))]

    def __call__(self, step: int) -> list[int]:
        """The example indices of a step, counted from 0 through all epochs."""
        epoch, place = self.epoch_and_place(step)
        return self._epoch(epoch)[place]

    def epoch_and_place(self, step: int) -> tuple[int, int]:
        """Epochs may hold unequal numbers of batches, so whole ones are walked."""
        epoch = 0
        while step >= (size := self.epoch_size(epoch)):
            step, epoch = step - size, epoch + 1
        return epoch, step

    def epoch_size(self, epoch: int) -> int:
        if epoch not in self.sizes:
            self.sizes[epoch] = len(self._epoch(epoch))
        return self.sizes[epoch]


def cut_batches(indices: Iterable[int], lengths: Lengths, budget: int) -> list[list[int]]:
    """The examples in batches under a budget, in order of length; those of one length in the order given."""
    batches: list[list[int]] = []
    batch: list[int] = []
    for index in sorted(indices, key=lambda i: lengths[i]):
        if batch and lengths[index] * (len(batch) + 1) > budget:
            batches.append(batch)
            batch = []
        batch.append(index)
    return [*batches, batch] if batch else batches


def split_batch(lengths: Lengths, budget: int | None) -> list[list[int]]:
    """The places of a batch's examples, in parts under a budget; None: in one part."""
    return [[*range(len(lengths))]] if budget is None else cut_batches(range(len(lengths)), lengths, budget)


def fixed_shape(rows: int, length: int, budget: int, longest: int) -> tuple[int, int]:
    """The rows and length that a batch of `[rows, length]` is padded to, so that the batches of a training have few
    shapes: lengths in eighths of an octave, with each the most rows that a batch of such lengths has under the
    budget, or a half, a quarter, … of them.

    Full batches of one length have one shape, at most an eighth above the budget (or so, of a few short rows).

    Args:
        longest: length of a row.
    """
    padded = round_up(length, 8)
    shortest = padded - octave_part(padded, 8) + 1
    most = max(rows, budget // shortest)
    while -(-most // 2) >= rows and most > 1:
        most = -(-most // 2)
    return most, min(padded, longest)


def round_up(number: int, parts: int) -> int:
    """The next of `parts` numbers an octave, a power of two of them: 8, 9 … 16, 18, 20 … 32, 36 … for 8."""
    step = octave_part(number, parts)
    return -(-number // step) * step


def octave_part(number: int, parts: int) -> int:
    """How far apart the numbers of `round_up` are, just below `number`."""
    return max(1, (1 << max(0, number - 1).bit_length() - 1) // parts) if number > 1 else 1


def pad_contexts(contexts: Sequence[Sequence[tuple[int, int]]]) -> np.ndarray:
    """`[len(contexts), longest, 2]` of `domains.contract.Context`, zeros behind each one's end, at least one row."""
    longest = max(1, max(map(len, contexts), default=1))
    padded = np.zeros((len(contexts), longest, 2), np.int64)
    for row, context in zip(padded, contexts):
        if context:
            row[: len(context)] = context
    return padded


def batches_by_length(lengths: Lengths, budget: int) -> list[list[int]]:
    """All examples once, longest together, under the budget: for evaluation."""
    return cut_batches(range(len(lengths)), lengths, budget)
