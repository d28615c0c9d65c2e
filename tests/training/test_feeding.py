"""Batches are made ahead of a training: the same ones, of examples that are encoded when they are wanted."""

import os
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from models import causal_base
from studies import as_records

from loratory.config import adapter_entry
from loratory.data.batching import Batches
from loratory.domains.contract import Example
from loratory.errors import InputError
from loratory.training import encoding, feeding, sweep
from loratory.training.encoding import DrawnExamples, EncodedExamples, example_lengths, round_lengths
from loratory.training.feeding import Feed, RoundSizes, steps_ahead
from loratory.training.fit import MicroBatch
from loratory.training.job import Job
from loratory.training.schedule import Training

WORDS = ("will the user like it", "no", "acg tta gca", "coding", "yes yes yes", "text to text", "speech")
RECORDS = [{"id": f"{n:03d}", "group": "g", "text": f"{WORDS[n % 7]} {'acg ' * (n % 5)}"} for n in range(60)]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return causal_base(tmp_path_factory.mktemp("bases") / "base", ears=False)


@pytest.fixture
def data(monkeypatch, tmp_path):
    """Records of an example, or of two where their number is odd; `encoded` are those that were encoded here."""
    encoded = []

    def domain_examples(domain, records, task, family):
        encoded.extend(record["id"] for record in records)
        return [
            Example(f"{r['id']}", "g", r["text"], target)
            for r in records
            for target in ("yes", "no")[: 1 + int(r["id"]) % 2]
        ]

    monkeypatch.setattr(encoding, "domain_examples", domain_examples)
    monkeypatch.setattr(sweep, "open_split", lambda folder, split: as_records(RECORDS))
    return SimpleNamespace(encoded=encoded, folder=tmp_path)


def trained(base, data, name, steps=8, **training):
    """A training on what `training_split` gives; (its weights, its losses)."""
    recipe = {"steps": steps, "batch_tokens": 96, "learning_rates": [0.01], "save_every": 2, **training}
    entry = adapter_entry({"method": "lora", "dropout": 0.1, "training": recipe})
    sets = {"train": sweep.training_split(base, "toy", "", None, "train"), "valid": [base.encode(EXAMPLE)]}
    trial = sweep.train_one(base, sets, entry, 0, 0.01, Job("cpu", data.folder / name, "toy"))
    weights = torch.cat([delta.B.flatten() for delta in trial["adapter"].deltas.values()])
    return weights, [point["loss"] for point in trial["curve"]], trial


EXAMPLE = Example("0", "g", "will the user like it", "yes")


def test_a_training_in_whose_process_nothing_is_encoded_learns_bit_for_bit_what_it_learns_in_one(
    base, data, monkeypatch
):
    here = trained(base, data, "here")
    monkeypatch.setattr(encoding, "KEPT", 0)
    split = sweep.training_split(base, "toy", "", None, "train")
    data.encoded.clear()
    monkeypatch.setattr(sweep, "training_split", lambda *_: split)
    apart = trained(base, data, "apart")
    assert torch.equal(here[0], apart[0]) and here[1] == apart[1]
    assert len(data.encoded) <= 2 * 5, "but for the batch whose operations are counted"


@pytest.mark.parametrize("drawn", [False, True], ids=["whole", "in rounds"])
def test_a_training_that_was_killed_beside_the_process_that_reads_for_it_goes_on_bit_for_bit(
    base, data, monkeypatch, kill_in_step, drawn
):
    monkeypatch.setattr(encoding, "KEPT", 0)
    monkeypatch.setattr(encoding, "ROUND", 9 if drawn else 100)
    whole = trained(base, data, "whole")
    kill_in_step(6, lambda: trained(base, data, "parts"))
    resumed = trained(base, data, "parts")
    assert torch.equal(whole[0], resumed[0]) and whole[1] == resumed[1]


def test_every_record_of_a_large_split_is_drawn_once_before_one_comes_again(base, data, monkeypatch):
    monkeypatch.setattr(encoding, "ROUND", 16)
    drawn = sweep.training_split(base, "toy", "", None, "train")
    assert isinstance(drawn, DrawnExamples) and len(drawn) == 60 and drawn.parts == 4
    epochs = [[{r["id"] for r in drawn.round(3, 4 * epoch + part).records} for part in range(4)] for epoch in (0, 1)]
    for parts in epochs:
        assert all(len(part) == 15 for part in parts) and len(set.union(*parts)) == 60
    assert epochs[0] != epochs[1] and [*drawn.round(4, 0).records] != [*drawn.round(3, 0).records]


def test_a_split_of_one_round_has_the_batches_that_it_has_whole(base, data, monkeypatch):
    whole = sweep.training_split(base, "toy", "", None, "train")
    assert isinstance(whole, EncodedExamples)
    monkeypatch.setattr(encoding, "ROUND", len(RECORDS))
    drawn = DrawnExamples(base, "toy", as_records(RECORDS), None)
    plans = [Batches(round_lengths(each, 5, example_lengths), 64, 5) for each in (whole, drawn)]
    assert all(plans[0](step) == plans[1](step) for step in range(3 * plans[0].epoch_size(0)))


def test_no_more_is_encoded_before_a_training_than_its_first_round(base, data, monkeypatch):
    monkeypatch.setattr(encoding, "ROUND", 10)
    drawn = sweep.training_split(base, "toy", "", None, "train")
    assert not data.encoded
    plan = Batches(round_lengths(drawn, 0, example_lengths), 64, 0)
    plan(0)
    assert len({*data.encoded}) == 10


def test_a_training_that_goes_on_encodes_no_round_that_lies_behind_it(base, data, monkeypatch, tmp_path):
    monkeypatch.setattr(encoding, "ROUND", 10)
    drawn, path = DrawnExamples(base, "toy", as_records(RECORDS), None), tmp_path / "job" / "rounds.json"
    lengths = round_lengths(drawn, 0, example_lengths)
    before = Batches(lengths, 64, 0, RoundSizes(path))
    late = sum(map(before.epoch_size, range(4)))
    expected = before(late)
    drawn.round.cache_clear()
    data.encoded.clear()
    assert Batches(lengths, 64, 0, RoundSizes(path))(late) == expected
    assert {*data.encoded} == {record["id"] for record in drawn.round(0, 4).records}


def test_what_cannot_be_encoded_ends_a_training_with_its_own_error():
    def read(step):
        if step == 2:
            raise InputError("data:7", "the example is none", 7, "one", reason="odd")
        return step

    with Feed(read, lambda step: [MicroBatch("t", {"step": step})], 9, ahead=4) as feed:
        assert [feed(step)[0].batch["step"] for step in (0, 1)] == [0, 1]
        with pytest.raises(InputError, match=r"data:7: the example is none \(7\); expected one") as raised:
            feed(2)
    assert raised.value.reason == "odd"


@pytest.mark.parametrize("ahead", [0, 3])
def test_a_feed_draws_no_number_of_the_training_and_begins_at_any_step(ahead):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with Feed(lambda step: step, lambda step: [MicroBatch("t", {"step": step})], 12, ahead) as feed:
        assert [feed(step)[0].batch["step"] for step in (7, 8, 3, 4, 11)] == [7, 8, 3, 4, 11]
    assert torch.equal(torch.get_rng_state(), before)


def test_examples_are_read_in_another_process_which_outlives_a_signal_to_all():
    with Feed(lambda step: os.getpid(), lambda pid: [MicroBatch("t", {"pid": pid})], 300, ahead=2) as feed:
        reader = feed(0)[0].batch["pid"]
        assert reader != os.getpid()
        os.kill(reader, signal.SIGTERM)
        os.kill(reader, signal.SIGINT)
        assert {feed(step)[0].batch["pid"] for step in range(1, 300)} == {reader}
    for _ in range(100):  # gone with the feed
        try:
            os.kill(reader, 0)
        except ProcessLookupError:
            break
        time.sleep(0.05)
    else:
        pytest.fail("the process is still there")


def test_reading_ahead_is_bounded_by_what_may_be_kept(base, data, monkeypatch):
    monkeypatch.setattr(feeding, "KEPT", 1000)
    recipe = Training(batch_tokens=50, gradient_accumulation_steps=2)
    kept = sweep.training_split(base, "toy", "", None, "train")
    assert steps_ahead([kept, [base.encode(EXAMPLE)]], recipe) == 0
    monkeypatch.setattr(encoding, "ROUND", 10)
    drawn = sweep.training_split(base, "toy", "", None, "train")
    assert steps_ahead([drawn], recipe) == 10 and steps_ahead([drawn, kept], recipe) == 5
    assert steps_ahead([drawn], Training(batch_tokens=9999)) == 2


def test_the_share_of_the_time_that_was_waited_is_told(base, data, capsys):
    *_, trial = trained(base, data, "told", steps=3)
    assert "of it waiting for batches" in capsys.readouterr().out
    assert 0 <= trial["data_wait_time"] <= trial["train_time"]
    assert trial["positions"] == sum(point["positions"] for point in trial["curve"])
    assert np.isfinite(trial["flops"])
