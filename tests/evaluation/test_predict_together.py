"""Systems that answer in shared batches say what each says alone."""

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from models import causal_base, encoder_base, trained_adapter, whisper_base

from loratory.adapters import deltas
from loratory.adapters.methods.lora import Method
from loratory.bases.options import Decoding
from loratory.config import Evaluation
from loratory.domains.contract import Example, TaskOptions
from loratory.evaluation import answers, predict, together
from loratory.evaluation.systems import TrainedModels

CHOICES = (" no", " yes")
TASK = TaskOptions(max_new_tokens=6)
OUTPUTS = {"causal": ("nll", "choice", "text", "sample", "rank"), "encoder": ("choice",), "whisper": ("text",)}


def questions(family, folder, n=7):
    if family == "whisper":
        clips = [str(folder / f"{i}.wav") for i in range(n)]
        for i, clip in enumerate(clips):
            soundfile.write(clip, np.sin(np.arange(6000 + 500 * i) * (0.05 + 0.02 * i)) * 0.3, 16000)
        return [Example(clip[-5:], "g", "", "yes", audio=clip) for clip in clips]
    texts = ["acg tta gca cgt", "acg", "will the user like it", "coding noncoding acg"]
    return [Example(f"r{i // 2}", f"g{i}", texts[i % 4] + " acg" * i, CHOICES[i % 2], CHOICES) for i in range(n)]


def trained_models(base, folder) -> dict[int, TrainedModels]:
    """Of two seeds: two adapters of low rank and what is cut of one, and one of no low rank."""
    found = {}
    for seed in (0, 5):
        folders = {}
        for place, domain in enumerate(("recsys", "protein")):
            adapter = trained_adapter(base.model, Method(rank=2 + place), 10 * seed + place, base.heads)
            adapter.run |= {"base_sha256": base.fingerprint}
            adapter.run["run_info"] = {"peft_config": {"method": "lora", "rank": 2 + place}}
            folders[f"lora@{domain}"] = folder / f"{domain}{seed}"
            deltas.save_adapter(folders[f"lora@{domain}"], adapter, causal=base.family == "causal")
        layer, delta = next(iter(adapter.deltas.items()))
        dense = replace(adapter, deltas={}, dense={f"{layer}.weight": delta.to_dense()})
        folders["full_ft@recsys"] = folder / f"dense{seed}"
        deltas.save_adapter(folders["full_ft@recsys"], dense, causal=base.family == "causal")
        found[seed] = TrainedModels(folders, {}, {"lora (SVD to rank 1)@recsys": ("lora@recsys", 1)})
    return found


BASES = {
    "causal": lambda folder: causal_base(folder, ears=False),
    "encoder": encoder_base,
    "whisper": whisper_base,
}


@pytest.fixture(params=BASES)
def study(request, tmp_path, monkeypatch):
    base = BASES[request.param](tmp_path / "base")
    ask = questions(request.param, tmp_path)
    sets = {"test": ask, "valid": ask[:4]} | ({"sample": ask[:2]} if request.param == "causal" else {})
    monkeypatch.setattr(predict, "examples_by_split", lambda *_: sets)
    monkeypatch.setattr("loratory.registry.family_outputs", lambda *_: OUTPUTS[request.param])
    if request.param == "causal":
        monkeypatch.setattr(predict, "candidate_lists", lambda *_: [[{"id": "a"}, {"id": "b"}], [{"id": "c"}]])
        for module in (predict, together):
            monkeypatch.setattr(module, "domain_examples", lambda domain, records, *_: ask[: len(records)])
    monkeypatch.setattr(TaskOptions, "choose_outputs", lambda self, outputs: outputs)
    return base, trained_models(base, tmp_path)


def predict_study(study, out, evaluation):
    base, trained = study
    predict.predict_domain("recsys", None, TASK, base.folder, trained, (), evaluation, "cpu", out)
    rows = [pq.read_table(out / f"seed{seed}.parquet").to_pylist() for seed in trained]
    return [row for each in rows for row in each], json.loads((out / "seed5.costs.json").read_text())


@pytest.mark.parametrize("budget", [60, 8192])
def test_together_is_as_in_turn_and_within_the_budget(study, tmp_path, monkeypatch, capsys, budget):
    passes, run_output = [], answers.run_output

    def listen(base, model, output, items, *others):
        passes.append((len(items) * max(item.length for item in items), len(items)))
        return run_output(base, model, output, items, *others)

    monkeypatch.setattr(answers, "run_output", listen)
    evaluation = Evaluation(batch_tokens=budget)
    ours, costs = predict_study(study, tmp_path / "together", evaluation)
    assert all(positions <= budget or rows == 1 for positions, rows in passes)
    log = capsys.readouterr().out
    assert log.count("full_ft@recsys answers alone: the change of") == 2 and "lora@recsys answered" not in log
    shared = len(passes)
    monkeypatch.setattr(predict, "answer_together", lambda *_: {})
    turns, alone = predict_study(study, tmp_path / "turns", evaluation)
    assert shared < len(passes) - shared or budget == 60
    assert len(ours) == len(turns)
    for one, two in zip(ours, turns):
        numbers = {name: two[name] for name in ("nll", "p")}
        assert one | numbers == two
        for name, number in numbers.items():
            assert (one[name] is None) == (number is None) and one[name] == pytest.approx(number, abs=1e-4)
    assert {row["system"] for row in ours} >= {"lora@recsys", "lora (SVD to rank 1)@recsys", "full_ft@recsys"}
    assert costs.keys() == alone.keys()
    for system, cost in costs.items():
        assert [cost[name] for name in ("read", "written")] == [alone[system][name] for name in ("read", "written")]
        assert alone[system]["systems"] == 1
        assert (cost["systems"] > 1) == ("full_ft" not in system) or budget == 60


def test_nothing_is_shared_where_rows_are_not_one_for_each_question(tmp_path):
    base = whisper_base(tmp_path / "base")
    trained = trained_models(base, tmp_path)
    for decoding in (Decoding(temperatures=(0.5,)), Decoding(long_form="chunks")):
        evaluation = Evaluation(decoding=decoding)
        assert together.answer_together(base, "speech", trained, {"test": []}, [], TASK, evaluation) == {}


def test_a_system_that_none_can_share_with_answers_alone(tmp_path):
    base = encoder_base(tmp_path / "base")
    folders = trained_models(base, tmp_path)[0].adapters
    alone = {0: TrainedModels({"lora@recsys": folders["lora@recsys"]}, {})}
    assert together.answer_together(base, "recsys", alone, {"test": []}, [], TASK, Evaluation()) == {}
