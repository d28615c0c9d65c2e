"""Processes that share a training make the steps that one alone makes, and end together."""

import os
import signal
from functools import partial

import pytest
import torch
from models import causal_base
from pydantic import ValidationError

from loratory.config import adapter_entry
from loratory.data.files import read_json, write_json
from loratory.domains.contract import Example
from loratory.errors import InputError
from loratory.training import sweep
from loratory.training.job import Job
from loratory.training.launch import run_processes
from loratory.training.processes import is_main_process, process_index
from loratory.training.schedule import AdapterSweep
from loratory.training.sharding import load_shared_base

TEXTS = ["yes", "the user likes it very much", "no no no", "to text and back again", "like", "the the", "speech"]
TRAINING = {
    "steps": 6,
    "batch_tokens": 40,
    "gradient_accumulation_steps": 2,
    "learning_rates": [0.01],
    "save_every": 2,
}


def train(folder, name, kill_at, method, options):
    """What each process does; the first writes the curve and the adapter."""
    load = load_shared_base if options.get("sharding") == "fsdp" else sweep.load_base
    base = load(folder / "base", "cpu")
    items = [base.encode(Example(text, text, "say", text)) for text in TEXTS]
    entry = adapter_entry({"method": method, "training": TRAINING | options})

    class Session(sweep.AdapterSession):
        def before_step(self, step):
            if step == kill_at and process_index() == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            super().before_step(step)

    before, sweep.AdapterSession = sweep.AdapterSession, Session
    try:
        job = Job("cpu", folder / f"checkpoints of {name}", "shared")
        found = sweep.train_one(base, {"train": items, "valid": items}, entry, 0, 0.01, job)
    finally:
        sweep.AdapterSession = before
    if is_main_process():
        deltas = {layer: [delta.A.tolist(), delta.B.tolist()] for layer, delta in found["adapter"].deltas.items()}
        write_json(folder / f"{name}.json", {"curve": found["curve"], "deltas": deltas, "best": found["best_step"]})


def outcome(folder, name, processes=1, kill_at=None, method="lora", **options):
    given = (folder, name, kill_at, method, options | {"processes": processes})
    run_processes(processes, "cpu", partial(train, *given))
    return read_json(folder / f"{name}.json")


def assert_alike(one, other) -> None:
    for point, twin in zip(one["curve"], other["curve"], strict=True):
        assert point["loss"] == pytest.approx(twin["loss"], abs=1e-5)
        assert point.get("valid_loss") == pytest.approx(twin.get("valid_loss"), abs=1e-5)
        assert [point[key] for key in ("targets", "positions")] == [twin[key] for key in ("targets", "positions")]
    assert one["deltas"].keys() == other["deltas"].keys() and one["best"] == other["best"]
    for name, tensors in one["deltas"].items():
        for tensor, twin in zip(tensors, other["deltas"][name], strict=True):
            torch.testing.assert_close(torch.tensor(tensor), torch.tensor(twin), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("lora", {}),
        ("lora", {"micro_batch_tokens": 20, "validate_every": 2, "patience": 2, "gradient_checkpointing": True}),
        ("increlora", {}),
        ("lora", {"sharding": "fsdp", "validate_every": 3}),
    ],
    ids=["plain", "parts, looks, recomputed", "sums of its own", "fsdp"],
)
def test_two_processes_learn_what_one_learns(method, options, tmp_path):
    causal_base(tmp_path / "base", ears=False)
    shared = outcome(tmp_path, "shared", 2, method=method, **options)
    assert_alike(shared, outcome(tmp_path, "alone", 1, method=method, **options | {"sharding": "none"}))


def test_where_one_is_killed_all_end_and_the_training_goes_on_to_the_same(tmp_path):
    causal_base(tmp_path / "base", ears=False)
    whole = outcome(tmp_path, "whole", 2)
    with pytest.raises(InputError, match=r"process 1 of 2: it was killed \(SIGKILL\)") as caught:
        outcome(tmp_path, "parts", 2, kill_at=3)
    assert caught.value.reason == "killed" and not (tmp_path / "parts.json").exists()
    assert_alike(outcome(tmp_path, "parts", 2), whole)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            {"gradient_accumulation_steps": 3, "processes": 2},
            "expected `gradient_accumulation_steps` to be a multiple",
        ),
        ({"sharding": "fsdp"}, "expected `processes` with `sharding: fsdp`"),
        (
            {"sharding": "fsdp", "processes": 2, "gradient_accumulation_steps": 2, "micro_batch_tokens": 9},
            "expected no `micro_batch_tokens`",
        ),
    ],
)
def test_what_cannot_be_shared_is_refused_with_the_config(options, line):
    with pytest.raises(ValidationError, match=line):
        AdapterSweep(**options)
