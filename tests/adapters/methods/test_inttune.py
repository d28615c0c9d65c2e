"""IntTune (arXiv:2502.14482)."""

import pytest
import torch
from families import FAMILIES, begin, train
from methods.rows import Row

from loratory.adapters import core
from loratory.adapters.methods import nlora
from loratory.adapters.methods.inttune import Method
from loratory.errors import InputError

ROW = Row(
    {"rank": 4, "alpha": 400.0},
    lambda shapes, model: 16 * len(shapes),
    starts="elsewhere",
    rate=5e-2,
)


@pytest.fixture(autouse=True)
def same_numbers():
    torch.manual_seed(0)


def test_it_starts_as_nlora():
    weight = torch.randn(7, 6)
    ours, theirs = (kind(rank=3).initial_tensors(weight, torch.Generator()) for kind in (Method, nlora.Method))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("offset_base", [False, True])
def test_only_n_moves_despite_weight_decay(offset_base, tmp_path):
    method = Method(rank=3, offset_base=offset_base)
    started = {name: layer.tensors for name, layer in begin(FAMILIES["llama"](), method).layers.items()}
    for name, layer in train(FAMILIES["llama"](), method, tmp_path).layers.items():
        assert list(layer.adapter) == ["N"]
        same = {key for key, tensor in layer.tensors.items() if torch.equal(tensor, started[name][key])}
        assert same == started[name].keys() - {"N"}


@pytest.mark.parametrize("offset_base", [False, True])
def test_the_gradient_of_n_is_that_of_the_weight_between_the_slices(offset_base):
    weight = torch.randn(7, 6)
    method = Method(rank=3, alpha=6.0, offset_base=offset_base)
    tensors = method.initial_tensors(weight, torch.Generator())
    tensors["N"].requires_grad_(True)
    x, g = torch.randn(4, 6), torch.randn(4, 7)
    method.forward(x, tensors, True).backward(g)
    torch.testing.assert_close(tensors["N"].grad, 2.0 * weight[:, :3].T @ g.T @ x @ weight[:3].T)


@torch.no_grad()
def test_with_the_base_offset_the_change_is_that_of_n_alone():
    weight, change = torch.randn(7, 6), torch.randn(3, 3)
    method = Method(rank=3, alpha=6.0, middle="pinv", offset_base=True)
    tensors = method.initial_tensors(weight, torch.Generator())
    assert not method.weight_delta(tensors, weight).to_dense().any()
    tensors["N"].add_(change)
    delta = method.weight_delta(tensors, weight)
    assert delta.rank == 3
    torch.testing.assert_close(delta.to_dense(), 2.0 * weight[:, :3] @ change @ weight[:3], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "whisper"])
def test_with_the_base_offset_a_fresh_adapter_changes_nothing(family):
    toy = FAMILIES[family]()
    before = toy.output()
    begin(toy, Method(rank=3, offset_base=True))
    assert torch.equal(toy.output(), before)


def test_with_the_base_offset_weight_decay_leaves_n_alone():
    toy = FAMILIES["llama"]()
    session = begin(toy, Method(rank=3, offset_base=True), decay=0.5)
    parameters = core.trainable_parameters(toy.model)
    before = toy.output()
    for p in parameters.values():
        p.grad = torch.zeros_like(p)
    session.create_optimizer(parameters, session.recipe).step()
    assert torch.equal(toy.output(), before)


def test_a_rank_beyond_the_weights_size_is_refused():
    with pytest.raises(InputError, match="the rank exceeds the layer's size"):
        begin(FAMILIES["whisper"](), Method(rank=17))
