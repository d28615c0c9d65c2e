"""Rows of a mixture, of single adapters and of the bare base in one batch are answered as each alone."""

import pytest
import torch
from models import llama, opinionated, trained_adapter, whisper

from loratory import registry
from loratory.adapters import core
from loratory.adapters.deltas import Adapter
from loratory.adapters.methods.lora import Method
from loratory.errors import InputError
from loratory.mixers.core import Mixture
from loratory.mixers.generation import generate
from loratory.serving.adapters import AdapterSet
from loratory.serving.mixtures import MixtureRows

ADAPTERS = {"a": (1, None), "b": (3, ("q_proj", "down_proj"))}
MIXERS = {
    "xlora": {"depth": 2, "width": 16},
    "arrow": {"top_k": 2},
    "slide_lora": {"gating": "learned"},
    "uniform": {},
}
ROWS = ["a", "xlora", None, "arrow", "xlora", "b", "slide_lora", "uniform"]
LENGTHS = [9, 4, 7, 9, 2, 5, 6, 3]


def padded(rows):
    """Ids and mask of these rows, padded on the left."""
    texts = [[3 + (7 * row + 5 * place) % 250 for place in range(LENGTHS[row])] for row in rows]
    longest = max(map(len, texts))
    ids = torch.tensor([[0] * (longest - len(text)) + text for text in texts])
    mask = torch.tensor([[0] * (longest - len(text)) + [1] * len(text) for text in texts])
    return ids, mask


def mixture_of(model, adapters, kind, options):
    mixer = registry.load_module("mixer", kind).Mixer(**options)
    return opinionated(Mixture(model, mixer.prepare_experts(adapters, 0), mixer).eval())


def say(model, rows):
    """Logits of the last token, and what is written."""
    ids, mask = padded(rows)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, -1]
    return logits, generate(model, ids, mask, max_new_tokens=8, eos=())


@pytest.fixture(scope="module")
def known():
    """A model, adapters, and what each row says alone."""
    model = llama()
    adapters = {
        name: trained_adapter(model, Method(rank=rank, target_modules=targets), seed)
        for seed, (name, (rank, targets)) in enumerate(ADAPTERS.items())
    }
    alone = []
    for row, name in enumerate(ROWS):
        if name in MIXERS:
            mixture = mixture_of(model, adapters, name, MIXERS[name])
            alone.append(say(mixture, [row]))
            mixture.remove_experts()
        else:
            core.apply(model, adapters.get(name, Adapter()), str(name))
            alone.append(say(model, [row]))
            core.detach(model)
    return model, adapters, alone


def put_on(model, adapters):
    mixtures = {name: mixture_of_bare(model, adapters, name) for name in MIXERS}
    return MixtureRows(AdapterSet(model, adapters, dict.fromkeys(adapters, "here")), mixtures)


def mixture_of_bare(model, adapters, kind):
    mixture = mixture_of(model, adapters, kind, MIXERS[kind])
    mixture.remove_experts()
    return mixture


@pytest.mark.parametrize("order", [[*range(8)], [6, 1, 4, 0], [3, 3, 5], [2, 0], [1]])
def test_each_row_says_what_it_says_alone(known, order):
    model, adapters, alone = known
    layers = {name: type(module) for name, module in model.named_modules()}
    rows = put_on(model, adapters)
    try:
        with rows.use_rows([ROWS[row] for row in order]):
            logits, written = say(rows, order)
    finally:
        rows.remove()
        rows.adapters.remove()
    torch.testing.assert_close(logits, torch.cat([alone[row][0] for row in order]), rtol=0, atol=1e-4)
    assert written == [alone[row][1][0] for row in order]
    assert {name: type(module) for name, module in model.named_modules()} == layers


def test_the_rows_differ(known):
    *_, alone = known
    assert len({tuple(written[0]) for _, written in alone}) > 5, "the mixtures say nothing of their own"


def test_what_depends_on_more_than_its_rows_is_refused_by_name(known):
    model, adapters, _ = known
    mixer = registry.load_module("mixer", "oracle").Mixer()
    told = Mixture(model, adapters, mixer)
    told.remove_experts()
    with pytest.raises(InputError, match="mixtures: told: the mixture depends on more than its rows"):
        MixtureRows(AdapterSet(model, {}, {}), {"told": told})
    with pytest.raises(InputError, match=r"of a decoder alone \(whisper\)"):
        MixtureRows(AdapterSet(whisper(), {}, {}), {})
