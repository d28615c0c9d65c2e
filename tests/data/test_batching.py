"""Batches: a pure function of (seed, step) that keeps to its budget and sees every example once an epoch."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loratory.data.batching import Batches, batches_by_length

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=80)


@given(LENGTHS, st.integers(1, 200), st.integers(0, 5), st.integers(0, 3))
def test_every_example_once_an_epoch_under_the_budget(lengths, budget, seed, epoch):
    batches = Batches(lengths, budget, seed).epoch_batches(epoch)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= budget


@given(LENGTHS, st.integers(0, 5), st.integers(0, 40))
@settings(max_examples=40)
def test_a_step_does_not_depend_on_the_steps_asked_before(lengths, seed, step):
    walked, fresh = Batches(lengths, 100, seed), Batches(lengths, 100, seed)
    before = [walked(i) for i in range(step + 1)]
    assert fresh(step) == before[step]


def test_seeds_and_epochs_differ():
    batches = Batches(list(range(1, 100)), 100, 0)
    assert batches.epoch_batches(0) != batches.epoch_batches(1)
    assert batches.epoch_batches(0) != Batches(list(range(1, 100)), 100, 1).epoch_batches(0)


@pytest.mark.parametrize("longest", [10, 11])
def test_batches_of_a_file_that_lists_one_class_after_the_other_hold_both(longest):
    lengths = [10 + i % (longest - 9) for i in range(400)]  # all of one length, or of two, as windows cut them
    for batch in Batches(lengths, 200, 0).epoch_batches(0)[:-1]:
        share = sum(i >= 200 for i in batch) / len(batch)
        assert 0 < share < 1, f"one class alone: {sorted(batch)}"


def test_padding_is_small_on_skewed_lengths():
    lengths = [20 + (i * 7919) % 480 for i in range(2000)]
    batches = Batches(lengths, 4096, 0).epoch_batches(0)
    padded = sum(max(lengths[i] for i in batch) * len(batch) for batch in batches)
    assert padded < 1.1 * sum(lengths)


@given(LENGTHS, st.integers(1, 200))
def test_evaluation_covers_everything_once(lengths, budget):
    assert sorted(i for batch in batches_by_length(lengths, budget) for i in batch) == list(range(len(lengths)))


def test_no_examples_is_an_error():
    with pytest.raises(ValueError, match="no examples"):
        Batches([], 10, 0)
