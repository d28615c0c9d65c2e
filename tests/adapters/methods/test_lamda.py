"""LaMDA (arXiv:2406.12832)."""

from math import ceil

import pytest
import torch
from families import FAMILIES, begin, train
from methods.rows import Row

from loratory.adapters import core
from loratory.adapters.methods.lamda import Method, frozen_columns
from loratory.errors import InputError

ROW = Row({"rank": 4}, lambda shapes, model: sum(4 * 4 + 4 * out for out, _ in shapes))
INITS = pytest.mark.parametrize("init", ["spectral", "released_code"])


class Watched(Method):
    """Notes B after each step, and whether the optimizer remembers it."""

    def after_step(self, session, step):
        now = {name: layer.adapter["B"].detach().clone() for name, layer in session.layers.items()}
        session.seen = [*getattr(session, "seen", []), now]
        held = [layer.adapter["B"] in session.optimizing.state for layer in session.layers.values()]
        session.held = [*getattr(session, "held", []), held]


def weight(seed=0):
    return torch.randn(9, 7, generator=torch.Generator().manual_seed(seed))


@INITS
def test_a_fresh_adapter_changes_nothing(init):
    method, x = Method(rank=3, init=init), torch.randn(5, 7)
    assert not method.forward(x, method.initial_tensors(weight(), torch.Generator().manual_seed(0)), True).any()


@INITS
def test_the_change_is_the_trained_product_less_the_start(init):
    method = Method(rank=3, init=init, alpha=6.0)
    start = method.initial_tensors(weight(), torch.Generator().manual_seed(0))
    now = start | {"B": start["B"] + 0.1, "S": start["S"] * 1.2}
    scale = 1.0 if init == "spectral" else 2.0
    expected = scale * (now["B"] @ now["S"] @ now["A"] - start["B"] @ start["S"] @ start["A"])
    delta, x = method.weight_delta(now, weight()), torch.randn(5, 7)
    torch.testing.assert_close(delta.to_dense(), expected)
    assert delta.rank == 3
    torch.testing.assert_close(method.forward(x, now, False), x @ expected.T)


def test_the_spectral_start_is_the_weights_best_approximation():
    w, method = weight(), Method(rank=3)
    start = method.initial_tensors(w, torch.Generator())
    torch.testing.assert_close(start["B"].T @ start["B"], torch.eye(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(start["A"] @ start["A"].T, torch.eye(3), rtol=0, atol=1e-5)
    rest = w - start["start"] @ start["A"]
    assert float(torch.linalg.matrix_norm(rest, 2)) == pytest.approx(float(torch.linalg.svdvals(w)[3]), rel=1e-5)
    assert start["S"].diag().tolist() == sorted(start["S"].diag().tolist(), reverse=True)


def test_the_spectral_start_survives_autocast():
    method, x = Method(rank=3), torch.randn(5, 7)
    start = method.initial_tensors(weight(), torch.Generator())
    with torch.autocast("cpu", torch.bfloat16):
        assert not method.forward(x, start, True).any()


@INITS
def test_both_trained_factors_get_a_gradient_by_the_second_step(init, tmp_path):
    toy = FAMILIES["llama"]()
    session = begin(toy, Method(rank=3, init=init))
    start = {name: layer.adapter["S"].detach().clone() for name, layer in session.layers.items()}
    core.detach(toy.model)
    session = train(toy, Method(rank=3, init=init), tmp_path, steps=3)
    assert not any(torch.equal(layer.adapter["S"], start[name]) for name, layer in session.layers.items())


@pytest.mark.parametrize(("steps", "rank"), [(10, 4), (100, 7), (37, 64), (5, 4), (1, 4)])
def test_columns_freeze_one_after_another_until_all_are_frozen_after_the_share(steps, rank):
    frozen = [frozen_columns(step, steps, rank, 0.3) for step in range(steps + 1)]
    assert frozen[0] == 0 and frozen == sorted(frozen)
    assert frozen.index(rank) == ceil(0.3 * steps)


@INITS
def test_frozen_columns_stay_bit_for_bit_despite_decay_and_momentum(init, tmp_path):
    toy = FAMILIES["llama"]()
    session = train(toy, Watched(rank=4, init=init, freeze_share=0.8), tmp_path, steps=10, decay=0.1)
    for step in range(1, 10):
        frozen = frozen_columns(step, 10, 4, 0.8)
        for name, now in session.seen[step].items():
            moved = (now != session.seen[step - 1][name]).any(0)
            assert moved.tolist() == [False] * frozen + [True] * (4 - frozen)


def test_a_wholly_frozen_b_needs_neither_gradient_nor_moments(tmp_path):
    toy = FAMILIES["llama"]()
    session = train(toy, Watched(rank=4, freeze_share=0.5), tmp_path, steps=10)
    assert [all(held) for held in session.held] == [True] * 5 + [False] * 5
    assert [any(held) for held in session.held] == [True] * 5 + [False] * 5
    assert {n.rpartition(".")[2] for n in core.trainable_parameters(toy.model)} == {"S"}


@INITS
def test_the_input_projection_is_never_trained(init, tmp_path):
    toy, method = FAMILIES["llama"](), Method(rank=3, init=init)
    layers = begin(toy, method).layers
    start = {name: layer.tensors["A"].clone() for name, layer in layers.items()}
    core.detach(toy.model)
    session = train(toy, method, tmp_path)
    assert all(torch.equal(layer.tensors["A"], start[name]) for name, layer in session.layers.items())


def test_heads_keep_their_weight_decay():
    toy = FAMILIES["bert"]()
    groups = begin(toy, Method(rank=3)).create_optimizer(core.trainable_parameters(toy.model), None).param_groups
    assert [group["weight_decay"] for group in groups] == [0.0, 0.1]
    assert len(groups[1]["params"]) == len(core.head_parameters(toy.model, toy.heads))


def test_more_singular_vectors_than_a_weight_has_are_refused_by_the_layers_name():
    with pytest.raises(InputError, match=r"encoder.*\(17\); expected at most 16"):
        begin(FAMILIES["whisper"](), Method(rank=17))
    begin(FAMILIES["whisper"](), Method(rank=17, init="released_code"))
