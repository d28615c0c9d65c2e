"""ALLoRA (arXiv:2410.09692)."""

from itertools import pairwise

import pytest
import torch
from methods.rows import Row

from loratory.adapters.methods import lora
from loratory.adapters.methods.allora import Method

ROW = Row({"rank": 3}, lambda shapes, model: sum(3 * (out + inner) for out, inner in shapes))
ETA = 1.5


def factors(trained=True):
    """x, A, B of a layer 6 → 5 and the gradient of its output, in float64."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"x": (2, 4, 6), "A": (3, 6), "B": (5, 3), "g": (2, 4, 5)}
    drawn = {name: torch.randn(shape, generator=generator).double() for name, shape in shapes.items()}
    return drawn if trained else drawn | {"B": torch.zeros(5, 3).double()}


def gradients(method, drawn) -> dict:
    leaves = {name: drawn[name].clone().requires_grad_(True) for name in ("x", "A", "B")}
    output = method.forward(leaves["x"], {"A": leaves["A"], "B": leaves["B"]}, True)
    output.backward(drawn["g"])
    return {name: leaf.grad for name, leaf in leaves.items()}


def vanilla(drawn) -> dict:
    return gradients(lora.Method(rank=3, alpha=3.0), drawn)


def weights(drawn):
    """c, from B A itself."""
    return 1 / ((drawn["B"] @ drawn["A"]).norm(dim=1) + 1 / ETA**2).sqrt()


def test_forward_is_lora_with_scale_one():
    drawn = factors()
    tensors, x = {"A": drawn["A"], "B": drawn["B"]}, drawn["x"]
    expected = lora.Method(rank=3, alpha=3.0).forward(x, tensors, True)
    assert torch.equal(Method(rank=3, eta=ETA).forward(x, tensors, True), expected)
    assert Method(rank=3).weight_delta(tensors, None).scale == 1


def test_at_the_start_the_gradient_of_b_is_eta_times_the_usual_one_and_that_of_a_is_zero():
    drawn = factors(trained=False)
    ours, usual = gradients(Method(rank=3, eta=ETA), drawn), vanilla(drawn)
    torch.testing.assert_close(ours["B"], ETA * usual["B"])
    assert ours["B"].abs().max() > 0 and not ours["A"].any()


@pytest.mark.parametrize("trained", [False, True])
def test_the_gradient_that_reaches_earlier_layers_is_the_true_one(trained):
    drawn = factors(trained)
    torch.testing.assert_close(gradients(Method(rank=3, eta=ETA), drawn)["x"], vanilla(drawn)["x"])


def test_each_row_of_the_gradient_of_b_is_weighed_by_its_own_c():
    drawn = factors()
    ours, usual = gradients(Method(rank=3, eta=ETA), drawn), vanilla(drawn)
    torch.testing.assert_close(ours["B"] / usual["B"], weights(drawn)[:, None].expand(5, 3))


def test_the_gradient_of_a_weighs_rows_before_they_are_mixed():
    drawn = factors()
    ours, usual = gradients(Method(rank=3, eta=ETA), drawn), vanilla(drawn)
    full = drawn["g"].flatten(0, 1).T @ drawn["x"].flatten(0, 1)  # ∂L/∂(B A)
    torch.testing.assert_close(ours["A"], drawn["B"].T @ torch.diag(weights(drawn)) @ full)
    ratios = ours["A"] / usual["A"]
    assert ratios.max() - ratios.min() > 0.1, "a multiple of the usual gradient"


def test_weights_of_rows_are_at_most_eta_and_fall_with_the_root_of_the_rows_norm():
    drawn, method = factors(), Method(rank=3, eta=ETA)
    row_weights = [method.row_weights(drawn["A"], size * drawn["B"]) for size in (0, 1, 2, 1e8, 4e8)]
    assert torch.equal(row_weights[0], torch.full((5,), ETA).double())
    assert all((later < earlier).all() and (later > 0).all() for earlier, later in pairwise(row_weights))
    torch.testing.assert_close(row_weights[4] / row_weights[3], torch.full((5,), 0.5).double())


@pytest.mark.parametrize("leading", [(), (4,), (2, 2, 1)])
def test_any_number_of_leading_dimensions_will_do(leading):
    drawn = factors()
    drawn |= {"x": drawn["x"][0, 0].expand(*leading, 6), "g": drawn["g"][0, 0].expand(*leading, 5)}
    ours, usual = gradients(Method(rank=3, eta=ETA), drawn), vanilla(drawn)
    torch.testing.assert_close(ours["x"], usual["x"])
    torch.testing.assert_close(ours["B"], weights(drawn)[:, None] * usual["B"])


def test_gradients_survive_bf16_autocast():
    drawn = {name: tensor.float() for name, tensor in factors().items()}
    exact = gradients(Method(rank=3, eta=ETA), drawn)
    with torch.autocast("cpu", torch.bfloat16):
        leaves = {name: drawn[name].clone().requires_grad_(True) for name in ("x", "A", "B")}
        output = Method(rank=3, eta=ETA).forward(leaves["x"], {"A": leaves["A"], "B": leaves["B"]}, True)
    output.backward(drawn["g"].to(output.dtype))
    for name, leaf in leaves.items():
        assert (leaf.grad - exact[name]).norm() < 0.02 * exact[name].norm()


@pytest.mark.parametrize("option", ["alpha", "dropout"])
def test_neither_scale_nor_dropout_can_be_asked_for(option):
    with pytest.raises(ValueError, match=option):
        Method(**{option: 0.5})
