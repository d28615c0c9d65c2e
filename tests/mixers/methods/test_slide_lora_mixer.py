"""Slide-LoRA (arXiv:2407.16364)."""

import pytest
import torch
from small import CLOSE, IDS, alone, gradients, merged, mixed

from loratory.errors import InputError
from loratory.mixers.methods.slide_lora import Mixer


@torch.no_grad()
@pytest.mark.parametrize("index", range(2))
def test_a_domain_gets_half_its_own_expert_and_half_the_shared_one_as_if_merged(index):
    mixture = mixed(Mixer())
    mixture.domain = index
    expected = merged({"ab"[index]: 0.5, "shared": 0.5}, mixture.current_experts())(IDS).logits
    torch.testing.assert_close(mixture(input_ids=IDS).logits, expected, **CLOSE)


def test_the_scale_is_alpha_over_rank():
    experts = mixed(Mixer(rank=4, alpha=6.0)).current_experts()
    assert list(experts) == ["a", "b", "shared"]
    assert {delta.scale for adapter in experts.values() for delta in adapter.deltas.values()} == {1.5}


@torch.no_grad()
@pytest.mark.parametrize("index", range(3))
def test_a_learnt_gate_that_is_sure_of_an_expert_gives_that_expert(index):
    mixture = mixed(Mixer(gating="learned"))
    mixture.gate["tokens"].bias[index] += 1e4
    expected = alone(list(mixture.current_experts().values())[index])(IDS).logits
    torch.testing.assert_close(mixture(input_ids=IDS).logits, expected, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("gating", ["task_id", "learned"])
def test_weights_of_a_sequence_sum_to_one_and_hold_for_all_its_tokens(gating):
    mixture = mixed(Mixer(gating=gating))
    weights = mixture.token_routing(input_ids=IDS)
    assert weights.shape[1:] == (1, 1, 3)
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))


@torch.no_grad()
def test_a_learnt_gate_needs_no_domain_and_weighs_each_row_by_itself():
    mixture = mixed(Mixer(gating="learned"))
    mixture.domain = None
    together, weights = mixture(input_ids=IDS).logits, mixture.applied["tokens"]
    assert not torch.allclose(weights[0], weights[1], atol=1e-3)
    for row in range(2):
        torch.testing.assert_close(mixture(input_ids=IDS[[row]]).logits, together[[row]], **CLOSE)


@pytest.mark.parametrize("index", range(2))
def test_the_shared_expert_learns_from_every_domain_and_the_others_from_their_own(index):
    mixture = mixed(Mixer()).train()
    mixture.domain = index
    found = gradients(mixture, mixture(input_ids=IDS).logits.square().mean())
    for name, layer in mixture.layers.items():
        a, b = found[f"model.{name}.A"], found[f"model.{name}.B"]
        for expert in range(3):
            own = layer.owner == expert
            assert bool(a[own].any()) == bool(b[:, own].any()) == (expert in (index, 2))


@pytest.mark.parametrize("domain", [None, -1, 2])
def test_an_unknown_domain_is_refused(domain):
    mixture = mixed(Mixer())
    mixture.domain = domain
    with pytest.raises(InputError, match=r"the domain is not one of the mixture's.* 0 to 1"):
        mixture(input_ids=IDS)


@pytest.mark.parametrize("gating, told, reads", [("task_id", True, "nothing"), ("learned", False, "hidden")])
def test_the_gating_says_what_must_be_known(gating, told, reads):
    mixer = Mixer(gating=gating)
    assert (mixer.needs_domain, mixer.reads, mixer.per_sequence) == (told, reads, not told)
