"""S2-LoRA (arXiv:2309.11756)."""

from types import SimpleNamespace

import torch
from families import FAMILIES, begin, train
from methods.rows import Row
from torch import nn

from loratory.adapters import core, deltas
from loratory.adapters.methods import lora
from loratory.adapters.methods.s2_lora import Method
from loratory.training import checkpoint

ROW = Row(
    {"rank": 4},
    lambda shapes, model: sum(4 * (out + inner) for out, inner in set(shapes)) + 4 * len(shapes),
    rate=3e-2,
)


def begun(**options):
    """A session on Llama whose coefficients are random."""
    toy = FAMILIES["llama"]()
    session = begin(toy, Method(**({"rank": 3} | options)))
    torch.manual_seed(1)
    for layer in session.layers.values():
        nn.init.normal_(layer.adapter["s"])
    return toy, session


def groups(session) -> dict:
    """{shape: adapted layers}."""
    found = {}
    for layer in session.layers.values():
        found.setdefault(tuple(layer.weight.shape), []).append(layer)
    return found


def test_all_matrices_of_a_shape_hold_the_same_pair_and_their_own_coefficients():
    toy, session = begun()
    assert sorted((shape, len(layers)) for shape, layers in groups(session).items()) == [
        ((32, 32), 8),
        ((32, 48), 2),
        ((48, 32), 4),
    ]
    for layers in groups(session).values():
        assert all(layer.adapter[key] is layers[0].adapter[key] for layer in layers for key in "AB")
    for key, count in (("A", 3), ("B", 3), ("s", 14)):
        assert len({layer.adapter[key].data_ptr() for layer in session.layers.values()}) == count
    assert sum(name.endswith((".A", ".B")) for name in core.trainable_parameters(toy.model)) == 6


def test_target_modules_restrict_the_sharing():
    toy = FAMILIES["llama"]()
    begin(toy, Method(rank=3, target_modules=("q_proj", "v_proj")))
    assert sum(p.numel() for p in core.trainable_parameters(toy.model).values()) == 3 * 64 + 3 * 4


def test_at_first_the_coefficients_alone_get_a_gradient():
    session = begin(FAMILIES["llama"](), Method(rank=3))
    session.loss(session.batch(0)).backward()
    for layer in session.layers.values():
        assert layer.adapter["s"].grad.abs().min() > 0
        assert not layer.adapter["A"].grad.any() and not layer.adapter["B"].grad.any()


def test_coefficients_change_one_matrix_and_the_pair_all_of_its_shape():
    _, session = begun()
    square, other = groups(session)[32, 32], groups(session)[48, 32]
    layers = [*square, *other]

    def changed(edit) -> list[bool]:
        before = [layer.weight_delta().to_dense() for layer in layers]
        with torch.no_grad():
            edit.mul_(2)
        return [not torch.equal(layer.weight_delta().to_dense(), old) for layer, old in zip(layers, before)]

    assert changed(square[1].adapter["s"]) == [layer is square[1] for layer in layers]
    assert changed(square[1].adapter["A"]) == [layer in square for layer in layers]


def test_the_gradient_of_the_pair_is_the_sum_over_its_matrices():
    _, session = begun()
    session.loss(session.batch(0)).backward()
    shared = {shape: layers[0].adapter["A"].grad.clone() for shape, layers in groups(session).items()}
    for layer in session.layers.values():  # independent copies of the same numbers
        for key in "AB":
            layer.adapter[key] = nn.Parameter(layer.adapter[key].detach().clone())
    session.loss(session.batch(0)).backward()
    for shape, layers in groups(session).items():
        torch.testing.assert_close(sum(layer.adapter["A"].grad for layer in layers), shared[shape])


def test_coefficients_of_one_make_it_lora_without_a_scale():
    method, x = Method(rank=3), torch.randn(4, 10)
    pair = {"A": torch.randn(3, 10), "B": torch.randn(8, 3)}
    expected = lora.Method(rank=3, alpha=3.0).forward(x, pair, False)
    torch.testing.assert_close(method.forward(x, pair | {"s": torch.ones(3)}, False), expected)


def test_what_is_stored_has_each_matrix_its_own_pair_without_dead_components(tmp_path):
    toy, session = begun()
    layers = list(session.layers.values())
    with torch.no_grad():
        layers[0].adapter["s"].copy_(torch.tensor([0.5, 0.0, -2.0]))
        layers[1].adapter["s"].zero_()
    expected = [layer.adapter["B"] @ torch.diag(layer.adapter["s"]) @ layer.adapter["A"] for layer in layers]
    adapter = core.export(toy.model, (), {})
    deltas.save_adapter(tmp_path / "a", adapter, causal=True)
    stored = list(deltas.load_adapter(tmp_path / "a").deltas.items())
    assert [delta.rank for _, delta in adapter.deltas.items()][:3] == [2, 1, 3]
    for name, delta in stored:
        torch.testing.assert_close(delta.to_dense(), expected[list(session.layers).index(name)].detach())


def test_a_large_penalty_makes_all_coefficients_exactly_zero_and_the_base_comes_back(tmp_path):
    toy = FAMILIES["llama"]()
    before = toy.output()
    session = train(toy, Method(rank=3, sparsity=1e3), tmp_path)
    assert not any(layer.adapter["s"].any() for layer in session.layers.values())
    torch.testing.assert_close(toy.output(), before)


def test_the_penalty_shrinks_by_the_rate_of_the_step_and_never_over_zero():
    method = Method(rank=3, sparsity=0.5)
    layer = core.AdaptedLinear(nn.Linear(4, 4), method, method.initial_tensors(torch.zeros(4, 4), torch.Generator()))
    with torch.no_grad():
        layer.adapter["s"].copy_(torch.tensor([1.0, -0.3, 0.1]))
    recipe = SimpleNamespace(learning_rate_at=lambda step: {7: 0.4}[step])
    a = layer.adapter["A"].clone()
    method.after_step(SimpleNamespace(layers={"a": layer}, recipe=recipe), 7)
    torch.testing.assert_close(layer.adapter["s"].detach(), torch.tensor([0.8, -0.1, 0.0]))
    assert torch.equal(layer.adapter["A"], a)


def test_more_penalty_leaves_smaller_coefficients(tmp_path):
    sums = []
    for sparsity in (0.0, 0.5, 2.0):
        session = train(FAMILIES["llama"](), Method(rank=3, sparsity=sparsity), tmp_path / str(sparsity), steps=10)
        sums.append(float(sum(layer.adapter["s"].detach().abs().sum() for layer in session.layers.values())))
    assert sums == sorted(sums, reverse=True) and sums[0] > 2 * sums[1]


def test_weight_decay_spares_the_coefficients():
    toy, session = begun()
    optimizer = session.create_optimizer(core.trainable_parameters(toy.model), session.recipe)
    decays = {group["weight_decay"]: sum(p.numel() for p in group["params"]) for group in optimizer.param_groups}
    assert decays == {0.1: 3 * (64 + 80 + 80), 0.0: 3 * 14}


def test_a_checkpoint_has_each_shared_tensor_once(tmp_path):
    toy, session = begun()
    parameters = core.trainable_parameters(toy.model)
    optimizer = session.create_optimizer(parameters, session.recipe)
    session.loss(session.batch(0)).backward()
    optimizer.step()
    checkpoint.save_checkpoint(tmp_path, 1, [], parameters, optimizer, session.state_tensors())
    size = (tmp_path / checkpoint.NAME).stat().st_size
    numbers = 3 * 3 * (64 + 80 + 80) + 3 * 3 * 14  # values and both moments
    assert 4 * numbers < size < 4 * numbers + 20_000
