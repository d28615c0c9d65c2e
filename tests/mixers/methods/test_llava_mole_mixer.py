"""LLaVA-MoLE (arXiv:2401.16160)."""

import pytest
import torch
from families import FAMILIES
from models import trained_adapter
from small import CLOSE, IDS, alone, change, given, gradients, mixed
from torch import nn

from loratory.adapters.deltas import Adapter, LowRank
from loratory.adapters.methods.lora import Method
from loratory.errors import InputError
from loratory.mixers.methods.llava_mole import Mixer, mlp_block
from loratory.training.mixture import mixer_penalty

REAL = torch.ones_like(IDS, dtype=torch.bool)
UP, DOWN, QUERY = "model.layers.1.mlp.up_proj", "model.layers.1.mlp.down_proj", "model.layers.1.self_attn.q_proj"


def sure_of(mixture, index: int):
    """Routers that send every token to one expert, with probability 1."""
    for key, router in mixture.gate["tokens"].items():
        mixture.gate["tokens"][key] = nn.Linear(router.in_features, router.out_features)
        mixture.gate["tokens"][key].bias.data[index] += 1e4
    return mixture


@torch.no_grad()
@pytest.mark.parametrize("weight_by_prob", [True, False])
def test_one_expert_is_a_plain_lora(weight_by_prob):
    mixture = mixed(Mixer(mlp_experts=1, weight_by_prob=weight_by_prob))
    expected = alone(*mixture.current_experts().values())(IDS).logits
    torch.testing.assert_close(mixture(input_ids=IDS).logits, expected, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("index", range(3))
def test_routers_that_are_sure_of_an_expert_give_that_expert(index):
    mixture = sure_of(mixed(Mixer()), index)
    experts = mixture.current_experts()
    expected = alone(experts["plain"], experts[f"mlp_{index + 1}"])(IDS).logits
    torch.testing.assert_close(mixture(input_ids=IDS).logits, expected, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("weight_by_prob", [True, False])
@pytest.mark.parametrize("module", [UP, DOWN])
def test_it_is_what_each_token_of_an_mlp_gets_of_its_own_expert(module, weight_by_prob):
    mixture = mixed(Mixer(weight_by_prob=weight_by_prob))
    entering, _ = change(mixture, UP, input_ids=IDS)
    x, found = change(mixture, module, input_ids=IDS)
    router = mixture.gate["tokens"]["model/layers/1"].weight
    deltas = [mixture.current_experts()[f"mlp_{i}"].deltas[module].to_dense() for i in (1, 2, 3)]
    choices = set()
    for first, token, added in zip(entering.flatten(0, 1), x.flatten(0, 1), found.flatten(0, 1)):
        p = (router @ first).softmax(0)
        chosen = int(p.argmax())
        weight = p[chosen] if weight_by_prob else 1.0
        torch.testing.assert_close(added, weight * deltas[chosen] @ token, **CLOSE)
        choices.add(chosen)
    assert len(choices) > 1


@torch.no_grad()
def test_equal_experts_make_routing_irrelevant():
    first, second = mixed(Mixer(weight_by_prob=False)), mixed(Mixer(weight_by_prob=False))
    for mixture in (first, second):
        for name, layer in mixture.layers.items():
            if mlp_block(name):
                rank = len(layer.owner) // 3
                layer.A.copy_(layer.A[:rank].repeat(3, 1))
                layer.B.copy_(layer.B[:, :rank].repeat(1, 3))
    for parameter in second.gate.parameters():
        parameter.neg_()
    torch.testing.assert_close(first(input_ids=IDS).logits, second(input_ids=IDS).logits, **CLOSE)
    assert not torch.equal(first.applied[UP], second.applied[UP])


def test_the_balance_loss_is_1_if_even_and_the_number_of_experts_if_collapsed():
    mixer = Mixer(balance=0.5)
    even = torch.eye(3).repeat(4, 1)
    collapsed = even[[0]].expand(12, 3)
    for routed, expected in ((even, 1.0), (collapsed, 3.0)):
        for wanted in (routed, nn.functional.pad(routed, (1, 0))):  # without and with the plain expert
            assert float(mixer.routing_penalty(wanted.unsqueeze(1), 0)) == pytest.approx(0.5 * expected)


def test_layers_outside_mlps_add_nothing_to_the_balance_loss():
    mixture = mixed(Mixer()).train()
    mixture(input_ids=IDS)
    outside = mixture.routing_weights[QUERY]
    assert torch.equal(outside, torch.tensor([1.0, 0, 0, 0]).expand(2, 7, 4))
    nothing = Mixer().routing_penalty(outside.flatten(0, 1).unsqueeze(1), 0)
    assert nothing == 0.0 and not torch.is_tensor(nothing)  # so that it does not count in the mean over layers
    assert (mixture.routing_weights[UP][..., 0] == 0).all()
    assert Mixer().routing_penalty(mixture.routing_weights[UP].flatten(0, 1).unsqueeze(1), 0) > 0


@pytest.mark.parametrize("weight_by_prob", [True, False])
def test_the_language_model_teaches_routers_only_if_it_weighs_by_probability(weight_by_prob):
    mixture = mixed(Mixer(weight_by_prob=weight_by_prob)).train()
    out = mixture(input_ids=IDS).logits.square().mean()
    taught = [name for name in gradients(mixture, out) if name.startswith("gate")]
    assert len(taught) == (2 if weight_by_prob else 0)
    balanced = gradients(mixture, mixer_penalty(mixture, REAL, 0))
    assert all(balanced[f"gate.tokens.model/layers/{i}.weight"].any() for i in range(2))


@torch.no_grad()
@pytest.mark.parametrize("pads", [(0, 3), (3, 0)])
def test_padding_does_not_alter_the_balance_loss(pads):
    mixture = mixed(Mixer())
    mixture(input_ids=IDS)
    expected = mixer_penalty(mixture, REAL, 0)
    mask = nn.functional.pad(torch.ones_like(IDS), pads)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    mixture(input_ids=nn.functional.pad(IDS, pads), attention_mask=mask, position_ids=positions)
    torch.testing.assert_close(mixer_penalty(mixture, mask.bool(), 0), expected)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_each_block_of_every_family_has_one_router_that_its_mlp_alone_follows(family):
    toy = FAMILIES[family]()
    experts = {name: trained_adapter(toy.model, Method(rank=2), seed) for seed, name in enumerate("ab")}
    mixture = mixed(Mixer(rank=2), experts, toy.model)
    toy.logits(mixture, toy.collate(toy.items[:2]))
    routers = mixture.gate["tokens"]
    assert len(routers) == 2 and {router.in_features for router in routers.values()} == {mixture.config.hidden_size}
    decisions: dict[str | None, list] = {}
    for name, wanted in mixture.routing_weights.items():
        decisions.setdefault(mlp_block(name), []).append(wanted)
    outside = decisions.pop(None)
    assert all((wanted[..., 0] == 1).all() for wanted in outside)
    assert len(outside) + sum(map(len, decisions.values())) == len(mixture.layers)
    for block in decisions.values():
        assert len(block) == (3 if family == "llama" else 2)
        assert all(torch.equal(wanted, block[0]) for wanted in block)
        assert (block[0][..., 0] == 0).all()


def test_without_layers_outside_mlps_there_is_no_plain_expert():
    only = {"a": Adapter({UP: LowRank(torch.ones(2, 32), torch.ones(48, 2), 1.0)})}
    mixture = mixed(Mixer(mlp_experts=2), only)
    assert mixture.names == ["mlp_1", "mlp_2"]
    mixture(input_ids=IDS)
    assert mixture.routing_weights[UP].shape == (2, 7, 2)


def test_experts_without_layers_of_an_mlp_are_refused():
    with pytest.raises(InputError, match="no expert has a layer of an MLP"):
        Mixer().prepare_experts({"a": Adapter({QUERY: given()["a"].deltas[QUERY]})}, 0)
