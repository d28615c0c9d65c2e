"""The pooled LoRA, and fresh experts."""

from math import sqrt

import pytest
import torch
from models import bert, llama, trained_adapter
from small import CLOSE, IDS, alone, given, mixed

from loratory.adapters import core
from loratory.adapters.deltas import Adapter
from loratory.adapters.methods.lora import Method
from loratory.errors import InputError
from loratory.mixers.core import Mixture
from loratory.mixers.methods.pooled import Mixer
from loratory.mixers.untrained import max_rank_deltas, untrained_expert


def start(mixer) -> Mixture:
    return Mixture(llama(), mixer.prepare_experts(given(), 4), mixer, domains=["a", "b"])


def trained(model, parameters, steps=5):
    """Five steps of AdamW on the next-token loss of five batches."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)
    for step in range(steps):
        ids = (IDS + 5 * step) % 40 + 3
        logits = model(input_ids=ids).logits[:, :-1].flatten(0, 1)
        torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def test_it_trains_as_a_plain_lora_does_on_the_same_batches():
    """In double precision: Adam makes much of what two orders of the same single-precision sums differ by."""
    mixture, plain = start(Mixer(rank=4, alpha=8.0)), llama().requires_grad_(False)
    wrappers = core.attach(plain, Method(rank=4, alpha=8.0), 0)
    mixture.double(), plain.double()
    for name, layer in mixture.layers.items():
        wrappers[name].adapter["A"].data.copy_(layer.A)
    trained(mixture, mixture.trainable_parameters().values())
    trained(plain, core.trainable_parameters(plain).values())
    found, expected = mixture.current_experts()["pooled"], core.export(plain, (), {})
    assert found.deltas.keys() == expected.deltas.keys()
    for name, delta in expected.deltas.items():
        torch.testing.assert_close(found.deltas[name].A, delta.A, rtol=0, atol=1e-9)
        torch.testing.assert_close(found.deltas[name].B, delta.B, rtol=0, atol=1e-9)
        assert delta.B.abs().max() > 0.01


@torch.no_grad()
def test_it_starts_as_the_base():
    assert torch.equal(start(Mixer())(input_ids=IDS).logits, llama()(IDS).logits)


def test_its_rank_is_the_largest_of_each_layer_unless_given():
    ranks = {name: delta.rank for name, delta in start(Mixer()).current_experts()["pooled"].deltas.items()}
    assert ranks == {name: 4 if name.endswith(("q_proj", "up_proj", "down_proj")) else 2 for name in ranks}
    assert len(ranks) == 14
    assert {delta.rank for delta in start(Mixer(rank=6)).current_experts()["pooled"].deltas.values()} == {6}


def test_scale_is_alpha_over_rank_and_alpha_that_of_the_widest_expert_unless_given():
    like = max_rank_deltas(given())
    module = "model.layers.0.mlp.up_proj"  # rank 4, alpha 4
    scales = [
        untrained_expert("x", like, 0, *own).deltas[module].scale for own in ((None, None), (8, None), (8, 16.0))
    ]
    assert scales == [1.0, 0.5, 2.0]


def test_fresh_experts_differ_by_name_layer_and_seed_alone():
    like = max_rank_deltas(given())
    one, same, other, later = (
        untrained_expert("x", like, 0),
        untrained_expert("x", like, 0),
        untrained_expert("y", like, 0),
        untrained_expert("x", like, 1),
    )
    first, second = (f"model.layers.{i}.mlp.up_proj" for i in (0, 1))
    a = one.deltas[first].A
    assert torch.equal(a, same.deltas[first].A)
    for different in (other.deltas[first], later.deltas[first], one.deltas[second]):
        assert not torch.equal(a, different.A)
    assert 0.8 / sqrt(32) < a.abs().max() <= 1 / sqrt(32)
    assert not any(delta.B.any() for delta in one.deltas.values())


def test_an_expert_that_is_not_low_rank_is_refused():
    whole = Adapter(dense={"model.norm.weight": torch.zeros(32)})
    with pytest.raises(InputError, match=r"expert c: fresh experts cannot follow .* \(model.norm.weight\)"):
        Mixer().prepare_experts(given() | {"c": whole}, 0)


def test_an_expert_with_its_own_head_is_refused():
    adapter = trained_adapter(bert(), Method(rank=2), 1, heads=("classifier",))
    with pytest.raises(InputError, match=r"expert a: fresh experts would lack this head \(classifier"):
        Mixer().prepare_experts({"a": adapter}, 0)


@torch.no_grad()
def test_it_is_one_lora_whatever_the_domain():
    mixture = mixed(Mixer())
    expected = alone(mixture.current_experts()["pooled"])(IDS).logits
    for mixture.domain in (None, 0, 1):
        torch.testing.assert_close(mixture(input_ids=IDS).logits, expected, **CLOSE)
