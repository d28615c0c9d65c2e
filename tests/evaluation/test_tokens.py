"""Routing token by token: inputs of several domains, and the weights at each of their positions."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from models import causal_base, opinionated, trained_adapter

from loratory import registry
from loratory.adapters import deltas
from loratory.adapters.methods.lora import Method
from loratory.domains.contract import Example
from loratory.errors import InputError
from loratory.evaluation import tokens
from loratory.evaluation.tokens import AUDIO_MARK, join_examples, route_tokens, token_weights
from loratory.mixers.core import Mixture
from loratory.mixers.store import save_mixture

CHOICES = (" no", " yes")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return causal_base(tmp_path_factory.mktemp("tokens") / "base")


@pytest.fixture
def asked(tmp_path):
    """A question that is continued, one that is a choice, and one that is heard."""
    soundfile.write(tmp_path / "a.wav", np.sin(np.arange(8000) * 0.05) * 0.3, 16000)
    return {
        "protein": Example("p", "g", "MK", "TAY"),
        "lncrna": Example("l", "g", "acg tta\n", CHOICES[0], CHOICES),
        "speech": Example("s", "g", "to text ", "yes no", audio=str(tmp_path / "a.wav")),
    }


def chosen(asked, *domains) -> list:
    return [(domain, asked[domain]) for domain in domains]


def test_a_sequence_is_read_whole_and_a_choice_is_left_open(base, asked):
    item, domains = join_examples(base, chosen(asked, "protein", "lncrna"))
    protein = [base.tokenizer.bos_token_id, *base.tokens("MKTAY")]
    assert item.ids == protein + base.tokens("acg tta\n")
    assert domains == ["protein"] * len(protein) + ["lncrna"] * len(base.tokens("acg tta\n"))
    assert set(item.labels) == {-100} and item.length == len(item.ids) == len(item.labels)


def test_what_is_heard_stands_first_and_its_transcript_is_left_out(base, asked):
    item, domains = join_examples(base, chosen(asked, "speech", "protein"))
    positions = base.audio_tokens(asked["speech"])
    assert (item.audio, item.audio_tokens) == (asked["speech"].audio, positions)
    assert domains.count("speech") == 1 + positions + len(base.tokens("to text "))
    assert item.ids[-domains.count("protein") :] == base.tokens("MKTAY")


def test_an_input_longer_than_the_context_is_refused(base, asked):
    long = Example("l", "g", "acg tta " * 200, "", CHOICES)
    with pytest.raises(InputError, match="does not fit into the base's context"):
        join_examples(base, [("protein", asked["protein"]), ("lncrna", long)])


def mixture_of(base, kind: str) -> Mixture:
    experts = {n: trained_adapter(base.model, Method(rank=2), i) for i, n in enumerate(("protein", "speech"))}
    return opinionated(Mixture(base.model, experts, registry.load_module("mixer", kind).Mixer())).eval()


@torch.no_grad()
def test_weights_are_the_means_over_layers_of_the_gate_at_each_position(base, asked):
    mixture = mixture_of(base, "xlora")
    item, domains = join_examples(base, chosen(asked, "speech", "protein"))
    found = token_weights(base, mixture, item, domains)
    mixture.remove_experts()
    hidden = base.model(**base.inputs(base.collate([item])), output_hidden_states=True).hidden_states[-1]
    weights = mixture.gate["tokens"](hidden).unflatten(-1, (-1, 2)).softmax(-1).mean(2)[0]
    np.testing.assert_allclose(found["weights"], weights.numpy(), atol=1e-5)
    heard = [token == AUDIO_MARK for token in found["tokens"]]
    assert heard == [0 < at <= item.audio_tokens for at in range(len(item.ids))]
    assert "".join(found["tokens"][-domains.count("protein") :]) == "MKTAY"
    assert found["experts"] == ["protein", "speech"] and found["domains"] == domains


def test_a_mixer_of_whole_sequences_weighs_all_positions_alike(base, asked):
    mixture = mixture_of(base, "router")
    found = token_weights(base, mixture, *join_examples(base, chosen(asked, "protein", "lncrna")))
    mixture.remove_experts()
    assert len(found["weights"]) == len(found["tokens"]) > 5
    assert all(weights == found["weights"][0] for weights in found["weights"])


def test_every_mixture_is_told_of_every_prompt(base, asked, tmp_path, monkeypatch):
    mixtures = {}
    for kind in ("xlora", "arrow"):
        mixture = mixture_of(base, kind)
        folders = {name: tmp_path / name for name in mixture.names}
        for name, adapter in mixture.current_experts().items():
            adapter.run["base_sha256"] = base.fingerprint
            deltas.save_adapter(folders[name], adapter, causal=True)
        mixtures[kind] = tmp_path / kind
        save_mixture(mixtures[kind], mixture, kind, folders, {"base_sha256": base.fingerprint})
        mixture.remove_experts()
    monkeypatch.setattr(tokens, "read_records", lambda folder, split, limit: [folder] if split == "test" else [])
    monkeypatch.setattr(tokens, "domain_examples", lambda domain, records, task, family: [asked[domain]])
    prompts = {"both": ("protein", "lncrna"), "spoken": ("speech", "protein")}
    tasks = dict.fromkeys(asked, SimpleNamespace())
    route_tokens(base.folder, mixtures, prompts, dict.fromkeys(asked, "data"), tasks, "cpu", tmp_path / "out.json")
    found = json.loads((tmp_path / "out.json").read_text())
    assert {name: set(of) for name, of in found.items()} == {name: set(prompts) for name in mixtures}
    for of in found.values():
        for prompt, domains in prompts.items():
            assert list(dict.fromkeys(of[prompt]["domains"])) == list(domains)
            np.testing.assert_allclose(np.sum(of[prompt]["weights"], 1), 1, atol=1e-5)
