"""Flexora (arXiv:2408.10774)."""

import numpy as np
import pytest
import torch
from families import FAMILIES, Toy, begin, train
from methods.rows import Row
from models import llama

from loratory.adapters import core
from loratory.adapters.methods import flexora, lora
from loratory.adapters.methods.flexora import (
    Method,
    alpha_gradient,
    apply_group_weights,
    hold_out,
    layer_groups,
    positive_groups,
)
from loratory.training.schedule import Training
from loratory.training.session import AdapterSession

OPTIONS = {"rank": 3, "alpha": 6.0, "validation_batches": 2, "held": 0.25}
ROW = Row(OPTIONS, lambda shapes, model: sum(3 * (out + inner) for out, inner in shapes))


def deep(layers: int = 4) -> Toy:
    return Toy(lambda: llama(60, num_hidden_layers=layers), 7 * layers)


def unsearched(toy: Toy, method) -> AdapterSession:
    """A session whose method did not prepare; A and B are off their start, so that weights matter."""
    layers = core.attach(toy.model, method, 0)
    generator = torch.Generator().manual_seed(4)
    for layer in layers.values():
        layer.adapter["B"].data.normal_(0, 0.3, generator=generator)
    recipe = Training(steps=6, learning_rate=1e-2, warmup=0.2, weight_decay=0.1, batch_tokens=24)
    return AdapterSession(toy, method, layers, toy.items, recipe, 0)


def test_equal_weights_are_plain_lora_with_its_gradients():
    results = []
    for kind in (lora.Method(rank=3, alpha=6.0), Method(**OPTIONS)):
        toy = deep()
        session = unsearched(toy, kind)
        if isinstance(kind, Method):
            groups = layer_groups(session.layers)
            with apply_group_weights(session.layers, groups, torch.zeros(4)):
                session.loss(session.batch(0)).backward()
                output = toy.output()
        else:
            session.loss(session.batch(0)).backward()
            output = toy.output()
        results.append([output, *(p.grad for p in core.trainable_parameters(toy.model).values())])
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_the_slope_is_that_of_finite_differences_and_sums_to_zero():
    toy = deep()
    session = unsearched(toy, Method(**OPTIONS))
    toy.model.double()  # but for norms, which Llama takes in single precision
    groups = layer_groups(session.layers)
    raw = torch.tensor([0.3, -0.2, 0.1, 0.0], dtype=torch.float64, requires_grad=True)
    batches = [session.batch(0), session.batch(1)]
    with apply_group_weights(session.layers, groups, raw):
        found = alpha_gradient(session, batches, raw)
        for i in range(4):
            sides = []
            for sign in (1, -1):
                with torch.no_grad():
                    raw[i] += sign * 1e-3
                    sides.append(sum(session.loss(batch) for batch in batches))
                    raw[i] -= sign * 1e-3
            torch.testing.assert_close(found[i], (sides[0] - sides[1]) / 2e-3, rtol=1e-3, atol=2e-5)
    assert found.abs().max() > 1e-2
    assert abs(found.sum()) < 1e-6


def test_one_weight_counts_once_for_all_matrices_of_a_layer():
    toy = deep(2)
    session = unsearched(toy, Method(**OPTIONS))
    groups = layer_groups(session.layers)
    raw = torch.tensor([1.0, -1.0])
    alphas = 2 * raw.softmax(0)
    with apply_group_weights(session.layers, groups, raw):
        given = toy.output()
    for alpha, names in zip(alphas, groups.values()):
        for name in names:
            session.layers[name].adapter["B"].data *= alpha
    torch.testing.assert_close(toy.output(), given, rtol=1e-4, atol=1e-5)


def test_steps_of_the_weights_leave_the_adapter_alone_and_the_reverse(monkeypatch):
    toy, seen = deep(2), []
    inner = flexora.train_step, flexora.alpha_gradient

    def state(raw):
        return [p.detach().clone() for p in core.trainable_parameters(toy.model).values()], raw.detach().clone()

    def train_step(session, *rest):
        raw = next(iter(session.layers.values())).method.raw
        before = state(raw)
        inner[0](session, *rest)
        after = state(raw)
        assert torch.equal(before[1], after[1])
        assert any(not torch.equal(a, b) for a, b in zip(before[0], after[0]))
        seen.append("train")

    def measured(session, batches, raw):
        before = state(raw)
        found = inner[1](session, batches, raw)
        assert all(p.grad is None for p in core.trainable_parameters(toy.model).values())
        assert all(torch.equal(a, b) for a, b in zip(before[0], state(raw)[0]))
        seen.append("weights")
        return found

    monkeypatch.setattr(flexora, "train_step", train_step)
    monkeypatch.setattr(flexora, "alpha_gradient", measured)
    begin(toy, Method(**OPTIONS, search=0.5))
    assert seen == ["train", "weights"] * 3


def test_the_two_parts_of_the_examples_are_disjoint_and_complete():
    train_part, held = hold_out(list(range(50)), 0.1, 3)
    assert len(held) == 5 and sorted(train_part + held) == list(range(50))
    assert hold_out(list(range(50)), 0.1, 3) == (train_part, held)
    assert hold_out(list(range(50)), 0.1, 4)[1] != held
    assert len(hold_out(list(range(5)), 0.04, 0)[1]) == 1


def test_the_layer_that_can_help_unseen_examples_is_found():
    """All examples are alike and only B of layer 2 may leave its zero, so no other layer can change the loss."""
    toy = deep(3)
    toy.items = toy.items[:1] * 12
    method = Method(**OPTIONS, search=1.0)
    session = begin_without_preparing(toy, method)
    for name, layer in session.layers.items():
        layer.adapter["B"].requires_grad_(".2." in name)
    found = method.search_weights(session, layer_groups(session.layers))
    assert max(found, key=found.get) == "model.layers.2" and positive_groups(found) == {"model.layers.2"}
    assert abs(sum(found.values())) < 1


def begin_without_preparing(toy: Toy, method) -> AdapterSession:
    session = unsearched(toy, method)
    for layer in session.layers.values():
        layer.adapter["B"].data.zero_()
    return session


def test_the_second_stage_is_a_fresh_lora_on_the_chosen_layers_alone():
    toy, plain = deep(), deep()
    session = begin(toy, Method(**OPTIONS, search=1.0))
    fresh = core.attach(plain.model, lora.Method(rank=3, alpha=6.0), 0)
    assert 0 < len(session.layers) < 28
    assert len(session.layers) % 7 == 0
    adapted = {name for name, module in toy.model.named_modules() if isinstance(module, core.AdaptedLinear)}
    assert adapted == session.layers.keys()
    for name, layer in session.layers.items():
        assert torch.equal(layer.tensors["A"], fresh[name].tensors["A"]) and not layer.tensors["B"].any()
        assert isinstance(layer.method, Method)


def test_layers_that_were_not_chosen_are_the_base_after_training(tmp_path):
    toy = deep()
    session = train(toy, Method(**OPTIONS), tmp_path)
    adapter = core.export(toy.model, (), {})
    assert adapter.deltas.keys() == session.layers.keys()
    chosen = layer_groups(session.layers)
    assert 0 < len(chosen) < 4


def test_heads_start_the_second_stage_as_they_were_drawn():
    toy, plain = FAMILIES["bert"](), FAMILIES["bert"]()
    begin(toy, Method(**OPTIONS, search=1.0))
    core.attach(plain.model, lora.Method(rank=3), 0, plain.heads)
    heads, drawn = (core.head_parameters(t.model, t.heads) for t in (toy, plain))
    assert all(torch.equal(heads[name], drawn[name]) for name in drawn)


def test_passes_of_the_search_are_counted():
    toy = FAMILIES["llama"]()
    session = begin(toy, Method(**OPTIONS, search=0.5))
    # nine of twelve examples of 6 ids are trained on, in three steps; after each, two batches of the others
    assert session.positions == 9 * 6 + 3 * 2 * (3 * 6)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_stays_in_its_mode(training):
    toy = deep(2)
    session = unsearched(toy, Method(**OPTIONS))
    toy.model.train(training)
    session.method.prepare_training(session)
    assert toy.model.training == training


def test_groups_are_transformer_layers_of_each_stack():
    names = ["model.encoder.layers.0.fc1", "model.decoder.layers.0.fc1", "model.decoder.layers.10.self_attn.q_proj"]
    assert list(layer_groups([*names, "adapter.projection"])) == [
        "model.encoder.layers.0", "model.decoder.layers.0", "model.decoder.layers.10", "adapter.projection",
    ]  # fmt: skip
    assert layer_groups(["h.3.attn.c_attn", "h.3.mlp.4"]) == {"h.3": ["h.3.attn.c_attn", "h.3.mlp.4"]}


def test_a_single_group_is_kept_without_a_search():
    toy = deep(1)
    session = begin(toy, Method(**OPTIONS))
    assert len(session.layers) == 7 and session.positions == 0


def test_the_largest_is_kept_where_none_rises():
    assert positive_groups({"a": -0.2, "b": -0.1}) == {"b"}
    assert positive_groups({"a": 0.2, "b": 0.0, "c": 0.1}) == {"a", "c"}


def test_the_choice_repeats_with_the_seed():
    chosen = [list(begin(deep(), Method(**OPTIONS), seed=s).layers) for s in (0, 0)]
    assert chosen[0] == chosen[1]
    np.testing.assert_array_equal(*chosen)
