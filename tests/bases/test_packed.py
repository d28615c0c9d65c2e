"""Bases in int8 and nf4: refused by name where they cannot be; on a GPU trained on, predicted with and mixed."""

from importlib.util import find_spec

import peft
import pytest
import torch
from models import causal_base, draw_gate, trained_adapter
from test_methods import METHODS, made, row

from loratory import registry
from loratory.adapters import core, deltas
from loratory.adapters.methods.lora import Method
from loratory.bases import precision
from loratory.bases.core import load_base
from loratory.bases.precision import is_packed
from loratory.data.files import read_json, write_json
from loratory.domains.contract import Example
from loratory.errors import InputError
from loratory.mixers.core import Mixture

DEVICE = "cuda"
gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or find_spec("bitsandbytes") is None, reason="needs CUDA and bitsandbytes"
)
packed = pytest.mark.parametrize("held", ["int8", "nf4"])
TEXTS = ("acg tta", "will the user", "yes no yes", "coding")


@pytest.fixture
def folder(tmp_path):
    causal_base(tmp_path / "base", ears=False)
    return tmp_path / "base"


def batch_of(base):
    return base.collate([base.encode(Example(text, "g", "text ", text)) for text in TEXTS])


def logits_of(base):
    with torch.no_grad():
        return base.model(**base.inputs(batch_of(base)), use_cache=False).logits.float()


def one_step(base, parameters):
    optimizer = torch.optim.AdamW(parameters, lr=0.01)
    total, count = base.loss(base.model, batch_of(base))
    (total / count).backward()
    optimizer.step()


@packed
def test_a_packed_base_is_refused_without_a_gpu_in_one_line(held, folder):
    write_json(folder / "base.json", read_json(folder / "base.json") | {"precision": held})
    with pytest.raises(
        InputError, match=rf"a base in {held} needs a GPU with CUDA \(cpu\); expected cuda; fix: `prec"
    ):
        load_base(folder)


def test_a_packed_base_is_refused_without_its_library_in_one_line(folder, monkeypatch):
    monkeypatch.setattr(precision, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"a base in nf4 needs bitsandbytes; fix: `pip install 'loratory\[cuda\]'`"):
        precision.opening_options(folder, "nf4", "cuda")


@gpu
@packed
def test_linear_layers_alone_are_packed_and_say_nearly_the_same(held, folder):
    plain, base = load_base(folder, DEVICE, "bf16"), load_base(folder, DEVICE, held)
    assert all(map(is_packed, core.linear_layers(base.model).values()))
    assert base.model.get_output_embeddings().weight.dtype == base.model.model.norm.weight.dtype == torch.bfloat16
    bits = {"int8": 8, "nf4": 4}[held]
    for name, layer in core.linear_layers(base.model).items():
        weight = core.weight_of(core.linear_layers(plain.model)[name])
        assert layer.weight.numel() * layer.weight.element_size() * 8 == weight.numel() * bits
        assert core.weight_of(layer).shape == core.weight_shape(layer) == weight.shape
        assert (core.weight_of(layer) - weight).norm() < 0.12 * weight.norm()
    assert (logits_of(base) - logits_of(plain)).norm() < 0.3 * logits_of(plain).norm()


@gpu
@packed
@pytest.mark.parametrize("name", METHODS)
def test_every_method_but_those_that_need_plain_weights_learns_beside_packed_ones(name, held, folder, tmp_path):
    method = made(name)
    if method.needs_plain_weights or "llama" not in row(name).families:
        pytest.skip("needs plain weights, or biases")
    base = load_base(folder, DEVICE, held)
    bare = logits_of(base)
    core.attach(base.model, method, 0)
    parameters = core.trainable_parameters(base.model)
    base.model.train()
    one_step(base, parameters.values())
    base.model.eval()
    assert {p.dtype for p in parameters.values()} == {torch.float32}
    assert all(p.isfinite().all() for p in parameters.values()) and any(
        p.grad is not None for p in parameters.values()
    )
    trained, adapter = logits_of(base), core.export(base.model, (), {})
    core.detach(base.model)
    torch.testing.assert_close(logits_of(base), bare, rtol=0, atol=0)
    deltas.save_adapter(tmp_path / "adapter", adapter, causal=True)
    core.apply(base.model, deltas.load_adapter(tmp_path / "adapter"), "adapter")
    assert (logits_of(base) - trained).norm() < 0.03 * trained.norm()


@gpu
@packed
def test_an_adapter_on_a_packed_base_has_the_logits_and_gradients_of_peft(held, folder):
    given = trained_adapter(load_base(folder).model, Method(rank=4), seed=3)
    ours, theirs = load_base(folder, DEVICE, held), load_base(folder, DEVICE, held)
    layers = core.attach(ours.model, Method(rank=4), seed=3)
    config = peft.LoraConfig(r=4, lora_alpha=16, target_modules=sorted({name.split(".")[-1] for name in layers}))
    wrapped = peft.get_peft_model(theirs.model, config)
    for name, layer in layers.items():
        other = wrapped.base_model.model.get_submodule(name)
        for factor in "AB":
            tensor = getattr(given.deltas[name], factor)
            layer.adapter[factor].data.copy_(tensor)
            getattr(other, f"lora_{factor}")["default"].weight.data = tensor.to(DEVICE).float()
    one, other = (
        model(**ours.inputs(batch_of(ours)), use_cache=False).logits.float() for model in (ours.model, wrapped)
    )
    assert (one - other).norm() < 0.02 * other.norm()
    for model, base in ((ours.model, ours), (wrapped, ours)):
        base.loss(model, batch_of(ours))[0].backward()
    pairs = [
        (
            layer.adapter[factor].grad,
            getattr(wrapped.base_model.model.get_submodule(name), f"lora_{factor}")["default"],
        )
        for name, layer in layers.items()
        for factor in "AB"
    ]
    mine = torch.cat([gradient.flatten() for gradient, _ in pairs])
    peft_own = torch.cat([theirs.weight.grad.flatten() for _, theirs in pairs])
    assert (mine - peft_own).norm() < 0.05 * peft_own.norm()


@gpu
@pytest.mark.parametrize("kind", ["xlora", "pooled", "ties"])
def test_experts_are_mixed_on_a_packed_base(kind, folder):
    given = {name: trained_adapter(load_base(folder).model, Method(rank=2), seed) for seed, name in enumerate("ab")}
    base = load_base(folder, DEVICE, "nf4")
    bare, mixer = logits_of(base), registry.load_module("mixer", kind).Mixer()
    mixture = Mixture(base.model, mixer.prepare_experts(given, seed=0), mixer, kind, ["a", "b"]).to(DEVICE)
    if mixture.gate is not None:
        draw_gate(mixture.gate, 0)
    batch = batch_of(base)
    total, _ = base.loss(mixture, batch)
    assert total.isfinite()
    if mixture.trainable_parameters():
        total.backward()
        assert all(p.grad.isfinite().all() for p in mixture.trainable_parameters().values())
    mixture.remove_experts()
    torch.testing.assert_close(logits_of(base), bare, rtol=0, atol=0)
