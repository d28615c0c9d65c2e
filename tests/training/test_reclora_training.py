"""RecLoRA from files: the recommender learns from all records, the language model from as many as it is allowed."""

from types import SimpleNamespace

import pytest
import torch
from models import causal_base, trained_adapter
from safetensors.torch import load_file

from loratory.adapters import deltas
from loratory.adapters.methods.lora import Method
from loratory.config import adapter_entry, mixture_entry
from loratory.data.files import read_json
from loratory.domains.dataset import build_dataset, read_split
from loratory.domains.examples import domain_examples
from loratory.domains.recommender import fit_recommender
from loratory.domains.recsys.simulate import simulate
from loratory.domains.recsys.sources import Dataset, Files, Simulation, Task
from loratory.mixers.store import GATE
from loratory.training import mixture as training
from loratory.training import sweep

TASK = Task(history=1, max_title=12, max_prompt=300)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A base, an adapter and a small dataset of ratings."""
    root = tmp_path_factory.mktemp("reclora")
    base, raw = causal_base(root / "base", ears=False), root / "raw"
    files = simulate(Simulation(users=20, items=50, ratings=20), "domain", 0, raw)
    paths = {name: str(raw / path) for name, path in files.items()}
    build_dataset("recsys", Files(**paths), Dataset(k_core=1, max_records=150), 0, root / "data")
    adapter = trained_adapter(base.model, Method(rank=2), 0)
    adapter.run["base_sha256"] = base.fingerprint
    deltas.save_adapter(root / "lora" / "seed0", adapter, causal=True)
    return SimpleNamespace(base=base, folder=root)


def train(study, out, limits=None, **options):
    """The gate and the manifest of a mixture of the one adapter."""
    steps = {"steps": 2, "batch_tokens": 600, "learning_rates": [0.01], "save_every": 0} | (limits or {})
    entry = mixture_entry(
        {"mixer": "reclora", "meta_loras": 2, "base": "tiny", "experts": {"recsys": "lora"}, "training": steps}
        | options
    )
    root = study.folder
    places = (study.base.folder, {"recsys": root / "lora"}, {"recsys": root / "data"}, {"recsys": TASK})
    training.train_mixture("toy", entry, *places, (0,), "cpu", root / "checkpoints", 4, root / out)
    return load_file(root / out / "seed0" / GATE), read_json(root / out / "seed0" / "mixture.json")


def all_contexts(study) -> tuple[list, list]:
    records = [record for split in ("train", "gate") for record in read_split(study.folder / "data", split)]
    found = domain_examples("recsys", records, TASK, "causal")
    return [example.context for example in found], [example.choices.index(example.target) for example in found]


def test_the_recommender_learns_from_all_records_and_the_model_from_few(study, monkeypatch):
    asked = []
    encode = training.training_split
    monkeypatch.setattr(training, "training_split", lambda *given: asked.append(given[4:]) or encode(*given))
    gate, manifest = train(study, "few", {"max_examples": 6})
    assert asked == [("train", 6), ("gate", 6)]
    expected = fit_recommender(*all_contexts(study), seed=0).state_dict()
    for name, tensor in expected.items():
        assert torch.equal(gate[f"tokens.recommender.{name}"], tensor), "frozen, bit for bit"
    assert (manifest["experts"], manifest["domains"]) == (["meta_1", "meta_2"], ["recsys"])
    assert manifest["options"]["combine"] == "paper"


def test_neither_the_recommender_nor_the_gates_read_what_is_held_out(study):
    with_all, _ = train(study, "all")
    held_out = [study.folder / "data" / f"{split}.parquet" for split in ("valid", "test")]
    kept = [path.read_bytes() for path in held_out]
    try:
        for path in held_out:
            path.write_bytes(b"no table")
        without, _ = train(study, "without")
    finally:
        for path, content in zip(held_out, kept):
            path.write_bytes(content)
    assert with_all.keys() == without.keys()
    assert all(torch.equal(tensor, without[name]) for name, tensor in with_all.items())


def test_an_adaptive_recommender_moves_with_the_gates(study):
    gate, _ = train(study, "adaptive", recommender="adaptive", combine="released")
    expected = fit_recommender(*all_contexts(study), seed=0).state_dict()
    moved = {name for name, tensor in expected.items() if not torch.equal(gate[f"tokens.recommender.{name}"], tensor)}
    assert "body.0.weight" in moved and not moved & {"known", "centre", "spread"}


def test_an_adapter_learns_from_few_examples_and_is_validated_on_as_many_as_ever(study, monkeypatch):
    sizes = {}
    encode = sweep.encode_split

    def counted(base, domain, data, task, split, limit=None):
        found = encode(base, domain, data, task, split, limit)
        sizes[split] = len(found)
        return found

    monkeypatch.setattr(sweep, "encode_split", counted)
    steps = {"steps": 1, "batch_tokens": 600, "learning_rates": [0.01], "save_every": 0, "max_examples": 5}
    entry = adapter_entry({"method": "lora", "rank": 2, "training": steps})
    root = study.folder
    sweep.train_sweep(
        *("recsys", root / "data", TASK, study.base.folder, entry, (0,), "cpu"),
        root / "checkpoints",
        4,
        root / "tallrec",
    )
    assert sizes == {"train": 5, "valid": 4}
