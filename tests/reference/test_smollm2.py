"""Every method and mixer of the registry on SmolLM2: tied embeddings, grouped heads, 49,152 tokens, its own ends.

Real weights, of the first two of its 30 layers so that it stays affordable; some methods and mixers also on the whole.
"""

import importlib
import math
from types import SimpleNamespace

import pytest
import torch
from models import draw_gate, entry
from transformers import AutoModelForCausalLM, AutoTokenizer

from loratory import config, registry
from loratory.adapters import core, deltas
from loratory.bases.core import load_base
from loratory.bases.prepare import prepare_folder
from loratory.domains.contract import Example
from loratory.mixers.core import Mixture
from loratory.mixers.store import open_mixture, save_mixture
from loratory.training.job import Job
from loratory.training.mixture import TrainingSet, optimise_mixture
from loratory.training.sweep import mean_loss, train_one

LAYERS = 2
METHODS = [name for name in registry.registered_names("method") if name != "bitfit"]  # SmolLM2 has no biases
MIXERS = registry.registered_names("mixer")
WHOLE = {"method": ("lora", "s2_lora"), "mixer": ("xlora", "router")}
LETTERS = (*"ACDEFGHIKLMNPQRSTVWY", ">")
PROTEINS = ["MKTAYIAKQR>", "GAVLIMFWP>", "MSTNQYC>", "DEKRHMAAG>"]
STEPS, CLOSE = 2, {"rtol": 1e-3, "atol": 5e-3}  # logits are of the order of 10; some methods start far from the base


def proteins(base) -> list:
    return [base.encode(Example(f"p{i}", "g", "Seq=<", text, alphabet=LETTERS)) for i, text in enumerate(PROTEINS)]


def ratings(base) -> list:
    choices = (" no", " yes")
    asked = [Example(f"r{i}", "g", f"Will user {i} like it?", choices[i % 2], choices) for i in range(4)]
    return [base.encode(example) for example in asked]


def opened(folder) -> SimpleNamespace:
    base = load_base(folder)
    return SimpleNamespace(base=base, sets={"protein": proteins(base), "recsys": ratings(base)})


@pytest.fixture(scope="module")
def whole(real_weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "smollm2"
    prepare_folder(real_weights("smollm2_135m"), "smollm2", entry("causal"), folder)
    return opened(folder)


@pytest.fixture(scope="module")
def short(real_weights, tmp_path_factory):
    source, root = real_weights("smollm2_135m"), tmp_path_factory.mktemp("short")
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16, num_hidden_layers=LAYERS)
    model.save_pretrained(root / "cut")
    AutoTokenizer.from_pretrained(source).save_pretrained(root / "cut")
    prepare_folder(root / "cut", "smollm2", entry("causal"), root / "base")
    given = opened(root / "base")
    assert given.base.model.config.tie_word_embeddings and len(given.base.model.model.layers) == LAYERS
    return given


@torch.no_grad()
def logits(base, model) -> torch.Tensor:
    batch = base.collate(proteins(base))
    return model(**base.inputs(batch), **base.routing_inputs(model, batch), use_cache=False).logits


def trained_method(given, name: str, folder, domain="protein", seed=0):
    """What two steps on a domain made, by the code of a sweep."""
    options = importlib.import_module(f"methods.test_{name}").ROW.options
    training = {"steps": STEPS, "learning_rates": [1e-3], "batch_tokens": 64, "warmup": 0.0, "save_every": 0}
    adapter = config.adapter_entry({"method": name, "training": training} | options)
    items = given.sets[domain]
    job = Job("cpu", folder / "checkpoints", name, seed=seed)
    return train_one(given.base, {"train": items, "valid": items}, adapter, seed, 1e-3, job)


def check_method(given, name: str, folder) -> None:
    base, before = given.base, logits(given.base, given.base.model)
    trial = trained_method(given, name, folder)
    assert len(trial["curve"]) == STEPS and all(math.isfinite(point["loss"]) for point in trial["curve"])
    assert torch.equal(logits(base, base.model), before), "the base did not come back"
    deltas.save_adapter(folder / "adapter", trial["adapter"], causal=True)
    stored = deltas.load_adapter(folder / "adapter")
    core.apply(base.model, stored, name)
    try:
        found = logits(base, base.model)
        again = mean_loss(base, base.model, given.sets["protein"], 64)
        assert again == pytest.approx(trial["valid_loss"], rel=1e-4), "stored and opened it is another function"
    finally:
        core.detach(base.model)
    assert (found - before).abs().max() > 1e-4, "training changed nothing"
    if not stored.own:
        changes = {f"{module}.weight": delta.to_dense() for module, delta in stored.deltas.items()} | stored.dense
        core.apply(base.model, deltas.Adapter(dense=changes), "merged")
        try:
            torch.testing.assert_close(logits(base, base.model), found, **CLOSE)
        finally:
            core.detach(base.model)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_and_is_merged_stored_and_opened_again(name, short, tmp_path):
    check_method(short, name, tmp_path)


@pytest.mark.parametrize("name", WHOLE["method"])
def test_some_methods_on_the_whole_model(name, whole, tmp_path):
    check_method(whole, name, tmp_path)


def experts(given, root) -> SimpleNamespace:
    """A LoRA of each of two domains, and their folders."""
    found = SimpleNamespace(adapters={}, folders={})
    for seed, domain in enumerate(given.sets):
        adapter = trained_method(given, "lora", root, domain, seed)["adapter"]
        for delta in adapter.deltas.values():
            delta.B.mul_(20)  # two steps leave little to weigh
        adapter.run["base_sha256"] = given.base.fingerprint
        found.folders[domain] = str(root / domain)
        deltas.save_adapter(found.folders[domain], adapter, causal=True)
        found.adapters[domain] = adapter
    return found


@pytest.fixture(scope="module")
def of_short(short, tmp_path_factory):
    return experts(short, tmp_path_factory.mktemp("experts"))


def check_mixer(given, made, name: str, folder) -> None:
    base, domains = given.base, [*given.sets]
    training = {"steps": STEPS, "batch_tokens": 64, "learning_rates": [0.01], "warmup": 0.0, "save_every": 0}
    chosen = config.mixture_entry(
        {"mixer": name, "base": "smollm2", "experts": dict.fromkeys(domains, "lora"), "training": training}
    )
    before = logits(base, base.model)
    mixture = Mixture(base.model, chosen.prepare_experts(made.adapters, 0), chosen, name, domains)
    try:
        if mixture.gate is not None:
            draw_gate(mixture.gate, 0)
        if mixture.trainable_parameters():
            sets = {domain: TrainingSet(items) for domain, items in given.sets.items()}
            training, job = chosen.training.at_rate(0.01), Job("cpu", folder / "checkpoints", name)
            curve = optimise_mixture(base, mixture, sets, {}, training, 0, job)
            assert all(math.isfinite(point["loss"]) for point in curve)
        mixture.eval().domain = 0
        found = logits(base, mixture)
        run = {"base_sha256": base.fingerprint, "adapters": dict.fromkeys(domains, "lora")}
        save_mixture(folder / "mixture", mixture, name, made.folders, run)
    finally:
        mixture.remove_experts()
    assert torch.isfinite(found).all() and (found - before).abs().max() > 1e-4
    assert torch.equal(logits(base, base.model), before), "the base did not come back"
    opened = open_mixture(folder / "mixture", base)
    try:
        opened.domain = 0
        torch.testing.assert_close(logits(base, opened), found, **CLOSE)
    finally:
        opened.remove_experts()


@pytest.mark.parametrize("name", MIXERS)
def test_every_mixer_trains_and_is_stored_and_opened_again(name, short, of_short, tmp_path):
    check_mixer(short, of_short, name, tmp_path)


def test_some_mixers_on_the_whole_model(whole, tmp_path):
    made = experts(whole, tmp_path)
    for name in WHOLE["mixer"]:
        check_mixer(whole, made, name, tmp_path / name)
