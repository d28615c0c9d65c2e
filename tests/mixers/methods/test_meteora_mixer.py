"""MeteoRA (arXiv:2405.13053)."""

import pytest
import torch
from small import CLOSE, IDS, alone, change, given, gradients, mixed
from torch import nn

from loratory.adapters.deltas import Adapter, LowRank
from loratory.mixers.methods.meteora import Mixer
from loratory.training.mixture import mixer_penalty

REAL = torch.ones_like(IDS, dtype=torch.bool)
UP = "model.layers.1.mlp.up_proj"


def three() -> dict[str, Adapter]:
    """Three experts, all of which change `UP`."""
    experts = given()
    first = experts["a"].deltas
    return experts | {"c": Adapter({name: LowRank(-d.A, d.B.flip(0), d.scale) for name, d in first.items()})}


@torch.no_grad()
@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_it_is_what_a_loop_over_tokens_and_their_experts_gives(top_k, temperature):
    mixture = mixed(Mixer(top_k=top_k, temperature=temperature), three())
    x, found = change(mixture, UP, input_ids=IDS)
    gate = mixture.gate["tokens"][mixture.layers[UP].slot].weight
    deltas = [adapter.deltas[UP].to_dense() for adapter in three().values()]
    for token, added in zip(x.flatten(0, 1), found.flatten(0, 1)):
        logits = gate @ token
        chosen = logits.argsort(descending=True)[:top_k]
        weights = (logits[chosen] / temperature).softmax(0)
        expected = sum(weight * deltas[i] @ token for weight, i in zip(weights, chosen))
        torch.testing.assert_close(added, expected, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("index", range(2))
def test_gates_that_are_sure_of_an_expert_give_that_expert(index):
    mixture = mixed(Mixer())
    for place, width in enumerate(mixture.sizes["tokens"].widths):
        gate = nn.Linear(width, 2)
        gate.bias[index] += 1e4
        mixture.gate["tokens"][place] = gate
    torch.testing.assert_close(mixture(input_ids=IDS).logits, alone(given()["ab"[index]])(IDS).logits, **CLOSE)


def test_keeping_all_experts_keeps_their_softmax():
    wanted = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0)).softmax(-1)
    torch.testing.assert_close(Mixer(top_k=9).select_weights(wanted), wanted)


@pytest.mark.parametrize("temperature, expected", [(1e6, [0.5, 0.5, 0.0]), (1e-3, [1.0, 0.0, 0.0])])
def test_temperature_runs_from_even_weights_of_the_kept_to_one_expert(temperature, expected):
    kept = Mixer(temperature=temperature).select_weights(torch.tensor([0.5, 0.3, 0.2]))
    torch.testing.assert_close(kept, torch.tensor(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("coefficient", [0.0, 50.0])
def test_the_gates_loss_is_the_cross_entropy_of_every_layers_own_logits_at_every_token(temperature, coefficient):
    mixture = mixed(Mixer(temperature=temperature, gate_loss=coefficient)).train()
    inputs, hooks = {}, []
    for name, layer in mixture.layers.items():
        hooks.append(layer.register_forward_hook(lambda layer, args, y, name=name: inputs.update({name: args[0]})))
    mixture(input_ids=IDS)
    losses = []
    for gate, x in zip(mixture.gate["tokens"], (inputs[name] for name in mixture.layers)):
        logits = gate(x).flatten(0, 1)
        losses.append(nn.functional.cross_entropy(logits, torch.ones(len(logits), dtype=torch.long)))
    torch.testing.assert_close(mixer_penalty(mixture, REAL, 1), coefficient * sum(losses) / 14)


def test_the_gates_loss_and_its_gradient_vanish_as_a_gate_becomes_right():
    logits = torch.tensor([-200.0, 0.0, 5.0, 20.0], requires_grad=True)
    gates = torch.stack([logits, torch.zeros(4)], -1).softmax(-1)
    losses = torch.stack([Mixer().routing_penalty(gate.view(1, 1, 2), 0) for gate in gates])
    (slopes,) = torch.autograd.grad(losses.sum(), logits)
    assert losses.isfinite().all() and (losses.diff() < 0).all() and losses[-1] < 1e-5
    torch.testing.assert_close(slopes[1:], -50 * torch.sigmoid(-logits[1:]), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("top_k, learns", [(1, False), (2, True)])
def test_with_one_expert_kept_the_language_model_teaches_gates_nothing(top_k, learns):
    mixture = mixed(Mixer(top_k=top_k)).train()
    found = gradients(mixture, mixture(input_ids=IDS).logits.square().mean())
    assert any(bool(gradient.any()) for gradient in found.values()) == learns
    if not learns:
        for applied in mixture.applied.values():
            assert ((applied == 0) | (applied == 1)).all()


def test_experts_move_only_if_asked():
    experts_move = [
        {name.rpartition(".")[2] for name in mixed(Mixer(train_experts=train)).trainable_parameters()}
        for train in (False, True)
    ]
    assert experts_move == [{"weight"}, {"weight", "A", "B"}]
