"""How near a training's first step is to the full gradient: what the docstrings of LoRA-GA and LoRA-SB say of it.

`benchmarks/first_step.py` measures the same on a trained base.
"""

import pytest
import torch
from families import FAMILIES, begin

from loratory.adapters import core
from loratory.adapters.methods import lora, lora_ga, lora_sb

METHODS = {
    "lora": lora.Method(rank=3),
    "lora_ga": lora_ga.Method(rank=3),
    "lora_sb": lora_sb.Method(rank=12),
}


def laid_out(found: dict) -> torch.Tensor:
    return torch.cat([matrix.double().flatten() for matrix in found.values()])


def first_step_cosine(method, adam: bool) -> float:
    """Between minus the full gradient, where training starts, and the change of all weights in a short first step."""
    toy = FAMILIES["llama"]()
    session = begin(toy, method)
    delta = lambda: laid_out({name: layer.weight_delta().to_dense() for name, layer in session.layers.items()})  # noqa: E731
    gradients, before = laid_out(session.weight_gradients(1)), delta()
    parameters = core.trainable_parameters(toy.model)
    optimizer = session.create_optimizer(parameters, session.recipe) if adam else torch.optim.SGD(parameters.values())
    for group in optimizer.param_groups:
        group["lr"] = 1e-5 if adam else 1e-2
    session.loss(session.batch(0)).backward()
    optimizer.step()
    return float(torch.cosine_similarity(delta() - before, -gradients, dim=0))


@pytest.fixture(scope="module")
def cosines():
    return {(name, adam): first_step_cosine(method, adam) for name, method in METHODS.items() for adam in (0, 1)}


@pytest.mark.parametrize(("name", "at_least"), [("lora_ga", 0.65), ("lora_sb", 0.5)])
def test_by_gradient_descent_the_first_step_follows_the_full_gradient(cosines, name, at_least):
    assert cosines[name, False] > max(at_least, 1.5 * cosines["lora", False])


@pytest.mark.parametrize("name", ["lora_ga", "lora_sb"])
def test_by_adamw_it_follows_it_better_than_loras_and_far_less_than_by_gradient_descent(cosines, name):
    assert cosines["lora", True] < cosines[name, True] < 0.75 * cosines[name, False]
