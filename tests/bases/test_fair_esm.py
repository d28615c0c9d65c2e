"""Checkpoints of fair-esm: the same numbers in both libraries, and nothing in them is run."""

import os
from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch
from models import entry
from safetensors.torch import load_file
from transformers import EsmForMaskedLM

from loratory.bases.core import load_base
from loratory.bases.fair_esm import TOKENS, esm_config, import_fair_esm, weight_names
from loratory.bases.options import BaseEntry
from loratory.bases.pickles import prepare_pickle
from loratory.domains.contract import Example
from loratory.errors import InputError
from loratory.training.prepare import CONVERTERS

OPTIONS = {"encoder_layers": 2, "encoder_embed_dim": 32, "encoder_attention_heads": 4, "token_dropout": True}
PROTEINS = ("MKTAYIAKQR", "GAVLIMFWP", "MKKTAIAIAVALAGFATVAQAXBUZO.-")


def checkpoint(**options) -> dict:
    """As fair-esm publishes them, with random weights that are far from 0."""
    options = OPTIONS | options
    generator = torch.Generator().manual_seed(0)
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4}
    shapes = EsmForMaskedLM(esm_config(**sizes)).state_dict()
    weights = {
        f"encoder.{'' if theirs.startswith('lm_head') else 'sentence_encoder.'}{theirs}": torch.randn(
            shapes[ours].shape, generator=generator
        )
        * 0.2
        for theirs, ours in weight_names(2).items()
    }
    weights["encoder.lm_head.weight"] = weights["encoder.sentence_encoder.embed_tokens.weight"]
    for i in range(2):  # rounded, as published
        constant = (1 / 10000 ** (torch.arange(0, 8, 2) / 8)).half()
        weights[f"encoder.sentence_encoder.layers.{i}.self_attn.rot_emb.inv_freq"] = constant
    return {"cfg": {"model": Namespace(**options)}, "model": weights}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    path = tmp_path_factory.mktemp("fair") / "esm2_small.pt"
    torch.save(checkpoint(), path)
    regression = {"contact_head.regression.weight": torch.randn(1, 8), "contact_head.regression.bias": torch.randn(1)}
    torch.save({"model": regression}, path.with_name("esm2_small-contact-regression.pt"))
    return path


@pytest.fixture(scope="module")
def base(published):
    out = published.parent / "base"
    prepare_pickle(import_fair_esm, published, "small", entry("masked"), out)
    return load_base(out)


@pytest.fixture(scope="module")
def theirs(published):
    """fair-esm's own model of the checkpoint, loaded by fair-esm."""
    esm = pytest.importorskip("esm", reason="fair-esm is not installed (`pip install loratory[esm]`)")
    with torch.serialization.safe_globals([Namespace]):
        model, alphabet = esm.pretrained.load_model_and_alphabet_local(str(published))
    return SimpleNamespace(model=model.eval(), alphabet=alphabet, convert=alphabet.get_batch_converter())


@torch.no_grad()
def test_logits_and_tokens_are_those_of_fair_esm(base, theirs):
    assert tuple(theirs.alphabet.all_toks) == TOKENS
    _, _, ids = theirs.convert(list(zip("abc", PROTEINS)))
    ids[0, 3] = theirs.alphabet.mask_idx  # what is hidden scales the rest
    found = base.tokenizer(list(PROTEINS), padding=True, return_tensors="pt")
    assert torch.equal(found["attention_mask"], (ids != theirs.alphabet.padding_idx).long())
    found["input_ids"][0, 3] = base.mask_id
    assert torch.equal(found["input_ids"], ids)
    logits, real = base.model(**found).logits, found["attention_mask"].bool()
    torch.testing.assert_close(logits[real], theirs.model(ids)["logits"][real], rtol=0, atol=1e-4)


@torch.no_grad()
def test_pseudo_perplexity_is_that_of_fair_esm(base, theirs):
    for sequence in PROTEINS[:2]:
        _, _, ids = theirs.convert([("a", sequence)])
        nats = 0.0
        for place in range(1, len(sequence) + 1):
            hidden = ids.clone()
            hidden[0, place] = theirs.alphabet.mask_idx
            nats -= theirs.model(hidden)["logits"][0, place].log_softmax(-1)[ids[0, place]]
        [(found, tokens)] = base.nll(base.model, [base.encode(Example("a", "g", "", sequence))])
        expected = torch.exp(nats / len(sequence))
        assert torch.exp(torch.tensor(found / tokens)) == pytest.approx(float(expected), abs=1e-4)


def test_the_numbers_stay_what_they_are(base, published):
    given, found = torch.load(published, weights_only=False)["model"], load_file(base.folder / "model.safetensors")
    names = {name.removeprefix("encoder.").removeprefix("sentence_encoder."): t for name, t in given.items()}
    assert all(torch.equal(found[ours], names[theirs]) for theirs, ours in weight_names(2).items())
    assert len(found) == len(weight_names(2)) and base.manifest["origin"] == str(published)


def test_weights_in_half_precision_stay_in_it(tmp_path):
    content = checkpoint()
    content["model"] = {name: tensor.half() for name, tensor in content["model"].items()}
    torch.save(content, tmp_path / "half.pt")
    import_fair_esm(tmp_path / "half.pt", tmp_path / "folder")
    assert {t.dtype for t in load_file(tmp_path / "folder" / "model.safetensors").values()} == {torch.float16}


class Evil:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def changed(**weights) -> dict:
    """A checkpoint with other weights, or without those that are None; layers by `layers_0_fc1_bias`."""
    content = checkpoint()
    model = content["model"] | {f"encoder.sentence_encoder.{n.replace('__', '.')}": t for n, t in weights.items()}
    return content | {"model": {name: tensor for name, tensor in model.items() if tensor is not None}}


WRONG = {
    "a program": (checkpoint() | {"more": Evil()}, "not loaded: damaged, or holds more than tensors"),
    "of ESM-1": ({"args": Namespace(arch="roberta_large"), "model": {}}, r"not a checkpoint of ESM-2 \(args, model\)"),
    "bare weights": (checkpoint()["model"], "not a checkpoint of ESM-2"),
    "a list": ([1], "not a checkpoint of ESM-2"),
    "no width": (checkpoint(encoder_embed_dim=None), "not the options of ESM-2"),
    "no layers": (checkpoint(encoder_layers=0), "not the options of ESM-2"),
    "odd heads": (
        checkpoint(encoder_attention_heads=5),
        r"not the options of ESM-2 \(.*\); expected sizes that fit together",
    ),
    "layers without end": (checkpoint(encoder_layers=10**12), r"\d+ weights are missing, such as layers\.10\."),
    "fewer layers": (checkpoint(encoder_layers=1), r"16 weights are unexpected, such as layers\.1\.fc1\.bias"),
    "no bias": (changed(layers__0__fc1__bias=None), r"1 weights are missing, such as layers\.0\.fc1\.bias"),
    "short bias": (changed(layers__0__fc1__bias=torch.ones(3)), r"layers\.0\.fc1\.bias: wrong size \(\(3,\)\)"),
    "a word": (changed(layers__0__fc1__bias="x"), r"layers\.0\.fc1\.bias: wrong size"),
    "not a number": (changed(layers__0__fc1__bias=torch.full((128,), torch.nan)), "a weight is NaN or infinite"),
    "untied": (changed(embed_tokens__weight=torch.ones(33, 32)), r"lm_head\.weight: differs from what it is in"),
    "positions": (
        changed(layers__1__self_attn__rot_emb__inv_freq=torch.ones(4)),
        r"1.*inv_freq: differs from what it",
    ),
}


@pytest.mark.parametrize("fault", WRONG)
def test_what_is_no_whole_checkpoint_is_refused_in_one_line_and_never_run(fault, tmp_path, monkeypatch):
    content, line = WRONG[fault]
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "given.pt")
    with pytest.raises(InputError, match=line) as caught:
        prepare_pickle(import_fair_esm, tmp_path / "given.pt", "b", entry("masked"), tmp_path / "out" / "b")
    assert str(caught.value).startswith(str(tmp_path / "given.pt")) and str(caught.value).isprintable()
    assert not (tmp_path / "ran").exists() and not list(tmp_path.glob("out/*"))


def test_a_checkpoint_cut_short_or_missing_is_refused_by_name(published, tmp_path):
    (tmp_path / "cut.pt").write_bytes(published.read_bytes()[:3000])
    for name, line in (("cut.pt", "not loaded: damaged"), ("none.pt", "no such file")):
        with pytest.raises(InputError, match=rf"{name}: {line}.*expected an ESM-2 checkpoint of fair-esm"):
            import_fair_esm(tmp_path / name, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_every_family_that_the_config_lets_have_a_checkpoint_reads_one():
    for family in ("causal", "encoder", "folding", "masked", "whisper"):
        if family in CONVERTERS:
            assert BaseEntry(family=family, path="x.pt").path
        else:
            with pytest.raises(ValueError, match=r"no `\.pt` file is read as a base of family"):
                BaseEntry(family=family, path="x.pt")
