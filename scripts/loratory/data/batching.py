"""Which examples a training step takes: a pure function of (seed, step)."""

from collections.abc import Sequence
from functools import cache, lru_cache

import numpy as np


class Batches:
    """Endless batches of near-equal lengths under a token budget; every example once an epoch.

    An epoch shuffles the examples, sorts slices of `POOL` batches' worth by length, cuts them where the padded size
    would pass the budget, and shuffles the batches. Examples of one length keep the order of the shuffle, not that of
    the file: files list one class after the other, one speaker after the other, and a batch must not be of one alone.
    Nothing is remembered between calls, so training can go on at any step.

    Args:
        lengths: positions that each example costs.
        budget: most positions of a batch, padding included; a longer single example is a batch of its own.
    """

    POOL = 32

    def __init__(self, lengths: Sequence[int] | np.ndarray, budget: int, seed: int) -> None:
        self.lengths, self.budget, self.seed = np.asarray(lengths), budget, seed
        if not len(self.lengths):
            raise ValueError("no examples to make batches of")
        self._epoch = lru_cache(maxsize=2)(self.epoch_batches)

    def epoch_batches(self, number: int) -> list[list[int]]:
        """The batches (lists of example indices) of one epoch."""
        random = np.random.default_rng([self.seed, number])
        order = random.permutation(len(self.lengths))
        batches: list[list[int]] = []
        pool: list[int] = []
        cost = 0
        for index in order:
            pool.append(int(index))
            cost += int(self.lengths[index])
            if cost >= self.POOL * self.budget:
                batches += self.cut_pool(pool)
                pool, cost = [], 0
        batches += self.cut_pool(pool)
        return [batches[i] for i in random.permutation(len(batches))]

    def cut_pool(self, pool: list[int]) -> list[list[int]]:
        """The pool's examples in batches, in order of length; those of one length in the order of the pool."""
        batches: list[list[int]] = []
        batch: list[int] = []
        for index in sorted(pool, key=lambda i: self.lengths[i]):
            if batch and self.lengths[index] * (len(batch) + 1) > self.budget:
                batches.append(batch)
                batch = []
            batch.append(index)
        return [*batches, batch] if batch else batches

    def __call__(self, step: int) -> list[int]:
        """The example indices of a step, counted from 0 through all epochs.

        Epochs may hold unequal numbers of batches, so each position is drawn as (epoch, place) by walking whole
        epochs; the walk is short because an epoch is cached.
        """
        epoch = 0
        while step >= (size := self.epoch_size(epoch)):
            step, epoch = step - size, epoch + 1
        return self._epoch(epoch)[step]

    @cache  # noqa: B019 one object a run
    def epoch_size(self, epoch: int) -> int:
        return len(self._epoch(epoch))


def pad_contexts(contexts: Sequence[Sequence[tuple[int, int]]]) -> np.ndarray:
    """`[len(contexts), longest, 2]` of `domains.contract.Context`, zeros behind each one's end, at least one row."""
    longest = max(1, max(map(len, contexts), default=1))
    padded = np.zeros((len(contexts), longest, 2), np.int64)
    for row, context in zip(padded, contexts):
        if context:
            row[: len(context)] = context
    return padded


def batches_by_length(lengths: Sequence[int] | np.ndarray, budget: int) -> list[list[int]]:
    """All examples once, longest together, under the budget: for evaluation."""
    return Batches(lengths, budget, 0).cut_pool(list(range(len(lengths)))) if len(lengths) else []
