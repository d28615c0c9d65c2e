"""CorDA (arXiv:2406.05223); against PEFT in `tests/adapters/test_offset.py`."""

import peft
import pytest
import torch
from families import FAMILIES, begin
from methods.rows import Row
from peft.tuners.lora.corda import preprocess_corda

from loratory.adapters import core
from loratory.adapters.methods.corda import Method, check_covariance, damped_inverse, input_covariances
from loratory.errors import InputError

ROW = Row({"rank": 3, "alpha": 3.0}, lambda shapes, model: sum(3 * (out + inner) for out, inner in shapes))


def collected_by_peft(toy, config, examples) -> None:
    preprocess_corda(toy.model, config, lambda: [toy.model(input_ids=item.ids[None]) for item in examples])


def peft_config(layers, mode: str) -> peft.LoraConfig:
    options = peft.tuners.lora.config.CordaConfig(corda_method=mode, prune_temporary_fields=False)
    return peft.LoraConfig(r=3, target_modules=list(layers), init_lora_weights="corda", corda_config=options)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_covariances_are_pefts_of_the_same_examples(family):
    session, other = begin(FAMILIES[family](), Method(rank=3)), FAMILIES[family]()
    found = input_covariances(session, 5)
    collected_by_peft(other, peft_config(session.layers, "ipm"), session.first_examples(5))
    for name, covariance in found.items():
        theirs = other.model.get_submodule(name).covariance_matrix
        torch.testing.assert_close(covariance, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["ipm", "kpm"])
def test_both_modes_train_pefts_directions(mode):
    session, other = begin(FAMILIES["llama"](), Method(rank=3, alpha=3.0, mode=mode)), FAMILIES["llama"]()
    collected_by_peft(other, peft_config(session.layers, mode), session.first_examples(256))
    for name, layer in session.layers.items():
        eigens = other.model.get_submodule(name).eigens
        theirs = eigens.U_WC * eigens.S_WC @ eigens.V_WC.T
        torch.testing.assert_close(layer.tensors["B0"] @ layer.tensors["A0"], theirs, rtol=1e-3, atol=1e-4)


def test_padding_and_batches_change_nothing():
    """Every example is passed alone."""
    toy = FAMILIES["bert"]()
    session = begin(toy, Method(rank=3))
    sizes = []
    session.visit_inputs(4, lambda name, x: sizes.append(len(x)))
    assert set(sizes) == {6} and len(sizes) == 4 * len(session.layers)


def test_the_pass_leaves_the_base_its_mode_and_all_gradients_as_they_were():
    toy = FAMILIES["llama"]()
    before = {name: p.clone() for name, p in toy.model.named_parameters()}
    toy.model.train()
    session = begin(toy, Method(rank=3))
    assert toy.model.training and all(p.grad is None for p in toy.model.parameters())
    assert session.positions == 12 * 6
    assert not any(layer._forward_pre_hooks for layer in session.layers.values())
    core.detach(toy.model)
    assert all(torch.equal(before[name], p) for name, p in toy.model.named_parameters())


def test_whitened_by_its_inputs_the_trained_part_is_the_best_of_its_rank():
    method, generator = Method(rank=3, alpha=3.0), torch.Generator().manual_seed(0)
    weight, x = torch.randn(9, 7, generator=generator), torch.randn(50, 7, generator=generator)
    covariance = x.T @ x / 50
    a, b = method.initial_factors(weight, covariance)
    damped, inverse = damped_inverse(covariance)
    lost = torch.linalg.svdvals((weight - b @ a) @ damped)
    torch.testing.assert_close(lost[:4], torch.linalg.svdvals(weight @ damped)[3:], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(damped @ inverse, torch.eye(7), atol=1e-4, rtol=0)


def test_a_covariance_of_low_rank_is_damped_until_it_has_an_inverse():
    x = torch.randn(3, 40, generator=torch.Generator().manual_seed(0)) * 1e3
    damped, inverse = damped_inverse(x.T @ x)
    assert torch.dist(damped @ inverse, torch.eye(40)) < 0.05


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_inputs_that_say_nothing_are_refused_by_the_layers_name(value):
    with pytest.raises(InputError, match=r"model\.q: the layer's inputs cannot weigh its directions"):
        check_covariance("model.q", torch.full((4, 4), value))
