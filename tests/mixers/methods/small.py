"""Small mixtures for tests of one mixer each."""

import torch
from models import llama, opinionated, trained_adapter

from loratory.adapters import core
from loratory.adapters.deltas import Adapter
from loratory.adapters.methods.lora import Method
from loratory.mixers.core import Mixture

IDS = torch.arange(2 * 7).view(2, 7) % 40 + 3
CLOSE = {"rtol": 0, "atol": 1e-5}


def given() -> dict[str, Adapter]:
    """Two trained experts of unequal ranks, scales and layers."""
    model = llama()
    names = ("q_proj", "up_proj", "down_proj")
    return {
        "a": trained_adapter(model, Method(rank=2, alpha=3.0), 1),
        "b": trained_adapter(model, Method(rank=4, alpha=4.0, target_modules=names), 2),
    }


def mixed(mixer, experts=None, model=None, seed=4) -> Mixture:
    """A mixture whose fresh experts look trained and whose gate has opinions."""
    experts = experts or given()
    mixture = Mixture(model or llama(), mixer.prepare_experts(experts, seed), mixer, domains=list(experts))
    opinionated(mixture)
    if mixer.trains_experts:
        generator = torch.Generator().manual_seed(6)
        for layer in mixture.layers.values():
            layer.B.data.copy_(torch.randn(layer.B.shape, generator=generator) * 0.3)
    mixture.domain = 1
    return mixture.eval()


def alone(*adapters: Adapter):
    """The base with adapters of different layers, and nothing else."""
    model = llama()
    core.apply(
        model, Adapter({name: delta for adapter in adapters for name, delta in adapter.deltas.items()}), "alone"
    )
    return model


def merged(weights: dict[str, float], experts: dict[str, Adapter]):
    """The base with Σ weight · ΔW added to its own weights."""
    model = llama()
    for name, weight in weights.items():
        for module, delta in experts[name].deltas.items():
            model.get_submodule(module).weight.data += weight * delta.to_dense()
    return model


def change(mixture: Mixture, module: str, **inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """What came into a mixed layer in one pass, and what the experts added to its output."""
    seen = []
    hook = mixture.layers[module].register_forward_hook(lambda layer, args, y: seen.append((args[0], y)))
    mixture(**inputs)
    hook.remove()
    x, y = seen[0]
    return x, y - mixture.layers[module].base(x)


def gradients(mixture: Mixture, loss) -> dict[str, torch.Tensor]:
    parameters = mixture.trainable_parameters()
    found = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True, allow_unused=True)
    return {name: gradient for name, gradient in zip(parameters, found) if gradient is not None}
