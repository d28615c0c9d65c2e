"""Starts from weights and activations on real bases of each family: written as a user would, they train and reload."""

import numpy as np
import pytest
import soundfile
import torch
from models import causal_base, encoder_base, whisper_base

from loratory.adapters import core, deltas
from loratory.bases.core import load_base
from loratory.config import adapter_entry
from loratory.domains.contract import Example
from loratory.training import sweep
from loratory.training.job import Job

STARTS = ("pissa", "olora", "corda", "eva", "loftq", "lora_fa", "qalora")
BASES = {"causal": causal_base, "encoder": encoder_base, "whisper": whisper_base}
WORDS = "acg tta gca cgt"


@pytest.fixture(scope="module", params=BASES)
def study(request, tmp_path_factory):
    """A base and eight examples of unequal lengths; those of the causal base mix audio and text."""
    root, family = tmp_path_factory.mktemp("starts"), request.param
    base, items = BASES[family](root / "base"), []
    for i in range(8):
        clip = root / f"{i}.flac"
        soundfile.write(clip, np.sin(np.arange(8000 + 1600 * i) * 0.05) * 0.3, 16000)
        given = {"id": f"{i}", "group": "g", "target": f"{WORDS} {WORDS}"[: 12 + 2 * i], "prompt": "read"}
        if family == "encoder":
            given |= {"prompt": " ".join(WORDS.split() * (1 + i)), "target": (" no", " yes")[i % 2]}
            given["choices"] = (" no", " yes")
        elif family == "whisper" or i % 2:
            given |= {"audio": str(clip), "prompt": ""}
        items.append(base.encode(Example(**given)))
    return base, items, root / "base"


@pytest.mark.parametrize("name", STARTS)
def test_a_start_with_a_rank_alone_trains_and_reloads_on_every_family(study, name, tmp_path):
    base, items, folder = study
    entry = adapter_entry({"method": name, "rank": 8, "training": {"steps": 2, "batch_tokens": 128}})
    weights = {key: p.clone() for key, p in base.model.named_parameters()}
    trial = sweep.train_one(base, {"train": items, "valid": items}, entry, 0, 0.01, Job("cpu", tmp_path, "toy"))
    heads = core.head_parameters(base.model, base.heads)
    assert all(torch.equal(p, weights[key]) for key, p in base.model.named_parameters() if key not in heads)
    deltas.save_adapter(tmp_path / "a", trial["adapter"], causal=base.family == "causal")
    again = load_base(folder)
    core.apply(again.model, deltas.load_adapter(tmp_path / "a"), "a")
    assert sweep.mean_loss(again, again.model, items, 128) == pytest.approx(trial["valid_loss"], rel=1e-4)
