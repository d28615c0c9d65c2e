"""A base in bf16 trains adapters in float32 and predicts with them; what it cannot tell apart is refused before."""

import math
from importlib.util import find_spec

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from models import causal_base, encoder_base
from safetensors.torch import load_file

from loratory.config import Evaluation, adapter_entry
from loratory.data.files import read_json, write_json
from loratory.data.splits import SPLITS
from loratory.domains.lncrna import task
from loratory.domains.lncrna.sources import Task
from loratory.errors import InputError
from loratory.evaluation.predict import TrainedModels, predict_domain
from loratory.training.sweep import train_sweep

gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or find_spec("bitsandbytes") is None, reason="needs CUDA and bitsandbytes"
)
TRAINING = {"steps": 2, "batch_tokens": 200, "learning_rates": [0.01]}
OPTIONS = Task(window=60, stride=60)


@pytest.fixture
def transcripts(tmp_path):
    """A dataset folder of four records a split."""
    folder = tmp_path / "data"
    folder.mkdir()
    for split in SPLITS:
        names = [f"{split}{i}" for i in range(4)]
        rows = [
            {"id": name, "group": name, "sequence": "ACGTTAGCA" * (4 + i), "label": i % 2}
            for i, name in enumerate(names)
        ]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}.parquet")
    return folder


def train(tmp_path, data, device="cpu"):
    entry = adapter_entry({"method": "lora", "rank": 2, "training": TRAINING})
    places = (device, tmp_path / "checkpoints", 4, tmp_path / "adapter")
    train_sweep("lncrna", data, OPTIONS, tmp_path / "base", entry, (0,), *places)


@pytest.mark.parametrize("make", [causal_base, encoder_base])
def test_a_bf16_base_trains_an_adapter_in_float32_and_predicts(make, transcripts, tmp_path):
    make(tmp_path / "base", precision="bf16")
    assert read_json(tmp_path / "base" / "base.json")["precision"] == "bf16"
    train_and_predict(transcripts, tmp_path, "bf16", "cpu")


@gpu
@pytest.mark.parametrize("held", ["int8", "nf4"])
def test_a_packed_base_trains_an_adapter_in_float32_and_predicts(held, transcripts, tmp_path):
    causal_base(tmp_path / "base", ears=False)
    manifest = tmp_path / "base" / "base.json"
    write_json(manifest, read_json(manifest) | {"precision": held})
    train_and_predict(transcripts, tmp_path, held, "cuda")


def train_and_predict(transcripts, tmp_path, held, device):
    train(tmp_path, transcripts, device)
    folder = tmp_path / "adapter" / "seed0"
    run = read_json(folder / "run.json")
    assert run["meta_info"]["model_info"]["precision"] == held and run["train_info"]["num_total_params"] > 20_000
    weights = load_file(folder / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    made = {0: TrainedModels({"lora@lncrna": folder}, {})}
    places = (made, ("test",), Evaluation(), device, tmp_path / "out")
    predict_domain("lncrna", transcripts, OPTIONS, tmp_path / "base", *places)
    rows = pq.read_table(tmp_path / "out" / "seed0.parquet").to_pylist()
    assert {row["system"] for row in rows} >= {"lora@lncrna"} and len(rows) % 4 == 0
    assert all(0 < row["p"] < 1 and math.isfinite(row["p"]) for row in rows if row["system"] == "lora@lncrna")


def test_choices_that_the_base_cannot_tell_apart_are_refused_before_anything_is_trained(
    transcripts, tmp_path, monkeypatch
):
    causal_base(tmp_path / "base")
    monkeypatch.setattr(task, "CHOICES", (" no", " no"))
    with pytest.raises(InputError, match=r"base: choices are the same tokens, or none \(\(' no', ' no'\)\)"):
        train(tmp_path, transcripts)
    assert not (tmp_path / "adapter").exists() and not (tmp_path / "checkpoints").exists()
