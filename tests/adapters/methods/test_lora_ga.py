"""LoRA-GA (arXiv:2407.05000)."""

import pytest
import torch
from families import FAMILIES, begin, train
from methods.rows import Row

from loratory.adapters import core
from loratory.adapters.methods.lora_ga import Method
from loratory.errors import InputError

ROW = Row({"rank": 3, "gamma": 16.0}, lambda shapes, model: sum(3 * (out + inner) for out, inner in shapes))
DIRECTIONS = ["ArB2r", "A2rBr", "ArBr", "random"]


def gradient(out=20, inner=16):
    return torch.randn(out, inner, generator=torch.Generator().manual_seed(5), dtype=torch.float64).float()


def started(method: Method, g: torch.Tensor):
    weight = torch.randn(g.shape, generator=torch.Generator().manual_seed(6))
    return method.initial_factors(g, weight, torch.Generator().manual_seed(7))


@pytest.mark.parametrize("stabilised", [True, False])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_first_step_is_the_best_of_twice_the_rank(direction, stabilised):
    method, g = Method(rank=3, direction=direction, stabilised=stabilised, gamma=16.0), gradient()
    a, b = started(method, g)
    step = method.scale**2 * (b @ b.T @ g + g @ a.T @ a)
    size = method.scale**2 * g.shape[0] ** 0.5 / method.gamma
    left, values, right = torch.linalg.svd(g, full_matrices=False)
    best = left[:, :6] @ values[:6].diag() @ right[:6]
    torch.testing.assert_close(step, size * best, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close((step / size - g).norm(), values[6:].norm(), rtol=1e-4, atol=0)


def test_sharing_singular_directions_between_a_and_b_would_miss_it():
    method, g = Method(rank=3, gamma=16.0), gradient()
    a, _ = started(method, g)
    _, b = started(Method(rank=3, gamma=16.0, direction="A2rBr"), g)
    step = method.scale**2 * (b @ b.T @ g + g @ a.T @ a)
    size = method.scale**2 * g.shape[0] ** 0.5 / method.gamma
    assert (step / size - g).norm() > 1.2 * torch.linalg.svdvals(g)[6:].norm()


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_rows_and_columns_are_orthogonal_of_the_stable_length_and_from_disjoint_halves(direction):
    method, g = Method(rank=3, direction=direction), gradient()
    a, b = started(method, g)
    square = g.shape[0] ** 0.5 / method.gamma * torch.eye(3)
    torch.testing.assert_close(a @ a.T, square, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(b.T @ b, square, atol=1e-6, rtol=1e-4)
    left_of_a = g @ a.T  # spans the left singular vectors that belong to A's
    assert (left_of_a.T @ b).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("option", "length"), [("unit", lambda m, w: 1.0), ("gd", lambda m, w: 1 / m.scale),
                           ("weightS", lambda m, w: (torch.linalg.svdvals(w)[:3] / m.scale).sqrt().mean())]
)  # fmt: skip
def test_other_lengths_follow_their_formulas(option, length):
    method, g = Method(rank=3, init_scale=option), gradient()
    weight = torch.randn(g.shape, generator=torch.Generator().manual_seed(6))
    a, b = started(method, g)
    for norms in (a.norm(dim=1), b.norm(dim=0)):
        torch.testing.assert_close(norms, torch.full((3,), float(length(method, weight))), rtol=1e-4, atol=0)


def test_the_start_comes_from_the_gradient_of_the_layers_own_weight():
    toy, method = FAMILIES["gpt2"](), Method(rank=3, batches=3)
    session = begin(toy, method)
    layer = session.layers["transformer.h.0.attn.c_attn"]
    core.detach(toy.model)
    weight = layer.base.weight.requires_grad_(True)
    sum(session.loss(session.batch(step)) for step in range(3)).backward()
    a, b = method.initial_factors(weight.grad.T / 3, weight.T.detach(), None)
    for key, expected in {"A": a, "A0": a, "B": b, "B0": b}.items():
        cosines = torch.cosine_similarity(layer.tensors[key].flatten(), expected.flatten(), dim=0)
        assert cosines > 0.999


def test_the_gradient_pass_leaves_the_base_and_all_gradients_as_they_were():
    toy = FAMILIES["bert"]()
    before = {name: p.clone() for name, p in toy.model.named_parameters()}
    session = begin(toy, Method(rank=3))
    assert all(p.grad is None for p in toy.model.parameters())
    assert session.positions == 8 * 24
    assert not any(layer.base.weight.requires_grad for layer in session.layers.values())
    core.detach(toy.model)
    after = dict(toy.model.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before if not name.startswith(toy.heads))


def test_without_its_gradient_pass_a_layer_is_the_base():
    toy = FAMILIES["llama"]()
    before = toy.output()
    core.attach(toy.model, Method(rank=3), 0)
    assert torch.equal(toy.output(), before)


@torch.no_grad()
def test_the_stored_pair_on_the_original_weight_is_the_offset_weight_with_the_trained_pair(tmp_path):
    with torch.enable_grad():
        session = train(FAMILIES["llama"](), Method(rank=3, gamma=16.0), tmp_path)
    for layer in session.layers.values():
        t, scale = layer.tensors, layer.method.scale
        offset = layer.weight - scale * t["B0"] @ t["A0"]
        delta = layer.weight_delta()
        assert delta.rank == 6 and not torch.equal(t["A"], t["A0"])
        torch.testing.assert_close(layer.weight + delta.to_dense(), offset + scale * t["B"] @ t["A"])


def test_weight_decay_does_not_pull_the_pair_from_its_start():
    toy = FAMILIES["bert"]()
    session = begin(toy, Method(rank=3), decay=0.5)
    parameters = core.trainable_parameters(toy.model)
    for p in parameters.values():
        p.grad = torch.zeros_like(p)
    session.create_optimizer(parameters, session.recipe).step()
    for layer in session.layers.values():
        assert torch.equal(layer.tensors["A"], layer.tensors["A0"])
        assert torch.equal(layer.tensors["B"], layer.tensors["B0"])
    decays = [group["weight_decay"] for group in session.optimizing.param_groups]
    assert decays == [0.0, 0.5], "heads decay as they do with other methods"


def test_a_rank_that_needs_more_directions_than_there_are_is_refused_with_the_largest():
    with pytest.raises(InputError, match=r"q_proj: .*at most 16"):
        begin(FAMILIES["llama"](), Method(rank=17))
