"""Every registered mixer on a base whose weights are bf16: it learns in single precision, or need not learn at all."""

import numpy as np
import pytest
import soundfile
import torch
from models import causal_base, draw_gate, trained_adapter

from loratory import registry
from loratory.adapters import deltas
from loratory.adapters.methods.lora import Method
from loratory.domains.contract import Example
from loratory.mixers.core import Mixture
from loratory.mixers.store import open_mixture, save_mixture
from loratory.training.job import Job
from loratory.training.mixture import TrainingSet, optimise_mixture, validation_loss
from loratory.training.schedule import Training

DOMAINS = ("read", "heard")
TRAINING = Training(steps=2, learning_rate=0.05, batch_tokens=64, save_every=0)


@pytest.fixture
def study(tmp_path):
    """A base in bf16, experts as they are stored, and some examples of what is read and of what is heard."""
    base = causal_base(tmp_path / "base")
    folders = {}
    for seed, domain in enumerate(DOMAINS):
        adapter = trained_adapter(base.model, Method(rank=2 + seed), seed)
        adapter.run["base_sha256"] = base.fingerprint
        folders[domain] = tmp_path / domain
        deltas.save_adapter(folders[domain], adapter, causal=True)
    base.model.to(torch.bfloat16)
    soundfile.write(tmp_path / "clip.wav", np.random.default_rng(0).normal(0, 0.1, 4000), 16000)
    sound = {"read": "", "heard": str(tmp_path / "clip.wav")}
    texts = ("acg tta", "will the user", "yes no yes", "coding")
    items = {
        domain: [
            base.encode(Example(f"{domain}{i}", "g", "text ", text, audio=sound[domain]))
            for i, text in enumerate(texts)
        ]
        for domain in DOMAINS
    }
    return base, folders, items, tmp_path


@pytest.mark.parametrize("kind", registry.registered_names("mixer"))
def test_a_mixer_learns_on_a_bf16_base_in_single_precision_and_comes_back(study, kind):
    base, folders, items, folder = study
    given = {domain: deltas.load_adapter(path) for domain, path in folders.items()}
    mixer = registry.load_module("mixer", kind).Mixer()
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    mixture = Mixture(base.model, mixer.prepare_experts(given, seed=0), mixer, kind, list(DOMAINS)).eval()
    if mixture.gate is not None:
        draw_gate(mixture.gate, 0)
    start = {name: parameter.detach().clone() for name, parameter in mixture.trainable_parameters().items()}
    assert mixer.trained == bool(start)
    if mixer.trained:
        sets = {domain: TrainingSet(encoded) for domain, encoded in items.items()}
        curve = optimise_mixture(base, mixture, sets, items, TRAINING, 0, Job("cpu", folder / "checkpoints", "toy"))
        assert np.isfinite([point["loss"] for point in curve]).all() and len(curve) == 2
    after = mixture.trainable_parameters()
    assert all(parameter.dtype == torch.float32 and parameter.isfinite().all() for parameter in after.values())
    assert not start or any(not torch.equal(start[name], parameter) for name, parameter in after.items())
    expected = validation_loss(base, mixture, items, 64)
    save_mixture(folder / "mixture", mixture, kind, folders, {"base": "tiny", "base_sha256": base.fingerprint})
    mixture.remove_experts()
    assert all(tensor.equal(before[name]) for name, tensor in base.model.state_dict().items())
    assert base.model.dtype == torch.bfloat16
    assert validation_loss(base, open_mixture(folder / "mixture", base), items, 64) == expected
