"""Trainings that share their passes learn what each learns alone."""

import sys

import numpy as np
import pytest
import soundfile
import torch
from models import causal_base, encoder_base, whisper_base

from loratory.adapters import core
from loratory.adapters.stack import StackedLinear, are_alike, stack_adapters, stack_refusal
from loratory.config import adapter_entry
from loratory.domains.contract import Example
from loratory.training import encoding, sweep, together
from loratory.training.job import Job

PAIRS = [(0, 0.02), (0, 0.005), (1, 0.02), (2, 0.01)]
TEXTS = ["yes", "the user likes it very much", "no no no", "to text and back again", "like", "the the", "speech"]


def causal(folder):
    base = causal_base(folder / "base", ears=False)
    return base, [base.encode(Example(text, text, "say", text)) for text in TEXTS]


def whisper(folder):
    base = whisper_base(folder / "base")
    items = []
    for number, text in enumerate(TEXTS):
        clip = folder / f"{number}.flac"
        soundfile.write(clip, np.sin(np.arange(4000 + 1600 * number) / (3 + number)), 16000)
        items.append(base.encode(Example(text, text, "", text, audio=str(clip))))
    return base, items


def entry_of(method="lora", count=4, **options):
    training = {"steps": 6, "batch_tokens": 40, "learning_rates": [0.01], "save_every": 2, "together": count}
    return adapter_entry({"method": method, **options, "training": training})


def train_all(base, items, entry, folder):
    jobs = {pair: Job("cpu", folder, f"seed {pair[0]} lr {pair[1]}") for pair in PAIRS}
    return sweep.train_alongside(base, {"train": items, "valid": items}, entry, jobs)


LOOKS = {"steps": 8, "validate_every": 2, "patience": 2, "gradient_checkpointing": True}


@pytest.mark.parametrize("make", [causal, whisper])
@pytest.mark.parametrize(
    "options",
    [{"gradient_accumulation_steps": 2, "clip": 0.05}, LOOKS],
    ids=["accumulated and clipped", "looks"],
)
def test_runs_that_share_their_passes_learn_what_each_learns_alone(make, options, tmp_path):
    base, items = make(tmp_path)
    entry = entry_of()
    entry = entry.model_copy(update={"training": entry.training.model_copy(update=options)})
    shared = train_all(base, items, entry, tmp_path / "shared")
    assert [*shared] == PAIRS
    for pair, found in shared.items():
        alone = sweep.train_one(
            base, {"train": items, "valid": items}, entry, *pair, Job("cpu", tmp_path / "alone", str(pair))
        )
        for one, other in zip(found["curve"], alone["curve"], strict=True):
            assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
            assert one.get("valid_loss") == pytest.approx(other.get("valid_loss"), abs=1e-5)
            assert one.keys() == other.keys()
            assert all(one[key] == other[key] for key in ("targets", "positions", "scheduled_rate"))
        assert found["valid_loss"] == pytest.approx(alone["valid_loss"], abs=1e-5)
        for name, delta in alone["adapter"].deltas.items():
            torch.testing.assert_close(found["adapter"].deltas[name].B, delta.B, atol=1e-5, rtol=1e-3)
            torch.testing.assert_close(found["adapter"].deltas[name].A, delta.A, atol=1e-5, rtol=1e-3)
        same = {
            "num_trainable_params",
            "optimizer_state",
            "positions",
            "flops",
            "adapted_modules",
            "best_step",
            "steps",
        }
        assert {key: found[key] for key in same} == {key: alone[key] for key in same}


def test_a_killed_sweep_goes_on_where_each_run_was_saved(tmp_path, monkeypatch):
    base, items = causal(tmp_path)
    entry = entry_of()
    whole = train_all(base, items, entry, tmp_path / "whole")
    save, calls = together.Run.save, []

    def save_then_die(run, step):
        save(run, step)
        calls.append(step)
        if len(calls) == 6:  # two of the four runs are saved behind the fourth step, two behind the second
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(together.Run, "save", save_then_die)
        train_all(base, items, entry, tmp_path / "killed")
    resumed = train_all(base, items, entry, tmp_path / "killed")
    for pair, found in resumed.items():
        assert [point["step"] for point in found["curve"]] == [*range(6)]
        assert found["curve"][-1]["loss"] == pytest.approx(whole[pair]["curve"][-1]["loss"], abs=1e-5)
        for name, delta in whole[pair]["adapter"].deltas.items():
            torch.testing.assert_close(found["adapter"].deltas[name].B, delta.B, atol=1e-5, rtol=1e-3)


def test_a_run_that_diverges_takes_no_other_along(tmp_path, monkeypatch):
    base, items = causal(tmp_path)
    monkeypatch.setattr(sys.modules[__name__], "PAIRS", [(0, 0.01), (0, 1e30), (1, 0.01)])
    entry = entry_of()
    found = train_all(base, items, entry, tmp_path / "shared")
    assert "the loss is nan at step" in str(found.pop((0, 1e30)))
    for pair, outcome in found.items():
        alone = sweep.train_one(
            base, {"train": items, "valid": items}, entry, *pair, Job("cpu", tmp_path / "alone", str(pair))
        )
        assert outcome["valid_loss"] == pytest.approx(alone["valid_loss"], abs=1e-5)


def test_an_adapters_own_tensors_are_views_of_the_stack(tmp_path):
    base, _ = causal(tmp_path)
    entry, runs = entry_of(), []
    for seed in (0, 1):
        runs.append(core.attach(base.model, entry, seed))
        core.detach(base.model)
    assert are_alike(runs)
    with stack_adapters(base.model, runs) as stacked:
        for layer in stacked:
            for at, run in enumerate(layer.runs):
                assert run.adapter["A"].data_ptr() == layer.adapter["A"][at].data_ptr()
    assert not any(isinstance(module, StackedLinear) for module in base.model.modules())


@pytest.mark.parametrize(
    ("method", "options", "reason"),
    [
        ("adalora", {}, "step_penalty of its own"),
        ("dora", {}, "layer_output of its own"),
        ("bitfit", {}, "trained_weights of its own"),
        ("lora", {"dropout": 0.1}, "dropout"),
        ("lora", {}, ""),
        ("pissa", {}, ""),
    ],
)
def test_what_cannot_share_passes_is_refused_by_its_reason(method, options, reason, tmp_path):
    base, _ = causal(tmp_path)
    found = stack_refusal(base, entry_of(method, **options))
    assert (reason in found) if reason else not found


def test_adapters_of_unequal_shapes_are_trained_in_turn(tmp_path, capsys, monkeypatch):
    base, items = causal(tmp_path)
    attach = core.attach

    def attach_unequally(model, entry, seed, heads=()):
        return attach(model, entry.model_copy(update={"rank": 2 + seed}), seed, heads)

    monkeypatch.setattr(core, "attach", attach_unequally)
    assert train_all(base, items, entry_of(), tmp_path / "shared") == {}
    assert "unequal shapes" in capsys.readouterr().out


def test_a_base_with_a_head_or_dropout_shares_no_passes(tmp_path):
    assert "head" in stack_refusal(encoder_base(tmp_path / "encoder"), entry_of())
    base, _ = causal(tmp_path)
    base.model.config.attention_dropout = 0.1
    assert "dropout" in stack_refusal(base, entry_of())


def test_each_run_ends_when_its_own_loss_falls_no_more(tmp_path, monkeypatch):
    """The first run's loss on valid rises from its second look on, the others' falls."""
    base, items = causal(tmp_path)
    entry, stacks, looks = entry_of(), [], []
    entry = entry.model_copy(update={"training": entry.training.model_copy(update=LOOKS | {"patience": 1})})
    stack, look = together.stack_adapters, sweep.mean_loss

    def note_stack(model, runs):
        stacks.append(len(runs))
        return stack(model, runs)

    def mean_loss(*given):
        loss, first = look(*given), len(looks) % (4 if len(looks) < 8 else 3) == 0 and len(looks) < 8
        looks.append(loss)
        return float(len(looks)) if first else loss

    monkeypatch.setattr(together, "stack_adapters", note_stack)
    monkeypatch.setattr(sweep, "mean_loss", mean_loss)
    found = train_all(base, items, entry, tmp_path / "shared")
    assert stacks[:3] == [4, 4, 3]
    first, *others = found.values()
    assert (first["steps"], first["best_step"], first["valid_loss"]) == (4, 1, 1.0)
    assert all(len(each["curve"]) > 4 and each["valid_loss"] < first["valid_loss"] * 9 for each in others)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "a CPU gains nothing"),
        ({"micro_batch_tokens": 20}, "in parts"),
        ({"processes": 2, "gradient_accumulation_steps": 2}, "processes share"),
        ({"together": 1}, ""),
    ],
)
def test_what_trains_in_turn_says_why(options, reason, tmp_path, capsys):
    base, items = causal(tmp_path)
    entry = entry_of()
    entry = entry.model_copy(update={"training": entry.training.model_copy(update=options)})
    if set(options) - {"together"}:
        base.model.to("meta")  # no CPU
    assert sweep.runs_together(base, entry, items) == 1
    told = capsys.readouterr().out
    assert f"one after the other: {reason}" in told or reason in told if reason else not told


def test_a_split_that_is_read_in_rounds_is_learnt_from_in_turn(tmp_path):
    base, _ = causal(tmp_path)
    base.model.to("meta")
    drawn = object.__new__(encoding.DrawnExamples)
    assert "rounds" in sweep.together_refusal(base, entry_of(), drawn)
