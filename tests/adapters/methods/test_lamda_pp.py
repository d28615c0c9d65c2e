"""LaMDA++ (arXiv:2406.12832), by the project's rule."""

import pytest
import torch
from families import FAMILIES, begin
from methods.rows import Row

from loratory.adapters import core
from loratory.adapters.methods.lamda_pp import Method


def by_ranks(shapes, model):
    """Of the ranks that were given; that they are right is tested below."""
    layers = [module for module in model.modules() if isinstance(module, core.AdaptedLinear)]
    return sum(layer.method.rank**2 + layer.method.rank * out for layer, (out, _) in zip(layers, shapes))


ROW = Row({"rank": 4}, by_ranks)


def of_spectrum(values, seed=0) -> torch.Tensor:
    """A matrix with the given singular values."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.linalg.qr(torch.randn(len(values), len(values), generator=generator)).Q for _ in range(2))
    return left @ torch.diag(torch.tensor(values)) @ right


def ranks(weights: dict, mean: int) -> dict:
    return {name: method.rank for name, method in Method(rank=mean).layer_methods(weights).items()}


def random_weights(count=6) -> dict:
    return {f"{i}": of_spectrum([(k + 1.0) ** -(0.3 * i) for k in range(24)], i) for i in range(count)}


@pytest.mark.parametrize("mean", [2, 4, 5, 8])
def test_the_mean_rank_is_at_most_the_target_and_each_within_half_and_twice_it(mean):
    found = ranks(random_weights(), mean).values()
    assert mean * len(found) - len(found) < sum(found) <= mean * len(found)
    assert all(max(1, mean // 2) <= rank <= 2 * mean for rank in found)


def test_a_flatter_spectrum_gets_a_larger_rank():
    found = list(ranks(random_weights(), 4).values())
    assert found == sorted(found, reverse=True) and found[0] > found[-1]


def test_one_threshold_of_energy_gives_all_the_ranks():
    weights = random_weights()
    found = ranks(weights, 4)
    energies = {name: (s := torch.linalg.svdvals(w.double()) ** 2).cumsum(0) / s.sum() for name, w in weights.items()}
    inside = [name for name, rank in found.items() if 2 < rank < 8]
    reached = min(float(energies[name][found[name] - 1]) for name in inside)
    assert inside
    assert all(float(energies[name][found[name] - 2]) < reached for name in inside)


def test_the_scale_of_a_weight_does_not_matter():
    weights = random_weights()
    assert ranks({name: 100 * weight for name, weight in weights.items()}, 4) == ranks(weights, 4)


def test_a_weight_of_low_rank_gets_no_more_than_that_or_the_least():
    flat = {f"flat{i}": of_spectrum([1.0] * 24, i) for i in range(3)}
    low = {"three": of_spectrum([3.0, 2.0, 1.0, *[0.0] * 21], 7), "one": of_spectrum([3.0, *[0.0] * 23], 8)}
    found = ranks(flat | low, 4)
    assert found["three"] <= 3 and found["one"] == 2
    assert max(found.values()) > 4


def test_every_layer_starts_and_trains_at_its_own_rank():
    toy = FAMILIES["llama"]()
    session = begin(toy, Method(rank=4))
    given = {name: layer.method.rank for name, layer in session.layers.items()}
    assert len(set(given.values())) > 1
    assert all(layer.adapter["S"].shape == (given[name],) * 2 for name, layer in session.layers.items())
