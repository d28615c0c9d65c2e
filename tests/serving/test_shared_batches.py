"""Rows of one batch belong to different adapters, or to none: each is answered as if it were alone."""

import random
import re

import numpy as np
import pytest
import soundfile
import torch
from families import FAMILIES, begin
from models import causal_base, trained_adapter, whisper_base
from test_methods import METHODS, made, row

from loratory.adapters import core
from loratory.adapters.deltas import Adapter, InputDependent, LowRank
from loratory.adapters.methods.lora import Method
from loratory.bases.decoding import Sampling
from loratory.bases.options import Decoding
from loratory.domains.contract import Example
from loratory.errors import InputError
from loratory.serving.adapters import AdapterSet, refusal_reason
from loratory.serving.rows import RowContext, RowOwners

RANKS = {"a": 1, "b": 3, "c": 8}
TARGETS = {  # of each adapter other layers, some with a bias, a transposed weight or a kernel
    "llama": {"a": None, "b": ("q_proj", "down_proj"), "c": ("v_proj",)},
    "gpt2": {"a": None, "b": ("c_attn",), "c": ("mlp.c_proj",)},
    "phi3": {"a": None, "b": ("qkv_proj",), "c": ("gate_up_proj",)},
    "bert": {"a": None, "b": ("query",), "c": ("output.dense",)},
    "whisper": {"a": None, "b": ("conv", "cross_attention"), "c": ("decoder.self_attn", "conv1")},
}
ORDERS = {
    "sorted": [*["a"] * 6, *["b"] * 6, *["c"] * 6, *[None] * 6],
    "sorted, few of some": [*["a"] * 9, "b", *["c"] * 8, *[None] * 3],
    "one of each": ["b", None, "c", "a"],
    "mixed up": ["c", "a", "a", None, "b", "a", None, "c", "c"],
    "one alone": ["b"] * 5,
}


def trained_set(toy, family):
    adapters = {}
    for seed, (name, rank) in enumerate(RANKS.items()):
        method = Method(rank=rank, alpha=2.0 + seed, target_modules=TARGETS[family][name])
        adapters[name] = trained_adapter(toy.model, method, seed, toy.heads)
        for own in adapters[name].heads.values():
            own.add_(torch.randn(own.shape, generator=torch.Generator().manual_seed(seed)) * 0.1)
    return adapters


def logits_of(toy, numbers) -> torch.Tensor:
    with torch.no_grad():
        return toy.logits(toy.model, toy.collate([toy.items[number % len(toy.items)] for number in numbers]))


def logits_alone(toy, adapters, names) -> torch.Tensor:
    """Each row by itself, with its own adapter put on."""
    found = []
    for number, name in enumerate(names):
        if name is not None:
            core.apply(toy.model, adapters[name], name)
        found.append(logits_of(toy, [number]))
        core.detach(toy.model)
    return torch.cat(found)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_row_is_answered_as_if_it_were_alone(family, order):
    toy, names = FAMILIES[family](), ORDERS[order]
    adapters = trained_set(toy, family)
    alone = logits_alone(toy, adapters, names)
    before = {name: tensor.clone() for name, tensor in toy.model.state_dict().items()}
    shared = AdapterSet(toy.model, adapters, adapters)
    with shared.use_rows(names):
        together = logits_of(toy, range(len(names)))
        order = random.Random(0).sample(range(len(names)), len(names))
    with shared.use_rows([names[place] for place in order]):
        shuffled = logits_of(toy, order)
    shared.remove()
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)
    torch.testing.assert_close(shuffled, together[order], rtol=0, atol=1e-4)
    bare = logits_of(toy, range(len(names)))
    for number, name in enumerate(names):
        assert torch.allclose(together[number], bare[number], atol=1e-4) == (name is None)
    after = toy.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    base = causal_base(tmp_path_factory.mktemp("causal") / "base", ears=False)
    return base, three_adapters(base)


def three_adapters(base):
    return {name: trained_adapter(base.model, Method(rank=rank), rank) for name, rank in RANKS.items()}


def questions():
    texts = ["will the user like it", "coding", "MKTAY yes no", "acg tta gca cgt acg"]
    return [Example(str(i), "g", text, " yes") for i, text in enumerate(texts)]


def texts_alone(base, adapters, items, *options, **named):
    found = []
    for adapter in adapters.values():
        core.apply(base.model, adapter, "adapter")
        found += base.text(base.model, items, 20, *options, **named)
        core.detach(base.model)
    return [*found, *base.text(base.model, items, 20, *options, **named)]


def texts_together(base, adapters, items, *options, **named):
    shared = AdapterSet(base.model, adapters, adapters)
    with shared.use_rows([name for name in (*adapters, None) for _ in items]):
        found = base.text(base.model, items * (len(adapters) + 1), 20, *options, **named)
    shared.remove()
    return found


def test_greedy_texts_are_those_of_each_alone(causal):
    base, adapters = causal
    items = [base.encode(question) for question in questions()]
    alone = texts_alone(base, adapters, items)
    assert len({*alone}) > len(items), "adapters write differently"
    assert texts_together(base, adapters, items) == alone


def test_every_part_of_a_batch_is_sampled_as_if_it_were_alone(causal):
    base, adapters = causal
    items = [base.encode(question) for question in questions()]
    alone = texts_alone(base, adapters, items, Sampling(7))
    assert texts_together(base, adapters, items, Sampling(7, others=(7, 7, 7))) == alone
    other = texts_together(base, adapters, items, Sampling(7, others=(7, 8, 7)))
    same = [one == two for one, two in zip(other, alone)]
    assert all(same[:8]) and not all(same[8:12]) and all(same[12:])


@pytest.mark.parametrize("beams", [1, 3])
def test_transcripts_are_those_of_each_alone(tmp_path, beams):
    base = whisper_base(tmp_path / "base")
    adapters, items = three_adapters(base), []
    for pitch in (0.05, 0.2):
        clip = str(tmp_path / f"{pitch}.wav")
        soundfile.write(clip, np.sin(np.arange(8000) * pitch) * 0.3, 16000)
        items.append(base.encode(Example(clip, "g", "", "yes", audio=clip)))
    options = {"decoding": Decoding(beams=beams)}
    alone = texts_alone(base, adapters, items, **options)
    assert len({*alone}) > 1
    assert texts_together(base, adapters, items, **options) == alone


def refused_methods() -> dict[str, str]:
    """{method: why its adapters, with the options of their rows, cannot share a batch}."""
    found = {}
    for name in METHODS:
        toy = FAMILIES[row(name).families[0]]()
        begin(toy, made(name))
        for parameter in core.trainable_parameters(toy.model).values():
            parameter.data.add_(0.01)
        adapter = core.export(toy.model, toy.heads, {})
        core.detach(toy.model)
        if reason := refusal_reason(toy.model, adapter):
            found[name] = reason
    return found


REFUSED = {"bat", "bitfit", "dora", "full_ft", "galore", "head_only", "lisa", "loftq", "peft"}


def test_these_methods_cannot_share_a_batch_and_all_others_can():
    found = refused_methods()
    assert {name for name, reason in found.items() if "has no low rank" in reason} == REFUSED
    assert {name for name, reason in found.items() if "depends on the input" in reason} == {"smora"}
    assert len(found) == len(REFUSED) + 1


def test_what_cannot_share_a_batch_is_refused_with_its_name(causal):
    base, _ = causal
    layer = "model.layers.0.self_attn.q_proj"
    whole = {"model.embed_tokens.weight": base.model.get_input_embeddings().weight.clone()}
    pair = LowRank(torch.zeros(1, 32), torch.zeros(32, 1), 1.0)
    refused = {
        "has no low rank": Adapter(dense={f"{layer}.weight": torch.zeros(32, 32)}),
        r"depends on the input \(smora\)": Adapter(own={layer: InputDependent("smora", None, {})}),
        "not of a linear layer": Adapter(heads=whole),
        "a router chooses": Adapter(deltas={"model.layers.0.mlp.experts.0.up_proj": pair}),
    }
    for expected, adapter in refused.items():
        assert re.search(expected, refusal_reason(base.model, adapter))
    with pytest.raises(InputError, match="folder/of/b: the adapter cannot share a batch"):
        AdapterSet(base.model, {"b": refused["has no low rank"]}, {"b": "folder/of/b"})
    assert not any("serving" in type(module).__module__ for module in base.model.modules())


def test_a_layer_refuses_rows_that_are_nobodys():
    context = RowContext()
    with pytest.raises(RuntimeError, match="without the owners"):
        context.owners_of(3)
    with context.use_owners(RowOwners([0, 0, 1])):
        assert context.owners_of(6).places == (0, 0, 0, 0, 1, 1)
        for rows in (2, 4):
            with pytest.raises(RuntimeError, match=f"reads {rows} rows of a batch of 3"):
                context.owners_of(rows)
    with pytest.raises(RuntimeError, match="without the owners"):
        context.owners_of(3)
