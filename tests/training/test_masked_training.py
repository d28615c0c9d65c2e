"""An ESM-2 from nothing to numbers: trained here, a LoRA learnt on it, stored, opened again, scored."""

import json
import random
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from loratory.bases.core import load_base
from loratory.bases.options import Pretrain
from loratory.config import BaseEntry, Evaluation, Training, adapter_entry
from loratory.data.splits import SPLITS
from loratory.domains.protein import metrics
from loratory.domains.protein.sources import Task
from loratory.evaluation.predict import TrainedModels, predict_domain
from loratory.training.prepare import prepare_base
from loratory.training.session import AdapterSession
from loratory.training.sweep import encode_split, train_sweep

ARCHITECTURE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
EVALUATION = Evaluation(max_records=None, max_valid=1000, samples=5, batch_tokens=500)


def write_proteins(folder, letters: str, size: int):
    """Proteins of few residues, each of which repeats the one before the last in most places."""
    folder.mkdir()
    for number, split in enumerate(SPLITS):
        rng, rows = random.Random(f"{letters} {split}"), []
        for i in range(size):
            sequence = rng.choices(letters, k=2)
            while len(sequence) < 30:
                sequence.append(sequence[-2] if rng.random() < 0.9 else rng.choice(letters))
            name = f"{letters}{number}-{i}"
            rows.append({"id": name, "group": name, "sequence": "".join(sequence), "length": 30})
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}.parquet")
    return folder


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A base that was trained on proteins of four residues, and data of two of them."""
    root = tmp_path_factory.mktemp("esm")
    general, data = write_proteins(root / "general", "ACDE", 24), write_proteins(root / "data", "CD", 24)
    training = Training(steps=60, learning_rate=0.01, batch_tokens=600)
    entry = BaseEntry(
        family="masked", pretrain=Pretrain(domains=["protein"], architecture=ARCHITECTURE, training=training)
    )
    places = ({"protein": general}, {"protein": Task()}, None, "cpu", root / "checkpoints")
    prepare_base("esm", entry, *places, root / "base")
    prepare_base("esm", entry, *places, root / "again")
    return SimpleNamespace(root=root, data=data, base=root / "base", again=root / "again")


def test_a_base_that_is_trained_here_learns_and_is_the_same_again(study):
    base = load_base(study.base)
    curve = json.loads((study.base / "curve.json").read_text())
    assert curve[-1]["loss"] < 1.8 < curve[0]["loss"], "four residues are left of 33 tokens"
    assert base.fingerprint == load_base(study.again).fingerprint and base.manifest["origin"] == "pretrain"


def test_what_a_step_hides_depends_on_the_seed_and_the_step_alone(study):
    base, method = load_base(study.base), adapter_entry({"method": "lora", "training": {"batch_tokens": 200}})
    items = encode_split(base, "protein", study.data, Task(), "train")
    recipe = method.training.at_rate(0.01)
    first, again, other = (AdapterSession(base, method, {}, items, recipe, seed) for seed in (0, 0, 1))
    ids = [session.batch(step)["ids"] for session, step in ((first, 3), (again, 3), (other, 3), (first, 4))]
    assert torch.equal(ids[0], ids[1])
    assert not any(one.shape == ids[0].shape and torch.equal(one, ids[0]) for one in ids[2:])


def test_a_lora_learns_is_stored_and_scores_what_it_learnt(study):
    training = {"steps": 160, "learning_rates": [0.01], "batch_tokens": 600}
    adapter = adapter_entry({"method": "lora", "rank": 4, "alpha": 8, "training": training})
    out = study.root / "adapter"
    train_sweep("protein", study.data, Task(), study.base, adapter, (0,), "cpu", study.root / "checkpoints", 8, out)
    losses = [row["loss"] for row in pq.read_table(out / "runs.parquet").to_pylist()]
    assert sum(losses[-20:]) < 0.85 * sum(losses[:20])
    trained = {0: TrainedModels({"lora@protein": out / "seed0"}, {})}
    asked, folder = ("test", "sample"), study.root / "predictions"
    folder.mkdir()
    predict_domain("protein", study.data, Task(), study.base, trained, asked, EVALUATION, "cpu", folder)
    rows = pq.read_table(folder / "seed0.parquet").to_pylist()
    records = pq.read_table(study.data / "test.parquet").to_pylist()
    found = {}
    for system in ("base", "lora@protein"):
        own = [row for row in rows if row["system"] == system]
        assert [row["tokens"] for row in own] == [30] * 24 and {row["split"] for row in own} == {"test"}
        columns = metrics.columns(own, records, Task())
        perplexity = next(metric for metric in metrics.METRICS if metric.name == "perplexity")
        found[system] = perplexity.compute_value(columns)
    assert found["lora@protein"] < 0.85 * found["base"], "of two residues, and of four"
    cost = json.loads((folder / "seed0.costs.json").read_text())["base"]
    assert cost["read"] == 24 * 30 * 32 and cost["written"] == 0
