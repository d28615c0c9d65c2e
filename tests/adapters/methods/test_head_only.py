"""Training of the head alone, the lower reference arm."""

import pytest
import torch
from families import FAMILIES, begin, train
from methods.rows import Row

from loratory.adapters import core
from loratory.adapters.methods.head_only import Method


def head(model) -> int:
    embeddings = model.get_output_embeddings()
    return embeddings.weight.numel() if embeddings is not None else 0  # no toy's output embeddings have a bias


ROW = Row({}, lambda shapes, model: head(model))


@pytest.mark.parametrize(
    ("family", "trained"),
    {
        "llama": ["lm_head.weight"],
        "gpt2": ["transformer.wte.weight"],  # tied: also the input embeddings
        "whisper": ["model.decoder.embed_tokens.weight"],
        "bert": ["bert.pooler.dense.bias", "bert.pooler.dense.weight", "classifier.bias", "classifier.weight"],
    }.items(),
)
def test_the_heads_are_trained_or_else_the_output_embeddings(family, trained):
    toy = FAMILIES[family]()
    begin(toy, Method())
    assert list(core.trainable_parameters(toy.model)) == trained


def test_what_goes_into_an_untied_head_stays_bit_for_bit(tmp_path):
    toy = FAMILIES["llama"]()
    ids = toy.collate(toy.items)["ids"]
    before = toy.model.model(ids).last_hidden_state
    train(toy, Method(), tmp_path)
    assert torch.equal(toy.model.model(ids).last_hidden_state, before)


def test_choosing_layers_is_refused_as_there_is_nothing_to_choose():
    with pytest.raises(ValueError, match="target_modules"):
        Method(target_modules=("q_proj",))
