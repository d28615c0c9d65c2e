"""Predictions: the oracle of a mixture is the stand-alone expert; controls are asked once for the same experts; the
windows of a record are merged."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from models import causal_base, draw_gate, encoder_base, trained_adapter, whisper_base
from safetensors.torch import load_file

from loratory import registry
from loratory.adapters import deltas
from loratory.adapters.methods.lora import Method
from loratory.bases.options import Decoding
from loratory.config import Evaluation
from loratory.domains.contract import Example, TaskOptions
from loratory.domains.examples import domain_prompts
from loratory.domains.protein.sources import Task as Protein
from loratory.errors import InputError
from loratory.evaluation import answers, predict
from loratory.evaluation.controls import MeanUserMixer, ShuffledMixer, can_shuffle, exchange_users
from loratory.evaluation.score import count_too_long
from loratory.mixers.contract import GateInput, GateShape
from loratory.mixers.core import Mixture
from loratory.mixers.generation import StepsByShape
from loratory.mixers.methods.reclora import Mixer as RecLora
from loratory.mixers.store import save_mixture

CHOICES = (" no", " yes")
TASK = TaskOptions(max_new_tokens=6)


def questions(n=7):
    texts = ["will the user like it", "coding noncoding", "yes no yes", "MKTAY"]
    return [Example(f"r{i // 2}", f"g{i}", texts[i % 4] + " " * (i % 3), CHOICES[i % 2], CHOICES) for i in range(n)]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A base with two adapters, and mixtures of them."""
    root = tmp_path_factory.mktemp("study")
    base = causal_base(root / "base", ears=False)
    folders = {}
    for index, name in enumerate(("protein", "recsys")):
        adapter = trained_adapter(base.model, Method(rank=2 + index), index)
        adapter.run["base_sha256"] = base.fingerprint
        folders[name] = root / name
        deltas.save_adapter(folders[name], adapter, causal=True)
    mixtures = {kind: root / kind for kind in ("xlora", "weighted_merge", "oracle", "smora")}
    for kind, folder in mixtures.items():
        mix(base, kind, folders, folder)
    return SimpleNamespace(base=base, folders=folders, mixtures=mixtures, mixture=mixtures["xlora"])


def mix(base, kind: str, folders, out) -> None:
    mixer = registry.load_module("mixer", kind).Mixer()
    given = {name: deltas.load_adapter(folder) for name, folder in folders.items()}
    mixture = Mixture(base.model, mixer.prepare_experts(given, 0), mixer, domains=list(given))
    if mixture.gate is not None:
        draw_gate(mixture.gate, 0)
    run = {"base_sha256": base.fingerprint, "adapters": dict.fromkeys(folders, "lora")}
    save_mixture(out, mixture, kind, folders, run)
    mixture.remove_experts()


def made(study, *mixtures) -> predict.TrainedModels:
    adapters = {f"lora@{name}": folder for name, folder in study.folders.items()}
    return predict.TrainedModels(adapters, {name: study.mixtures[name] for name in mixtures})


def asked(study, model):
    return answers.predict_examples(study.base, model, questions(), ("nll", "choice"), TASK, Evaluation(), 0)[0]


def systems(study, domain, *mixtures):
    for system in predict.iterate_systems(study.base, domain, made(study, *(mixtures or ("xlora",)))):
        yield system, asked(study, system.model)


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


def test_an_adapter_at_a_lower_rank_predicts_test_records_alone_and_as_that_rank_stored_would(study, tmp_path):
    options = {"method": "lora", "rank": 3}
    whole = deltas.load_adapter(study.folders["recsys"])
    whole.run["run_info"] = {"peft_config": options}
    deltas.save_adapter(tmp_path / "whole", whole, causal=True)
    cut = replace(whole, deltas={name: delta.truncate(1) for name, delta in whole.deltas.items()})
    deltas.save_adapter(tmp_path / "cut", cut, causal=True)
    found = {}
    given = {"lora@recsys": tmp_path / "whole", "stored@recsys": tmp_path / "cut"}
    trained = predict.TrainedModels(given, {}, {"lora (SVD to rank 1)@recsys": ("lora@recsys", 1)})
    for system in predict.iterate_systems(study.base, "recsys", trained):
        found[system.name] = asked(study, system.model)
        splits = [split for split in ("test", "valid", "sample") if predict.is_evaluated(split, system, "recsys")]
        assert splits == (["test"] if system.kind == "cut" else splits)
    assert list(found) == ["base", "lora@recsys", "stored@recsys", "lora (SVD to rank 1)@recsys"]
    for cut, stored, full in zip(found["lora (SVD to rank 1)@recsys"], found["stored@recsys"], found["lora@recsys"]):
        assert cut["nll"] == pytest.approx(stored["nll"], abs=1e-5)
        assert cut["nll"] != pytest.approx(full["nll"], abs=1e-4)


def test_the_bare_base_answers_once_for_all_seeds_and_everything_else_for_each(study, tmp_path, monkeypatch):
    heard, told = [], predict.run_system

    def listened(base, domain, system, split, questions, task, evaluation, seed):
        heard.append((system.name, split, seed))
        return told(base, domain, system, split, questions, task, evaluation, seed)

    monkeypatch.setattr(predict, "run_system", listened)
    monkeypatch.setattr(predict, "answer_together", lambda *_: {})
    monkeypatch.setattr(predict, "examples_by_split", lambda *_: {"test": questions(), "valid": questions(4)})
    alone = predict.TrainedModels({"lora@recsys": study.folders["recsys"]}, {})
    folder = study.base.folder
    predict.predict_domain("recsys", None, TASK, folder, {0: alone, 5: alone}, (), Evaluation(), "cpu", tmp_path)
    assert heard == [
        ("base", "test", 0),
        ("base", "valid", 0),
        *(("lora@recsys", split, seed) for seed in (0, 5) for split in ("test", "valid")),
    ]
    one, other = (pq.read_table(tmp_path / f"seed{seed}.parquet").to_pylist() for seed in (0, 5))
    assert len(one) == len(other) and [row for row in one if row["kind"] == "base"] == other[: len(one) // 2]


def test_every_question_is_of_the_split_that_it_is_asked_for_up_to_its_limit(tmp_path, monkeypatch):
    for split in ("train", "gate", "valid", "test"):
        rows = [{"id": f"{split}{i}", "group": "g"} for i in range(4)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{split}.parquet")
    monkeypatch.setattr(predict, "domain_examples", lambda domain, records, task, family: records)
    base = SimpleNamespace(family="causal")
    evaluation = SimpleNamespace(max_records=3, max_valid=2, samples=0)

    def splits(*asked):
        found = predict.examples_by_split("recsys", tmp_path, TASK, base, asked, evaluation)
        return {split: [record["id"][:-1] for record in records] for split, records in found.items()}

    assert splits("valid", "test") == {"valid": ["valid"] * 2, "test": ["test"] * 3}
    assert splits("test") == {"test": ["test"] * 3}


@torch.no_grad()
@pytest.mark.parametrize("family", ["causal", "encoder"])
def test_p_is_the_probability_of_the_second_choice_and_of_no_other(study, tmp_path, family):
    """By the base's own forward pass, and by what a training to that choice lowers."""
    base = study.base if family == "causal" else encoder_base(tmp_path / "base")
    ask = [Example(f"r{i}", "g", text, CHOICES[0], CHOICES) for i, text in enumerate(("acg tta", "yes no yes"))]
    found = [
        row["p"] for row in answers.predict_examples(base, base.model, ask, ("choice",), TASK, Evaluation(), 0)[0]
    ]
    for p, question in zip(found, ask):
        if family == "causal":
            item = base.encode(question)
            prompt = [token for token, label in zip(item.ids, item.labels) if label == -100]
            first = [base.tokens(choice)[0] for choice in CHOICES]
            no, yes = base.model(torch.tensor([prompt])).logits[0, -1, first].log_softmax(-1).tolist()
        else:
            items = [base.encode(replace(question, target=choice)) for choice in CHOICES]
            no, yes = (-float(base.loss(base.model, base.collate([item]))[0]) for item in items)
        assert p == pytest.approx(np.exp(yes) / (np.exp(no) + np.exp(yes)), abs=1e-5)
        assert abs(p - 0.5) > 1e-4, "else the other choice's would do as well"


def test_shuffled_and_true_gates_differ(study):
    found = {system.name: [row["nll"] for row in rows] for system, rows in systems(study, "protein")}
    assert found["xlora:shuffled"] != pytest.approx(found["xlora"], abs=1e-3)


def test_a_domain_without_an_expert_has_no_oracle(study):
    names = [system.name for system, _ in systems(study, "lncrna")]
    assert "xlora:oracle" not in names and "xlora" in names


def test_windows_of_a_record_are_one_row_with_the_mean_log_odds():
    rows = [{"id": "a"}, {"id": "b"}, {"id": "a"}]
    merged = answers.merge_windows(rows, [0.0, -1e9, 2.0])
    assert [row["id"] for row in merged] == ["a", "b"]
    assert merged[0]["p"] == pytest.approx(1 / (1 + torch.tensor(-1.0).exp().item()))
    assert merged[1]["p"] == pytest.approx(0.0, abs=1e-300)


def test_mixtures_of_the_same_experts_share_what_they_are_controlled_by(study, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "examples_by_split", lambda *_: {"test": questions()})
    trained = {0: made(study, "xlora", "weighted_merge", "oracle", "smora")}
    names = [system.names for system in predict.iterate_systems(study.base, "recsys", trained[0])]
    assert names[3:] == [
        *(tuple(f"{name}:{control}" for name in trained[0].mixtures) for control in ("uniform", "oracle")),
        ("xlora:shuffled",),
        *(("xlora",), ("weighted_merge",), ("oracle",)),
        ("smora:shuffled",),
        ("smora",),
    ]
    predict.predict_domain("recsys", None, TASK, study.base.folder, trained, (), Evaluation(), "cpu", tmp_path)
    rows = pq.read_table(tmp_path / "seed0.parquet").to_pylist()
    said = {name: [row["nll"] for row in rows if row["system"] == name] for names in names for name in names}
    assert said["smora:uniform"] == said["xlora:uniform"] == pytest.approx(said["weighted_merge"], abs=1e-4)
    assert said["weighted_merge:oracle"] == said["xlora:oracle"] == pytest.approx(said["oracle"], abs=1e-4)
    known = json.loads((tmp_path / "seed0.routing.json").read_text())
    assert [*known] == sorted(trained[0].mixtures)
    assert [known[name]["needs_domain"] for name in trained[0].mixtures] == [False, False, True, False]
    assert [known[name]["first_pass"] for name in trained[0].mixtures] == [True, False, False, False]
    spent = json.loads((tmp_path / "seed0.costs.json").read_text())
    assert spent.keys() == said.keys()
    assert all(each["read"] > 0 < each["reading"] for each in spent.values())


def test_predictions_and_routing_are_the_same_bytes_whenever_and_however_fast_they_are_made(
    study, tmp_path, monkeypatch
):
    monkeypatch.setattr(predict, "examples_by_split", lambda *_: {"test": questions()})
    clock = {"one": iter(range(10**6)), "two": iter(range(0, 10**9, 977))}
    for folder, ticks in clock.items():
        monkeypatch.setattr(answers, "perf_counter", lambda ticks=ticks: float(next(ticks)))
        trained = {0: made(study, "xlora")}
        predict.predict_domain(
            "recsys", None, TASK, study.base.folder, trained, (), Evaluation(), "cpu", tmp_path / folder
        )
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()} for folder in clock)
    assert {name for name in one if one[name] != two[name]} == {"seed0.costs.json"}


def test_a_mixture_that_must_be_told_the_domain_is_not_asked_of_others(study):
    names = [system.name for system, _ in systems(study, "lncrna", "oracle")]
    assert names == ["base", "lora@protein", "lora@recsys", "oracle:uniform"]


def test_stored_numbers_are_those_of_the_folder(study):
    for name in ("xlora", "weighted_merge"):
        [found] = [
            s.model for s in predict.iterate_systems(study.base, "recsys", made(study, name)) if s.kind == "mixture"
        ]
        files = study.mixtures[name].rglob("*.safetensors")
        numbers = sum(t.numel() for file in files for t in load_file(file).values())
        assert predict.mixture_facts(found)["stored"] == numbers > 0


def test_what_is_read_and_written_is_counted_without_padding(study):
    ask = questions()
    items = [study.base.encode(question) for question in ask]
    tokens = {"nll": sum(len(item.ids) for item in items)}
    tokens["choice"] = sum(label == -100 for item in items for label in item.labels)
    for output, expected in tokens.items():
        _, cost = answers.predict_examples(study.base, study.base.model, ask, (output,), TASK, Evaluation(), 0)
        assert (cost.read, cost.written) == (expected, 0) and cost.reading > 0 == cost.writing
    rows, cost = answers.predict_examples(study.base, study.base.model, ask, ("text",), TASK, Evaluation(), 0)
    written = sum(len(study.base.tokens(row["text"])) for row in rows)
    assert (cost.read, cost.written) == (0, written) and cost.writing > 0 == cost.reading
    assert cost + cost == answers.Cost(0, 0.0, 2 * written, 2 * cost.writing)


def test_letters_that_are_written_are_counted_one_by_one_and_samples_are_a_users_turn_where_the_task_is_a_chat(study):
    task = Protein(tokens="letters", chat=True, max_new_tokens=9)
    ask = domain_prompts("protein", [], 3, task, "causal")
    assert all(question.chat and question.alphabet for question in ask)
    ask = [replace(question, chat=False) for question in ask]  # this base has no template
    rows, cost = answers.predict_examples(study.base, study.base.model, ask, ("sample",), task, Evaluation(), 0)
    assert cost.written == sum(len(row["text"]) for row in rows) > 0


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A Whisper base whose decoder has 64 positions, and questions: one reference of many more tokens, one of 8."""
    root = tmp_path_factory.mktemp("clips")
    soundfile.write(root / "a.wav", np.sin(np.arange(8000) * 0.05) * 0.3, 16000)
    texts = {f"r{i}": "yes" for i in range(20)} | {"r3": "yes no " * 80, "r7": "yes no " * 4}
    ask = [Example(id, f"g{id}", "", text, audio=str(root / "a.wav")) for id, text in texts.items()]
    return whisper_base(root / "base"), ask


def test_a_reference_longer_than_can_be_written_is_named_counted_and_answered_like_any_other(
    clips, tmp_path, monkeypatch, capsys
):
    base, ask = clips
    monkeypatch.setattr(predict, "examples_by_split", lambda *_: {"test": ask})
    trained = {0: predict.TrainedModels({}, {})}
    predict.predict_domain("speech", None, TASK, base.folder, trained, (), Evaluation(), "cpu", tmp_path)
    rows = pq.read_table(tmp_path / "seed0.parquet").to_pylist()
    assert {row["id"] for row in rows if row["too_long"]} == {"r3", "r7"}
    assert {row["text"] for row in rows} == {rows[0]["text"]} and len(rows) == len(ask)  # of equal clips
    assert next(row for row in rows if row["id"] == "r3")["reference"] == ask[3].target
    lines = [line for line in capsys.readouterr().out.splitlines() if "scored without" in line]
    assert "base:r3: the example does not fit" in lines[0] and "base:r7: the reference is longer" in lines[1]
    assert count_too_long({"base": {0: rows}}) == 2


def test_references_that_are_mostly_longer_than_can_be_written_are_refused(clips):
    base, ask = clips
    with pytest.raises(InputError, match=r"r3: the example does not fit"):
        predict.list_too_long(base, "speech", "test", ask[:19], TASK, Decoding())
    scored = predict.list_too_long(base, "speech", "test", ask, TaskOptions(max_new_tokens=40), Decoding())
    assert scored == {"r3"}
    with pytest.raises(InputError, match=r"r3: the example does not fit"):
        answers.predict_examples(base, base.model, ask, ("nll",), TASK, Evaluation(), 0)


def test_steps_in_place_are_for_causal_models_on_a_gpu_whose_attention_is_full():
    llama = SimpleNamespace(config=SimpleNamespace(is_encoder_decoder=False, model_type="llama"))
    sliding = SimpleNamespace(config=SimpleNamespace(is_encoder_decoder=False, model_type="x", sliding_window=8))

    def steps(family, device, model):
        return answers.steps_in_place(SimpleNamespace(family=family, device=torch.device(device)), model)

    assert isinstance(steps("causal", "cuda", llama), StepsByShape)
    others = (("causal", "cpu", llama), ("whisper", "cuda", llama), ("causal", "cuda", sliding))
    assert [steps(*other) for other in others] == [None] * 3


def test_ranks_are_shuffled_by_an_experts_ranks():
    weights = torch.arange(6.0)
    shuffled = ShuffledMixer(
        inner=SimpleNamespace(routing_weights=lambda *_: weights, select_weights=lambda weights: weights)
    )
    sizes = GateShape(3, 4, ("q",), (4,), (6,))
    assert shuffled.select_weights(shuffled.routing_weights(None, GateInput(), sizes)).tolist() == [4, 5, 0, 1, 2, 3]


def test_only_gates_over_experts_that_were_given_are_shuffled():
    gate = torch.nn.Linear(1, 1)
    load = {name: registry.load_module("mixer", name).Mixer() for name in ("xlora", "arrow", "llava_mole", "uniform")}
    assert [can_shuffle(mixer, gate) for name, mixer in load.items() if name != "uniform"] == [True, True, False]
    assert not can_shuffle(load["uniform"], None)


def test_routing_shares_sum_to_one_and_know_prompt_from_answer(study):
    for system, _ in systems(study, "recsys"):
        if system.kind == "mixture":
            found = predict.routing_summary(study.base, system.model, questions(), Evaluation(batch_tokens=64))
    assert sum(found["weights"]) == pytest.approx(1)
    assert sum(found["prompt"]) == pytest.approx(1) and sum(found["target"]) == pytest.approx(1)
    assert 0 <= found["entropy"] <= 1 and 0 <= found["top1"] <= 1
    assert found["layers"] == list(system.model.layers) and len(found["modules"]) == len(found["layers"])


def test_a_single_expert_has_no_top1_and_no_entropy(study):
    for system in predict.iterate_systems(study.base, "recsys", made(study, "weighted_merge")):
        if system.kind == "mixture":
            found = predict.routing_summary(study.base, system.model, questions(), Evaluation(batch_tokens=64))
    assert (found["experts"], found["weights"], found["layers"]) == (["merged"], [1.0], ["all"])
    assert found["top1"] is None and found["entropy"] == 0


def test_the_oracle_routes_to_the_domains_own_expert(study):
    for system in predict.iterate_systems(study.base, "recsys", made(study, "oracle")):
        if system.kind == "mixture":
            found = predict.routing_summary(study.base, system.model, questions(), Evaluation(batch_tokens=64))
    assert (found["top1"], found["entropy"], found["weights"]) == (1.0, 0.0, [0.0, 1.0])


def test_entropies_are_of_shares():
    weights = torch.tensor([[2.0, 2.0], [0.0, 0.5], [0.0, 0.0]])
    torch.testing.assert_close(
        predict.weight_entropies(weights), torch.tensor([2.0, 1.0, 1.0]).log(), rtol=0, atol=1e-6
    )


@pytest.fixture(params=["encoder", "whisper"])
def unlike(request, tmp_path):
    """A base whose answers are not tokens of its input, questions to it, and where its adapters go."""
    if request.param == "encoder":
        ask = [Example(f"r{i}", "g", "acg tta " * (i + 1), CHOICES[0], CHOICES) for i in range(3)]
        return encoder_base(tmp_path / "base"), ask, ("query", "value")
    soundfile.write(tmp_path / "a.wav", np.sin(np.arange(8000) * 0.05) * 0.3, 16000)
    ask = [Example(f"r{i}", "g", "", "yes " * (i + 1), audio=str(tmp_path / "a.wav")) for i in range(3)]
    return whisper_base(tmp_path / "base"), ask, ("q_proj", "v_proj")


@pytest.mark.parametrize("kind", ["xlora", "uniform", "arrow"])
def test_routing_is_told_of_encoders_and_of_what_whispers_decoder_reads(unlike, kind):
    base, ask, targets = unlike
    experts = {n: trained_adapter(base.model, Method(rank=2, target_modules=targets), i) for i, n in enumerate("ab")}
    mixture = Mixture(base.model, experts, registry.load_module("mixer", kind).Mixer()).eval()
    mixture.domain = 0
    found = predict.routing_summary(base, mixture, ask, Evaluation(batch_tokens=500))
    items = [base.encode(question) for question in ask]
    is_whisper = int(base.family == "whisper")  # its decoder reads no token that nothing follows
    assert found["tokens"] == sum(len(item.ids) - is_whisper for item in items)
    assert sum(found["weights"]) == pytest.approx(1) == sum(found["prompt"])
    assert sum(found["target"]) == pytest.approx(is_whisper)


# --- mixers that weigh by user


def asked_about(group, *context):
    return Example(f"{group}{context[0][0]}", group, "", " yes", (" no", " yes"), context=context)


def test_the_other_users_past_comes_with_the_same_item():
    questions = [
        asked_about("u", (1, 0), (7, 50)),
        asked_about("u", (2, 0), (7, 50)),
        asked_about("v", (3, 0), (8, 10), (9, 20)),
    ]
    found = exchange_users(questions)
    assert [q.context for q in found] == [((1, 0), (8, 10), (9, 20)), ((2, 0), (8, 10), (9, 20)), ((3, 0), (7, 50))]
    assert [(q.id, q.group, q.target) for q in found] == [(q.id, q.group, q.target) for q in questions]
    assert exchange_users(questions[:2]) == questions[:2], "one user has no other"


@torch.no_grad()
def test_the_mean_user_is_the_mean_of_each_users_weights_whoever_asks():
    contexts = torch.tensor([[[1, 0], [7, 50]], [[2, 0], [8, 500]]])
    inner = RecLora(meta_loras=3)
    sizes = GateShape(3, 8, ("layer",), (8,), (6,))
    torch.manual_seed(0)
    gate = inner.build_gate(sizes).eval()
    gate["recommender"].note_items(contexts)
    own = inner.routing_weights(gate, GateInput(context=contexts), sizes)
    mean = MeanUserMixer(inner=inner, contexts=contexts).routing_weights(gate, GateInput(context=contexts[:1]), sizes)
    torch.testing.assert_close(mean, own.mean(0, keepdim=True))
    assert not torch.allclose(own[0], own[1])


def test_a_mixture_that_weighs_by_user_stands_beside_its_two_controls(study, tmp_path):
    mix(study.base, "reclora", {"recsys": study.folders["recsys"]}, tmp_path / "reclora")
    trained = predict.TrainedModels({}, {})
    trained.mixtures["reclora"] = tmp_path / "reclora"
    trained.adapters["lora@recsys"] = study.folders["recsys"]
    known = [replace(q, context=((i + 1, 0), (90 + i % 3, 50 * i))) for i, q in enumerate(questions())]
    rows = {}
    for system in predict.iterate_systems(study.base, "recsys", trained, known):
        rows[system.names] = predict.run_system(study.base, "recsys", system, "test", known, TASK, Evaluation(), 0)[0]
    assert [*rows][2:] == [
        *(("reclora:uniform",), ("reclora:oracle",), ("reclora:other_user",), ("reclora:mean_user",), ("reclora",))
    ]
    assert {row["kind"] for row in rows[("reclora:mean_user",)]} == {"control"}
    own, other, mean = ([row["p"] for row in rows[(f"reclora{c}",)]] for c in ("", ":other_user", ":mean_user"))
    assert own == pytest.approx(mean) and own == pytest.approx(other), "fresh experts change nothing, whoever asks"
