"""LoRA-FA (arXiv:2308.03303), against PEFT's optimizer."""

import peft
import pytest
import torch
from families import FAMILIES, begin
from methods.rows import Row
from peft.optimizers import create_lorafa_optimizer, lorafa

from loratory.adapters import core
from loratory.adapters.methods.lora_fa import Method

ROW = Row({"rank": 3, "alpha": 6.0}, lambda shapes, model: sum(3 * out for out, _ in shapes))


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_steps_are_those_of_pefts_optimizer(decay, monkeypatch):
    """In float32: PEFT multiplies in bfloat16 where it can."""
    monkeypatch.setattr(lorafa, "is_bf16_available", lambda: False)
    ours, theirs = FAMILIES["llama"](), FAMILIES["llama"]()
    session = begin(ours, Method(rank=4, alpha=6.0), rate=1e-3, decay=decay)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=6, target_modules=list(session.layers))
    wrapped = peft.get_peft_model(theirs.model, config)
    for name, layer in session.layers.items():
        wrapped.base_model.model.get_submodule(name).lora_A["default"].weight.data.copy_(layer.tensors["A"])
    mine = session.create_optimizer(core.trainable_parameters(ours.model), session.recipe)
    other = create_lorafa_optimizer(wrapped, r=4, lora_alpha=6, lr=1e-3, weight_decay=decay)
    for toy, model, optimizer in ((ours, ours.model, mine), (theirs, wrapped, other)):
        for _ in range(5):
            total, n = toy.loss(model, toy.collate(toy.items))
            (total / n).backward()
            optimizer.step()
            optimizer.zero_grad()
    for name, layer in session.layers.items():
        b = wrapped.base_model.model.get_submodule(name).lora_B["default"].weight
        torch.testing.assert_close(layer.tensors["B"], b, rtol=1e-3, atol=1e-6)


def test_heads_take_the_same_steps_without_a_preconditioner():
    toy = FAMILIES["bert"]()
    session = begin(toy, Method(rank=3), rate=1e-2, decay=0.5)
    parameters = core.trainable_parameters(toy.model)
    before = parameters["classifier.weight"].detach().clone()
    for p in parameters.values():
        p.grad = torch.ones_like(p)
    session.create_optimizer(parameters, session.recipe).step()
    torch.testing.assert_close(parameters["classifier.weight"], (before - 1e-2) * (1 - 1e-2 * 0.5), atol=1e-5, rtol=0)


def test_the_preconditioned_step_is_the_nearest_to_the_full_gradient():
    method, generator = Method(rank=3, alpha=6.0), torch.Generator().manual_seed(0)
    g = torch.randn(7, 9, generator=generator)
    a = method.initial_tensors(g, generator)["A"]
    step = method.scale * g @ a.T @ method.gradient_preconditioner(a)
    best = torch.linalg.lstsq(method.scale * a.T, g.T).solution.T
    torch.testing.assert_close(step, best, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("alpha", [1.0, 30.0])
def test_alpha_scales_the_change_that_a_rate_makes(alpha):
    """Adam takes out the size of the gradient: at a tenth of the scale, the same B makes a tenth of the change."""
    toy = FAMILIES["llama"]()
    session = begin(toy, Method(rank=3, alpha=alpha))
    parameters = core.trainable_parameters(toy.model)
    session.loss(session.batch(0)).backward()
    session.create_optimizer(parameters, session.recipe).step()
    sizes = [layer.weight_delta().to_dense().abs().max() / alpha for layer in session.layers.values()]
    assert min(sizes) > 1e-4 and max(sizes) < 1e-1
