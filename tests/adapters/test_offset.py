"""Pairs whose start is taken off again, against PEFT, which takes it off the weight: PiSSA, OLoRA, CorDA."""

import peft
import pytest
import torch
from families import FAMILIES, begin, five_steps, train
from peft.tuners.lora.corda import preprocess_corda
from safetensors.torch import load_file

from loratory.adapters import core, deltas
from loratory.adapters.methods import corda, olora, pissa
from loratory.errors import InputError

METHODS = {
    "pissa": pissa.Method(rank=4, alpha=6.0),
    "olora": olora.Method(rank=4, alpha=6.0),
    "corda": corda.Method(rank=4, alpha=6.0),
}
# PEFT factors GPT-2's matrices as they are stored for OLoRA, and gets pairs that do not fit
PAIRS = [(name, family) for name in METHODS for family in ("llama", "gpt2") if (name, family) != ("olora", "gpt2")]
every = pytest.mark.parametrize(("name", "family"), PAIRS, ids=["-".join(pair) for pair in PAIRS])


def peft_config(name: str, family: str, layers, **options) -> peft.LoraConfig:
    options = {"init_lora_weights": name, "r": 4, "lora_alpha": 6, "fan_in_fan_out": family == "gpt2"} | options
    return peft.LoraConfig(task_type="CAUSAL_LM", target_modules=list(layers), **options)


def started_by_peft(name: str, family: str, session):
    """PEFT's model on a base of its own, with the same examples for CorDA, one at a time as it needs them."""
    toy, options = FAMILIES[family](), {}
    if name == "corda":
        options["corda_config"] = peft.tuners.lora.config.CordaConfig()
    config = peft_config(name, family, session.layers, **options)
    if name == "corda":
        examples = session.first_examples(session.method.examples)
        preprocess_corda(toy.model, config, lambda: [toy.model(input_ids=item.ids[None]) for item in examples])
    return toy, peft.get_peft_model(toy.model, config)


def peft_layer(wrapped, name: str):
    layer = wrapped.base_model.model.get_submodule(name)
    a, b = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
    return core.weight_of(layer.base_layer).detach(), a, b


@every
def test_start_and_remaining_weight_are_pefts(name, family):
    toy = FAMILIES[family]()
    session = begin(toy, METHODS[name])
    _, wrapped = started_by_peft(name, family, session)
    for path, layer in session.layers.items():
        rest, a, b = peft_layer(wrapped, path)
        t, scale = layer.tensors, layer.method.scale
        assert torch.equal(t["A"], t["A0"]) and torch.equal(t["B"], t["B0"])
        torch.testing.assert_close(t["B0"] @ t["A0"], b @ a, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(layer.weight - scale * t["B0"] @ t["A0"], rest, rtol=1e-3, atol=1e-5)
        for ours, theirs in ((t["A0"], a), (t["B0"].T, b.T)):  # up to the sign of singular vectors
            torch.testing.assert_close((ours * theirs).sum(1).abs(), theirs.square().sum(1), rtol=1e-2, atol=1e-6)


@every
@torch.no_grad()
def test_the_first_outputs_and_those_after_five_steps_are_pefts(name, family):
    toy = FAMILIES[family]()
    session = begin(toy, METHODS[name])
    other, wrapped = started_by_peft(name, family, session)
    batch = toy.collate(toy.items)
    torch.testing.assert_close(toy.output(), wrapped(input_ids=batch["ids"][:4]).logits, rtol=1e-3, atol=1e-4)
    before = toy.output()
    five_steps(toy.model, lambda model: toy.loss(model, batch)[0] / 12, lr=1e-3, weight_decay=0.0)
    five_steps(wrapped, lambda model: other.loss(model, batch)[0] / 12, lr=1e-3, weight_decay=0.0)
    assert (toy.output() - before).abs().max() > 1e-2
    torch.testing.assert_close(toy.output(), wrapped(input_ids=batch["ids"][:4]).logits, rtol=1e-2, atol=2e-3)


@every
@torch.no_grad()
def test_what_is_stored_is_pefts_conversion_for_the_original_base(name, family, tmp_path):
    toy = FAMILIES[family]()
    with torch.enable_grad():
        session = train(toy, METHODS[name], tmp_path / "run")
    _, wrapped = started_by_peft(name, family, session)
    wrapped.peft_config["default"].init_lora_weights = True  # or it is taken off again when it is read
    wrapped.save_pretrained(tmp_path / "start")
    for path, layer in session.layers.items():
        theirs = wrapped.base_model.model.get_submodule(path)
        # the trained pair in PEFT's gauge: each singular direction's sign
        signs = (layer.tensors["A0"] * theirs.lora_A["default"].weight).sum(1).sign()
        theirs.lora_A["default"].weight.copy_(signs[:, None] * layer.tensors["A"])
        theirs.lora_B["default"].weight.copy_(signs * layer.tensors["B"])
    wrapped.peft_config["default"].init_lora_weights = name
    wrapped.save_pretrained(tmp_path / "out", path_initial_model_for_weight_conversion=tmp_path / "start")
    converted = deltas.load_adapter(tmp_path / "out")
    ours = core.export(toy.model, (), {})
    assert load_file(tmp_path / "out" / "adapter_model.safetensors")
    for path, delta in ours.deltas.items():
        assert delta.rank == converted.deltas[path].rank == 8
        torch.testing.assert_close(delta.to_dense(), converted.deltas[path].to_dense(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_weight_decay_does_not_pull_the_pair_from_its_start(name):
    toy = FAMILIES["bert"]()
    session = begin(toy, METHODS[name], decay=0.5)
    parameters = core.trainable_parameters(toy.model)
    for p in parameters.values():
        p.grad = torch.zeros_like(p)
    session.create_optimizer(parameters, session.recipe).step()
    for layer in session.layers.values():
        assert torch.equal(layer.tensors["A"], layer.tensors["A0"])
        assert torch.equal(layer.tensors["B"], layer.tensors["B0"])


@pytest.mark.parametrize("name", METHODS)
def test_dropout_is_of_the_trained_pair_alone(name):
    method = METHODS[name].model_copy(update={"dropout": 0.5})
    tensors = {"A": torch.zeros(4, 8), "B": torch.ones(6, 4), "A0": torch.ones(4, 8), "B0": torch.ones(6, 4)}
    x = torch.arange(16.0).view(2, 8)
    assert torch.equal(method.forward(x, tensors, True), method.forward(x, tensors, False))


@pytest.mark.parametrize("name", METHODS)
def test_a_rank_beyond_a_layers_size_is_refused_with_the_layer_and_the_largest(name):
    with pytest.raises(InputError, match=r"self_attn\.q_proj: the rank exceeds the layer's size \(40\).*at most 32"):
        begin(FAMILIES["llama"](), METHODS[name].model_copy(update={"rank": 40}))
