"""The local half of FFA-LoRA (arXiv:2403.12313) and what it makes exact: averaging factors averages updates."""

import pytest
import torch
import torch.nn.functional as F
from families import FAMILIES, begin, train
from methods.rows import Row

from loratory.adapters import core
from loratory.adapters.methods import lora
from loratory.adapters.methods.ffa_lora import Method

ROW = Row({"rank": 3, "alpha": 6.0}, lambda shapes, model: sum(3 * out for out, _ in shapes))
RATE = 0.5


def trained_by_clients(method, folder, items):
    """The exported changes of one training for each share of the examples."""
    clients = []
    for i, share in enumerate(items):
        toy = FAMILIES["llama"]()
        toy.items = toy.items[share]
        train(toy, method, folder / str(i))
        clients.append(core.export(toy.model, (), {}).deltas)
    return clients


def distance_of_averaged_factors_from_averaged_updates(clients) -> float:
    """Largest over the layers, relative to the averaged update."""
    worst = 0.0
    for name in clients[0]:
        deltas = [client[name] for client in clients]
        a, b = (torch.stack([getattr(d, factor) for d in deltas]).mean(0) for factor in "AB")
        updates = torch.stack([d.to_dense() for d in deltas]).mean(0)
        worst = max(worst, float((deltas[0].scale * b @ a - updates).norm() / updates.norm()))
    return worst


SHARES = (slice(0, 4), slice(4, 8), slice(8, 12))


def test_averaging_the_factors_of_clients_averages_their_updates(tmp_path):
    clients = trained_by_clients(Method(rank=2), tmp_path, SHARES)
    assert distance_of_averaged_factors_from_averaged_updates(clients) < 1e-6


def test_which_fails_for_plain_lora(tmp_path):
    clients = trained_by_clients(lora.Method(rank=2), tmp_path, SHARES)
    assert distance_of_averaged_factors_from_averaged_updates(clients) > 1e-2


def test_a_is_the_same_for_all_clients_before_and_after_training_despite_weight_decay(tmp_path):
    started = begin(FAMILIES["llama"](), Method(rank=2)).layers
    for client in trained_by_clients(Method(rank=2), tmp_path, SHARES):
        assert all(torch.equal(client[name].A, layer.tensors["A"]) for name, layer in started.items())
        assert all(delta.B.abs().max() > 0 for delta in client.values())


def test_another_seed_or_layer_has_another_a():
    layers = [begin(FAMILIES["llama"](), Method(rank=2), seed).layers for seed in (0, 1)]
    drawn = [layer.tensors["A"] for session in layers for layer in session.values()]
    assert len({tuple(a.flatten().tolist()) for a in drawn}) == 2 * len(layers[0])


def sgd(method, rate, steps=1, rows=slice(None), start=None):
    """The change of a 6 → 5 layer after full-batch SGD on a mean squared error, and its B."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(8, 6, generator=generator).double(), torch.randn(8, 5, generator=generator).double()
    weight = torch.randn(5, 6, generator=generator).double()
    tensors = {name: tensor.double() for name, tensor in method.initial_tensors(weight, generator).items()}
    b = tensors["B"].clone() if start is None else start.clone()
    for _ in range(steps):
        b.requires_grad_(True)
        output = F.linear(x[rows], weight) + method.forward(x[rows], tensors | {"B": b}, True)
        (gradient,) = torch.autograd.grad(F.mse_loss(output, y[rows]), b)
        b = (b - rate * gradient).detach()
    return method.weight_delta(tensors | {"B": b}, weight).to_dense(), b


def test_one_averaged_step_of_clients_is_one_step_on_their_union():
    shares = [sgd(Method(rank=2), RATE, rows=rows)[0] for rows in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close(torch.stack(shares).mean(0), sgd(Method(rank=2), RATE)[0])


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_alpha_is_a_learning_rate_under_sgd(factor):
    change, b = sgd(Method(rank=2, alpha=4.0), RATE, steps=4)
    other, scaled = sgd(Method(rank=2, alpha=4.0 * factor), RATE / factor**2, steps=4)
    torch.testing.assert_close(other, change)
    torch.testing.assert_close(scaled, b / factor)


def test_a_ratio_of_rates_is_refused():
    with pytest.raises(ValueError, match="lr_ratio"):
        Method(lr_ratio=16.0)
