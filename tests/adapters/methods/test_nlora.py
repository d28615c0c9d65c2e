"""NLoRA (arXiv:2502.14482)."""

import pytest
import torch
from families import FAMILIES, Toy, begin, train
from methods.rows import Row
from models import llama
from torch import nn

from loratory.adapters import core
from loratory.adapters.methods.nlora import Method
from loratory.errors import InputError

ROW = Row(
    {"rank": 3, "alpha": 3.0},
    lambda shapes, model: sum(3 * (out + inner) + 9 for out, inner in shapes),
    starts="elsewhere",
)


@pytest.fixture(autouse=True)
def same_numbers():
    torch.manual_seed(0)


def start(weight, **options):
    return Method(**{"rank": 3, "alpha": 3.0} | options).initial_tensors(weight, torch.Generator())


def well_conditioned(out=7, inner=6):
    weight = torch.randn(out, inner, generator=torch.Generator().manual_seed(0))
    weight[:3, :3] += 3 * torch.eye(3)
    return weight


def test_the_factors_are_slices_of_the_weight_as_in_x_out():
    weight = well_conditioned()
    tensors = start(weight)
    assert torch.equal(tensors["A"], weight[:3]) and torch.equal(tensors["B"], weight[:, :3])
    assert torch.equal(tensors["N"], weight[:3, :3])
    assert torch.equal(tensors["A"][:, :3], tensors["N"]) and torch.equal(tensors["B"][:3], tensors["N"])


def test_a_transposed_layer_is_sliced_by_its_outputs():
    toy = FAMILIES["gpt2"]()
    stored = toy.model.transformer.h[0].attn.c_attn.weight  # [in, out]
    tensors = begin(toy, Method(rank=3)).layers["transformer.h.0.attn.c_attn"].tensors
    assert torch.equal(tensors["A"], stored[:, :3].T) and torch.equal(tensors["B"], stored[:3].T)


@pytest.mark.parametrize("middle", ["block", "pinv"])
@pytest.mark.parametrize("offset_base", [False, True])
def test_training_the_factors_cannot_reach_the_weight_or_each_other(middle, offset_base):
    weight = well_conditioned()
    tensors = start(weight, middle=middle, offset_base=offset_base)
    storages = {tensor.untyped_storage().data_ptr() for tensor in [weight, *tensors.values()]}
    assert len(storages) == 1 + len(tensors)


@torch.no_grad()
def test_a_fresh_adapter_adds_the_product_of_the_slices():
    base = nn.Linear(6, 7)
    base.weight.copy_(well_conditioned())
    method, x = Method(rank=3, alpha=6.0), torch.randn(4, 6)
    adapted = core.AdaptedLinear(base, method, method.initial_tensors(base.weight, torch.Generator()))
    weight = base.weight
    product = 2.0 * weight[:, :3] @ weight[:3, :3] @ weight[:3]
    torch.testing.assert_close(adapted(x) - base(x), x @ product.T)
    assert product.norm() > 1


def test_the_pseudo_inverse_reproduces_the_first_rows_and_columns():
    weight, method = well_conditioned(), Method(rank=3, alpha=3.0, middle="pinv")
    product = method.weight_delta(method.initial_tensors(weight, torch.Generator()), weight).to_dense()
    torch.testing.assert_close(product[:3], weight[:3], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(product[:, :3], weight[:, :3], rtol=1e-4, atol=1e-5)
    assert (product - weight)[3:, 3:].norm() > 0.1


def test_the_pseudo_inverse_reproduces_all_of_a_weight_of_that_rank():
    weight, method = well_conditioned(), Method(rank=3, alpha=3.0, middle="pinv")
    weight = weight[:, :3] @ torch.linalg.inv(weight[:3, :3]) @ weight[:3]
    product = method.weight_delta(method.initial_tensors(weight, torch.Generator()), weight).to_dense()
    torch.testing.assert_close(product, weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("middle", ["block", "pinv"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "whisper"])
def test_with_the_base_offset_a_fresh_adapter_changes_nothing(family, middle):
    toy = FAMILIES[family]()
    before = toy.output()
    begin(toy, Method(rank=3, alpha=3.0, middle=middle, offset_base=True))
    torch.testing.assert_close(toy.output(), before, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_with_the_base_offset_the_change_is_against_the_original_weight(family, tmp_path):
    toy = FAMILIES[family]()
    with torch.enable_grad():
        train(toy, Method(rank=3, alpha=3.0, offset_base=True), tmp_path)
    adapted, deltas = toy.output(), core.export(toy.model, (), {}).deltas
    core.detach(toy.model)
    bare = toy.output()
    for name, delta in deltas.items():
        assert delta.rank == 6
        linear = toy.model.get_submodule(name)
        linear.weight.add_(delta.to_dense().T if isinstance(linear, core.Conv1D) else delta.to_dense())
    torch.testing.assert_close(toy.output(), adapted, rtol=1e-4, atol=2e-5)
    assert (adapted - bare).abs().max() > 1e-2


@pytest.mark.parametrize(("offset_base", "stays"), [(True, True), (False, False)])
def test_weight_decay_leaves_the_factors_alone_where_the_base_is_offset(offset_base, stays):
    toy = FAMILIES["bert"]()
    session = begin(toy, Method(rank=3, offset_base=offset_base), decay=0.5)
    parameters = core.trainable_parameters(toy.model)
    started = {name: p.detach().clone() for name, p in parameters.items()}
    for p in parameters.values():
        p.grad = torch.zeros_like(p)
    session.create_optimizer(parameters, session.recipe).step()
    same = {name: torch.equal(p, started[name]) for name, p in parameters.items()}
    assert {same[name] for name in same if ".adapter." in name} == {stays}
    assert not same["classifier.weight"], "heads decay in either case"


def test_layers_with_fewer_outputs_than_inputs_work():
    toy = Toy(lambda: llama(60, num_key_value_heads=1), 14)
    assert begin(toy, Method(rank=8)).layers["model.layers.0.self_attn.k_proj"].tensors["B"].shape == (8, 8)
    assert toy.output().isfinite().all()


@pytest.mark.parametrize("shape", [(4, 9), (9, 4)])
def test_a_rank_beyond_the_weights_size_is_refused(shape):
    assert start(torch.ones(shape), rank=4)
    with pytest.raises(InputError, match=r"exceeds the layer's size \(5\); expected at most 4"):
        start(torch.ones(shape), rank=5)


def test_the_refusal_names_the_layer():
    with pytest.raises(InputError, match=r"model\.layers\.0\.self_attn\.q_proj: the rank exceeds"):
        begin(FAMILIES["llama"](), Method())
