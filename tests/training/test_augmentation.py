"""Augmentation: drawn by (seed, batch, clip), only while an adapter learns, and the same once a run is resumed."""

from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from models import causal_base, whisper_base
from pydantic import ValidationError

from loratory.adapters.methods.lora import Method
from loratory.bases.families import whisper as whisper_family
from loratory.config import adapter_entry
from loratory.data.audio import RATE
from loratory.data.clips import Clip, is_changed
from loratory.domains.contract import Example
from loratory.training import sweep
from loratory.training.augmentation import Augmentation
from loratory.training.job import Job
from loratory.training.schedule import Training
from loratory.training.session import AdapterSession

ALL = {"speed": [0.9, 1.0, 1.1], "pitch": 2, "vtlp": [0.9, 1.1], "noise": [5, 20], "spec_augment": {}}
BASES = {"causal": causal_base, "whisper": whisper_base}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return {name: make(tmp_path_factory.mktemp("bases") / name) for name, make in BASES.items()}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("clips"), []
    for i, seconds in enumerate((0.5, 0.8, 0.95, 1.3)):
        tone = 0.3 * np.sin(np.arange(int(RATE * seconds)) * (0.05 + 0.02 * i))
        soundfile.write(folder / f"{i}.flac", tone, RATE)
        found.append(Clip(str(folder / f"{i}.flac"), seconds=len(tone) / RATE))
    return found


def encoded(base, clips):
    prompt = "transcribe" if base.family == "causal" else ""
    return [base.encode(Example(str(i), str(i), prompt, " yes no"[: 4 + i % 2], audio=c)) for i, c in enumerate(clips)]


def trained(base, clips, folder, **training):
    recipe = {"steps": 4, "batch_tokens": 250, "learning_rates": [0.01], "save_every": 2} | training
    entry = adapter_entry({"method": "lora", "training": recipe})
    sets = {"train": encoded(base, clips[:3]), "valid": encoded(base, clips[2:])}
    return sweep.train_one(base, sets, entry, 0, 0.01, Job("cpu", folder, "toy"))


def weights(trial) -> torch.Tensor:
    return torch.cat([delta.B.flatten() for delta in trial["adapter"].deltas.values()])


# what is drawn


def test_a_change_is_a_function_of_seed_batch_and_clip(clips):
    augmentation = Augmentation(**ALL)
    first = augmentation.draw_change(clips[0], 30, 1, 2)
    assert first == augmentation.draw_change(clips[0], 30, 1, 2) == Augmentation(**ALL).draw_change(clips[0], 30, 1, 2)
    others = [augmentation.draw_change(*given) for given in ((clips[0], 30, 1, 3), (clips[0], 30, 2, 2))]
    others += [augmentation.draw_change(clip, 30, 1, 2) for clip in (clips[1], replace(clips[0], start=0.1))]
    assert len({first.seed, *(change.seed for change in others)}) == 5


def test_changes_keep_to_their_ranges_and_fill_them(clips):
    augmentation = Augmentation(**ALL)
    changes = [augmentation.draw_change(clips[0], 30, 0, number) for number in range(300)]
    assert {change.speed for change in changes} == {0.9, 1.0, 1.1}
    for values, low, high in (
        ([change.semitones for change in changes], -2, 2),
        ([change.warp for change in changes], 0.9, 1.1),
        ([change.noise for change in changes], 5, 20),
    ):
        edge = 0.02 * (high - low)
        assert low <= min(values) < low + edge and high - edge < max(values) <= high


def test_one_kind_more_leaves_the_others_as_they_are(clips):
    some, more = Augmentation(pitch=2), Augmentation(pitch=2, noise=(5, 20), speed=(0.9, 1.1))
    for number in range(20):
        one, other = (each.draw_change(clips[0], 30, 0, number) for each in (some, more))
        assert one.semitones == other.semitones and one.noise is None and one.speed == 1


def test_a_share_of_the_clips_is_changed_and_each_kind_by_itself(clips):
    augmentation = Augmentation(pitch=2, noise=(5, 20), share=0.25)
    changes = [augmentation.draw_change(clips[0], 30, 0, number) for number in range(400)]
    moved, noisy = ([bool(c.semitones) for c in changes], [c.noise is not None for c in changes])
    assert 70 < sum(moved) < 130 and 70 < sum(noisy) < 130
    assert 10 < sum(map(all, zip(moved, noisy))) < 45


def test_no_speed_makes_a_clip_longer_than_the_base_reads(clips):
    augmentation = Augmentation(speed=(0.5, 0.8, 1.1))
    speeds = {augmentation.draw_change(clips[3], 2.0, 0, number).speed for number in range(50)}
    assert speeds == {0.8, 1.1}, "1.3 s at half the speed are 2.6 s"
    tight = Augmentation(speed=(0.5, 0.8))
    assert {tight.draw_change(clips[3], 1.4, 0, number).speed for number in range(9)} == {1.0}


@pytest.mark.parametrize(
    "given",
    [
        *({}, {"share": 0.5}, {"speed": [0.0]}, {"speed": [3]}, {"pitch": -1}, {"vtlp": [1.1, 0.9]}, {"vtlp": [1]}),
        *({"noise": [20, 5]}, {"tempo": 1.1}, {"spec_augment": {"bands": -1}}, {"pitch": 1, "share": 0}),
    ],
)
def test_an_augmentation_that_is_none_is_refused_with_the_config(given):
    with pytest.raises(ValidationError):
        Augmentation(**given)


# what is learnt from


@pytest.mark.parametrize("family", BASES)
def test_batches_are_made_of_changed_clips_and_keep_to_the_budget(family, bases, clips):
    base, budget = bases[family], 2 * max(item.length for item in encoded(bases[family], clips[:3]))
    recipe = Training(steps=6, batch_tokens=budget)
    session = AdapterSession(base, Method(), {}, encoded(base, clips[:3]), recipe, 0, Augmentation(speed=(0.8, 1.25)))
    still = AdapterSession(base, None, {}, session.items, recipe, 0)
    sound = "features" if family == "whisper" else "audio_states"
    assert not torch.equal(session.batch(0)[sound], still.batch(0)[sound])
    for number in range(6):
        one, again = session.batch(number), session.batch(number)
        assert all(torch.equal(one[name], again[name]) for name in one)
    positions = [micro.positions for number in range(6) for micro in session.collate_step(session.read_step(number))]
    assert max(positions) <= budget
    if family == "causal":
        assert positions == [session.batch(number)["ids"].numel() for number in range(6)]
        slow = {still.batch(number)["ids"].numel() for number in range(6)}
        assert {*positions} != slow, "a faster clip has fewer positions"


def test_a_clip_that_another_takes_the_place_of_is_encoded_as_that_one(bases, clips):
    for base in bases.values():
        first, other = encoded(base, clips[:2])
        moved = base.replace_clip(first, other.audio)
        assert (len(moved.ids), moved.audio_tokens) == (len(other.ids) - 1, other.audio_tokens), "a letter less"
        assert moved.length == len(moved.labels) + other.length - len(other.labels)
        assert base.replace_clip(moved, first.audio) == first
        assert base.longest_clip(first) == 2.0


@pytest.mark.parametrize("family", BASES)
def test_a_training_that_is_killed_and_resumed_sees_what_it_would_have_seen(
    family, bases, clips, tmp_path, kill_in_step
):
    options = {"augmentation": ALL}
    whole = trained(bases[family], clips, tmp_path / "whole", **options)
    kill_in_step(4, lambda: trained(bases[family], clips, tmp_path / "parts", **options))
    np.random.default_rng()
    np.random.seed(5)
    resumed = trained(bases[family], clips, tmp_path / "parts", **options)
    assert torch.equal(weights(resumed), weights(whole))
    assert [point["loss"] for point in resumed["curve"]] == [point["loss"] for point in whole["curve"]]
    plain = trained(bases[family], clips, tmp_path / "plain")
    assert not torch.equal(weights(plain), weights(whole)) and plain["curve"][0]["loss"] != whole["curve"][0]["loss"]


def test_valid_and_test_never_see_a_changed_clip(bases, clips, tmp_path, monkeypatch):
    base, seen = bases["whisper"], {"train": [], "other": []}

    def record_training(items, draw, collate=base.collate):
        seen["train"] += [item.audio for item in items]
        return collate(items)

    def record_others(items, collate=base.collate):
        seen["other"] += [item.audio for item in items]
        return collate(items)

    monkeypatch.setattr(base, "training_batch", record_training)
    monkeypatch.setattr(base, "collate", record_others)
    trained(base, clips, tmp_path, augmentation={"pitch": 2})
    assert all(map(is_changed, seen["train"])) and len(seen["train"]) >= 4
    assert seen["other"] and not any(map(is_changed, seen["other"]))


def test_augmentation_is_off_unless_it_is_asked_for(bases, clips, tmp_path, monkeypatch):
    assert adapter_entry({"method": "lora"}).training.augmentation is None
    monkeypatch.setattr(whisper_family, "clip_features", None)
    trained(bases["whisper"], clips, tmp_path)
