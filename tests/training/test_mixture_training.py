"""Trainings of mixtures from files: with states from disk, with activations computed anew, from one split or two."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from models import causal_base, trained_adapter
from safetensors.torch import load_file
from studies import changed, shipped
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaModel

from loratory import registry
from loratory.adapters import deltas
from loratory.adapters.methods.lora import Method
from loratory.config import mixture as entry
from loratory.config import read_config
from loratory.domains.dataset import write_records
from loratory.errors import InputError
from loratory.mixers.store import GATE
from loratory.training.features import write_features
from loratory.training.mixture import read, train_mixture

DOMAINS = ("protein", "lncrna")
TASKS = {domain: registry.load("domain", domain, "sources").Task() for domain in DOMAINS}
OWN = {"protein": {"tax_id": "", "name": ""}, "lncrna": {"label": 1, "gene": ""}}
STEPS = 4


def records(folder, domain: str, seed: int) -> None:
    draw, build = np.random.default_rng(seed), registry.load("domain", domain, "build")
    folder.mkdir()
    for split in ("train", "gate", "valid"):
        letters = ["".join(draw.choice(list("ACGT"), int(draw.integers(6, 20)))) for _ in range(8)]
        rows = [
            {"id": f"{split}{i}", "group": f"g{i}", "sequence": s, "length": len(s)} | OWN[domain]
            for i, s in enumerate(letters)
        ]
        write_records(folder / f"{split}.parquet", build, rows)


@pytest.fixture
def study(tmp_path):
    """A base, an adapter and a dataset of each domain, and the features of all that a gate may learn from."""
    base, data, adapters, features = causal_base(tmp_path / "base", ears=False), {}, {}, {}
    for seed, domain in enumerate(DOMAINS):
        adapter = trained_adapter(base.model, Method(rank=2 + seed), seed)
        adapter.run["base_sha256"] = base.fingerprint
        adapters[domain], data[domain] = str(tmp_path / f"{domain}.lora"), tmp_path / domain
        deltas.save_adapter(f"{adapters[domain]}/seed0", adapter, causal=True)
        records(data[domain], domain, seed)
        features[domain] = tmp_path / "features" / domain
        for split in ("train", "gate"):
            given = (domain, data[domain], TASKS[domain], split, base.folder, "cpu", 64, tmp_path / "shards")
            write_features(*given, features[domain] / split)

    def train(out, known=None, mixer="xlora", **options):
        """The trained gate."""
        training = {"steps": STEPS, "batch_tokens": 96, "learning_rates": [0.005], "save_every": 0}
        experts = dict.fromkeys(DOMAINS, "lora")
        given = entry({"mixer": mixer, "base": "tiny", "experts": experts, "training": training} | options)
        places = (base.folder, adapters, data, TASKS, (0,), "cpu", tmp_path / "checkpoints", 4, tmp_path / out)
        train_mixture(out, given, *places, known)
        return load_file(tmp_path / out / "seed0" / GATE)

    return SimpleNamespace(base=base, data=data, features=features, train=train)


@pytest.fixture
def calls(monkeypatch):
    """How often the base's body, and how often its blocks' attention, were called."""
    found = {LlamaModel: 0, LlamaAttention: 0}

    def counted(kind, forward):
        def called(self, *args, **kwargs):
            found[kind] += 1
            return forward(self, *args, **kwargs)

        return called

    for kind in found:
        monkeypatch.setattr(kind, "forward", counted(kind, kind.forward))
    return found


MIXERS = {
    "token": {},
    "deep": {"depth": 2, "width": 8, "dropout": 0.3},
    "sequence": {"per": "sequence"},
    "fresh": {"mixer": "slide_lora", "gating": "learned"},
}


@pytest.mark.parametrize("options", MIXERS.values(), ids=MIXERS)
def test_with_features_the_bare_pass_never_runs_and_the_gate_is_the_same(study, calls, options):
    expected = study.train("anew", **options)
    assert calls[LlamaModel] == 2 * STEPS * len(DOMAINS)
    calls[LlamaModel] = 0
    found = study.train("known", study.features, features=True, **options)
    assert calls[LlamaModel] == STEPS * len(DOMAINS)
    begun = study.train("begun", training={"steps": 1, "learning_rates": [1e-9]}, **options)
    assert found.keys() == expected.keys()
    for name, gate in found.items():  # batches are padded otherwise than when the states were made: no bit-equality
        torch.testing.assert_close(gate, expected[name], rtol=0, atol=1e-6)
        assert (gate - begun[name]).abs().max() > 1e-3


@pytest.mark.parametrize("known", [False, True], ids=["anew", "known"])
def test_gradient_checkpointing_repeats_every_block_and_leaves_the_gate_as_it_was(study, calls, known):
    given = {"known": study.features, "features": True} if known else {}
    expected = study.train("plain", **given)
    plain = calls[LlamaAttention]
    assert plain == (1 if known else 2) * STEPS * len(DOMAINS) * 2
    calls[LlamaAttention] = 0
    found = study.train("again", **given, gradient_checkpointing=True)
    assert calls[LlamaAttention] == plain + STEPS * len(DOMAINS) * 2
    for name, gate in found.items():
        torch.testing.assert_close(gate, expected[name], rtol=0, atol=1e-6)


def test_what_starts_experts_of_its_own_learns_from_both_splits_and_knows_the_states_of_both(study):
    given = (study.base, "protein", study.data["protein"], TASKS["protein"])
    both = read(*given, ("train", "gate"), study.features["protein"])
    parts = [read(*given, (split,), study.features["protein"]) for split in ("train", "gate")]
    assert [item.ids for item in both.items] == [item.ids for part in parts for item in part.items]
    assert [len(row.read()) for row in both.states] == [item.length for item in both.items]
    for row, expected in zip(both.states, [row for part in parts for row in part.states]):
        assert torch.equal(row.read(), expected.read())


def test_a_batch_without_features_has_no_states(study):
    found = read(study.base, "protein", study.data["protein"], TASKS["protein"], ("gate",))
    assert "hidden" not in found.batch(study.base, [0, 1])


@pytest.mark.parametrize("options", [{"mixer": "uniform"}, {"mixer": "slide_lora", "gating": "task_id"}])
def test_features_that_nothing_would_read_are_refused(options):
    config = changed(shipped("config"), {"mixtures.xlora": shipped("config")["mixtures"]["xlora"] | options})
    plain = changed(config, {"mixtures.xlora": {k: config["mixtures"]["xlora"][k] for k in ("base", "experts")}})
    for key, value in options.items():
        plain["mixtures"]["xlora"][key] = value
    read_config(plain, "study.yaml")
    plain["mixtures"]["xlora"]["features"] = True
    with pytest.raises(InputError, match=rf"mixtures\.xlora\.features: .* \({options['mixer']}\)"):
        read_config(plain, "study.yaml")
