"""X-LoRA: which experts of a token and layer are kept."""

import torch

from loratory.mixers.methods.xlora import Mixer

WEIGHTS = torch.tensor([[[[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]]]])


def test_the_largest_weights_are_kept_as_they_are_and_the_others_are_0():
    assert torch.equal(Mixer(top_k=1).select_weights(WEIGHTS), torch.tensor([[[[0.5, 0, 0], [0, 0, 0.7]]]]))
    assert torch.equal(Mixer(top_k=2).select_weights(WEIGHTS), torch.tensor([[[[0.5, 0.3, 0], [0, 0.2, 0.7]]]]))


def test_kept_weights_sum_to_1_where_that_is_asked_for():
    kept = Mixer(top_k=2, renormalise=True).select_weights(WEIGHTS)
    torch.testing.assert_close(kept, torch.tensor([[[[0.625, 0.375, 0], [0, 2 / 9, 7 / 9]]]]))


def test_without_top_k_and_with_as_many_as_there_are_all_are_kept_times_the_scale():
    assert torch.equal(Mixer(scale=2.0).select_weights(WEIGHTS), 2 * WEIGHTS)
    assert torch.equal(Mixer(scale=2.0, top_k=9).select_weights(WEIGHTS), 2 * WEIGHTS)
