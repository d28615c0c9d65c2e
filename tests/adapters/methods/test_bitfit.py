"""BitFit (arXiv:2106.10199)."""

import pytest
import torch
from families import FAMILIES, begin, train
from methods.rows import Row

from loratory.adapters import core
from loratory.adapters.methods.bitfit import Method
from loratory.errors import InputError


def biases(model) -> dict:
    heads = ("classifier", "bert.pooler")  # of the toy bases: trained whole, whatever the method
    return {n: p for n, p in model.named_parameters() if n.endswith("bias") and not core.is_inside(n, heads)}


ROW = Row(
    {},
    lambda shapes, model: sum(p.numel() for p in biases(model).values()),
    rate=3e-2,
    families=("whisper", "gpt2", "bert"),
)


def test_every_bias_moves_and_nothing_else(tmp_path):
    toy = FAMILIES["whisper"]()
    before = {name: p.detach().clone() for name, p in toy.model.named_parameters()}
    train(toy, Method(), tmp_path)
    moved = {name for name, p in toy.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == biases(toy.model).keys()
    assert {"model.encoder.conv1.bias", "model.decoder.layers.0.encoder_attn.v_proj.bias"} <= moved
    assert core.export(toy.model, (), {}).dense.keys() == moved


def test_a_base_without_biases_is_refused_by_name():
    with pytest.raises(InputError, match="LlamaForCausalLM: bitfit: the base has no biases to train"):
        begin(FAMILIES["llama"](), Method())
