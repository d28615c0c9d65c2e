"""Predictions: the oracle of a mixture is the stand-alone expert; windows are merged; finished chains are folded."""

from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch
from models import causal_base, trained_adapter

from loratory import registry
from loratory.adapters import deltas
from loratory.adapters.methods.lora import Method
from loratory.config import Evaluation
from loratory.domains.contract import Example
from loratory.evaluation import predict
from loratory.mixers.core import Mixture
from loratory.mixers.store import save_mixture
from loratory.training.mixture import start_gate

CHOICES = (" no", " yes")
TASK = SimpleNamespace(max_new_tokens=6)


def questions(n=7):
    texts = ["will the user like it", "coding noncoding", "yes no yes", "MKTAY"]
    return [Example(f"r{i // 2}", f"g{i}", texts[i % 4] + " " * (i % 3), CHOICES[i % 2], CHOICES) for i in range(n)]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A base with two adapters and an X-LoRA mixture of them."""
    root = tmp_path_factory.mktemp("study")
    base = causal_base(root / "base", ears=False)
    folders = {}
    for index, name in enumerate(("protein", "recsys")):
        adapter = trained_adapter(base.model, Method(rank=2 + index), index)
        adapter.run["base_sha256"] = base.fingerprint
        folders[name] = root / name
        deltas.save_adapter(folders[name], adapter, causal=True)
    experts = {name: deltas.load_adapter(folder) for name, folder in folders.items()}
    mixture = Mixture(base.model, experts, registry.load("mixer", "xlora").Mixer())
    start_gate(mixture.gate, 0)
    save_mixture(root / "mixture", mixture, "xlora", folders, {"base_sha256": base.fingerprint})
    mixture.unwrap()
    return SimpleNamespace(base=base, folders=folders, mixture=root / "mixture")


def systems(study, domain):
    adapters = {f"lora@{name}": folder for name, folder in study.folders.items()}
    for system in predict.systems(study.base, domain, predict.Trained(adapters, {"xlora": study.mixture})):
        yield system, predict.answer(study.base, system.model, questions(), ("nll", "choice"), TASK, Evaluation(), 0)


def test_the_oracle_is_the_domains_own_adapter_and_the_base_comes_back(study):
    before = {name: tensor.clone() for name, tensor in study.base.model.state_dict().items()}
    found = {system.name: rows for system, rows in systems(study, "recsys")}
    assert list(found) == [
        "base",
        "lora@protein",
        "lora@recsys",
        "xlora:uniform",
        "xlora:oracle",
        "xlora:shuffled",
        "xlora",
    ]
    for ours, alone in zip(found["xlora:oracle"], found["lora@recsys"]):
        assert ours["nll"] == pytest.approx(alone["nll"], abs=1e-4)
        assert ours["p"] == pytest.approx(alone["p"], abs=1e-5)
    assert found["base"][0]["nll"] != pytest.approx(found["lora@recsys"][0]["nll"], abs=1e-2)
    after = study.base.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_the_bare_base_answers_once_for_all_seeds_and_everything_else_for_each(study, tmp_path, monkeypatch):
    asked, told = [], predict.told

    def listened(base, domain, system, split, questions, task, evaluation, seed):
        asked.append((system.name, split, seed))
        return told(base, domain, system, split, questions, task, evaluation, seed)

    monkeypatch.setattr(predict, "told", listened)
    monkeypatch.setattr(predict, "questions_of", lambda *_: {"test": questions(), "valid": questions(4)})
    made = predict.Trained({"lora@recsys": study.folders["recsys"]}, {})
    folder = study.base.folder
    predict.predict("recsys", None, TASK, folder, {0: made, 5: made}, (), Evaluation(), "cpu", tmp_path)
    assert asked == [
        ("base", "test", 0),
        ("base", "valid", 0),
        *(("lora@recsys", split, seed) for seed in (0, 5) for split in ("test", "valid")),
    ]
    one, other = (pq.read_table(tmp_path / f"seed{seed}.parquet").to_pylist() for seed in (0, 5))
    assert len(one) == len(other) and [row for row in one if row["kind"] == "base"] == other[: len(one) // 2]


def test_shuffled_and_true_gates_differ(study):
    found = {system.name: [row["nll"] for row in rows] for system, rows in systems(study, "protein")}
    assert found["xlora:shuffled"] != pytest.approx(found["xlora"], abs=1e-3)


def test_a_domain_without_an_expert_has_no_oracle(study):
    names = [system.name for system, _ in systems(study, "lncrna")]
    assert "xlora:oracle" not in names and "xlora" in names


def test_windows_of_a_record_are_one_row_with_the_mean_log_odds():
    rows = [{"id": "a"}, {"id": "b"}, {"id": "a"}]
    merged = predict.merged(rows, [0.0, -1e9, 2.0])
    assert [row["id"] for row in merged] == ["a", "b"]
    assert merged[0]["p"] == pytest.approx(1 / (1 + torch.tensor(-1.0).exp().item()))
    assert merged[1]["p"] == pytest.approx(0.0, abs=1e-300)


def test_routing_shares_sum_to_one_and_know_prompt_from_answer(study):
    for system, _ in systems(study, "recsys"):
        if system.kind == "mixture":
            found = predict.route(study.base, system.model, questions(), 64)
    assert sum(found["weights"]) == pytest.approx(1)
    assert sum(found["prompt"]) == pytest.approx(1) and sum(found["target"]) == pytest.approx(1)
    assert 0 <= found["entropy"] <= 1 and 0 <= found["top1"] <= 1
