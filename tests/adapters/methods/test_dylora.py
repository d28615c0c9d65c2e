"""DyLoRA (arXiv:2210.07558)."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from families import FAMILIES, begin
from methods.rows import Row
from torch import nn

from loratory.adapters import core
from loratory.adapters.methods import lora
from loratory.adapters.methods.dylora import Method

ROW = Row(
    {"rank": 4, "alpha": 8.0, "frozen": True, "export_rank": 3},
    lambda shapes, model: sum(4 * (out + inner) for out, inner in shapes),
)
FROZEN = pytest.mark.parametrize("frozen", [False, True], ids=["nested", "frozen"])


def layer_of(**options) -> core.AdaptedLinear:
    """An adapted layer of rank 4 with a random B."""
    torch.manual_seed(0)
    method, base = Method(rank=4, alpha=6.0, **options), nn.Linear(10, 8).requires_grad_(False)
    layer = core.AdaptedLinear(base, method, method.initial_tensors(base.weight, torch.Generator().manual_seed(0)))
    nn.init.normal_(layer.adapter["B"])
    return layer


@FROZEN
@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_at_rank_b_it_is_the_lora_of_the_first_b_rows_with_scale_alpha_over_b(rank, frozen):
    x, drawn, chosen = torch.randn(3, 10), layer_of(frozen=frozen), layer_of(frozen=frozen, export_rank=rank)
    drawn.tensors["active"].fill_(rank)
    a, b = drawn.adapter["A"], drawn.adapter["B"]
    cut = lora.Method(rank=rank, alpha=6.0).forward(x, {"A": a[:rank], "B": b[:, :rank]}, False)
    for layer in (drawn.train(), chosen.eval()):
        torch.testing.assert_close(layer(x), layer.base(x) + cut, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(chosen.weight_delta().to_dense(), 6.0 / rank * (b[:, :rank] @ a[:rank]).detach())


def test_what_is_beyond_rank_b_does_not_matter():
    layer, x = layer_of(export_rank=2).eval(), torch.randn(3, 10)
    before, stored = layer(x), layer.weight_delta().to_dense()
    with torch.no_grad():
        layer.adapter["A"][2:].normal_()
        layer.adapter["B"][:, 2:].normal_()
    assert torch.equal(layer(x), before) and torch.equal(layer.weight_delta().to_dense(), stored)


@FROZEN
def test_gradients_are_exactly_zero_beyond_rank_b_and_when_frozen_before_it(frozen):
    layer = layer_of(frozen=frozen).train()
    layer.tensors["active"].fill_(3)
    layer(torch.randn(5, 10)).square().sum().backward()
    moved = [False, False, True, False] if frozen else [True, True, True, False]
    assert (layer.adapter["A"].grad.abs().amax(1) > 0).tolist() == moved
    assert (layer.adapter["B"].grad.abs().amax(0) > 0).tolist() == moved


def test_evaluation_does_not_depend_on_the_rank_drawn_last():
    layer, x = layer_of().eval(), torch.randn(3, 10)
    full = layer(x)
    layer.tensors["active"].fill_(1)
    assert torch.equal(layer(x), full)


def test_all_layers_have_one_rank_in_a_step_and_all_ranks_are_as_frequent():
    method, layers = Method(rank=4), {name: layer_of() for name in "ab"}
    session, seen = SimpleNamespace(seed=3, layers=layers), Counter()
    for step in range(2000):
        method.before_step(session, step)
        ranks = {int(layer.tensors["active"]) for layer in layers.values()}
        assert len(ranks) == 1
        seen.update(ranks)
    spread = (2000 * 0.25 * 0.75) ** 0.5
    assert sorted(seen) == [1, 2, 3, 4] and all(abs(count - 500) < 5 * spread for count in seen.values())


def test_ranks_depend_on_the_seed():
    method, layer = Method(rank=4), layer_of()

    def drawn(seed):
        for step in range(20):
            method.before_step(SimpleNamespace(seed=seed, layers={"a": layer}), step)
            yield int(layer.tensors["active"])

    assert list(drawn(0)) == list(drawn(0)) != list(drawn(1))


def moved_rows(method, steps: int = 8) -> list[tuple[int, list[int]]]:
    """(active rank, rows of A or columns of B that moved) of every layer in every step."""
    toy, found = FAMILIES["llama"](), []
    session = begin(toy, method, decay=0.5)
    optimizer = session.create_optimizer(core.trainable_parameters(toy.model), session.recipe)
    toy.model.train()
    for step in range(steps):
        method.before_step(session, step)
        session.loss(session.batch(step)).backward()
        before = [[layer.adapter[key].detach().clone() for key in "AB"] for layer in session.layers.values()]
        optimizer.step()
        optimizer.zero_grad()
        for layer, (a, b) in zip(session.layers.values(), before):
            moved = (layer.adapter["A"] != a).any(1) | (layer.adapter["B"] != b).any(0)
            found.append((int(layer.tensors["active"]), moved.nonzero().flatten().tolist()))
    return found


def test_frozen_rows_stay_bit_equal_despite_momentum_and_weight_decay():
    moved = moved_rows(Method(rank=4, frozen=True))
    assert len({active for active, _ in moved}) > 2, "more than two ranks were drawn"
    assert all(rows == [active - 1] for active, rows in moved)


def test_the_first_b_rows_all_move_when_nothing_is_frozen():
    assert all(set(range(active)) <= set(rows) for active, rows in moved_rows(Method(rank=4)))


def test_a_fresh_adapter_is_the_base_at_every_rank():
    toy = FAMILIES["llama"]()
    before = toy.output()
    for rank in (1, 2, 4):
        begin(toy, Method(rank=4, export_rank=rank))
        assert torch.equal(toy.output(), before)
        core.detach(toy.model)


def test_a_rank_to_export_beyond_the_trained_one_is_refused():
    with pytest.raises(ValueError, match=r"export_rank is 5, expected at most rank \(4\)"):
        Method(rank=4, export_rank=5)
