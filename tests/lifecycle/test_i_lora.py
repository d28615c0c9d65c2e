"""I-LoRA and what it is compared with: what holds by the formulas, on a tiny model."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from families import FAMILIES
from scipy.stats import chi2

from loratory.adapters import core
from loratory.config import adapter_entry
from loratory.lifecycle import sequence
from loratory.lifecycle.procedures.i_lora import Procedure
from loratory.lifecycle.room import Room
from loratory.training.job import Job

DOMAINS = ("first", "second")


@pytest.fixture
def train(tmp_path):
    """(kind of training, its options) -> {arm: its adapter's tensors}, and the training itself."""

    def run(kind, *options, steps=3, family="llama"):
        base = FAMILIES[family]()
        schedule = {"steps": steps, "batch_tokens": 24, "learning_rates": [0.05], "save_every": 0}
        adapter = adapter_entry({"method": "lora", "rank": 2, "training": schedule})
        items = dict(zip(DOMAINS, (base.items[:2], base.items[2:])))
        job = lambda title: Job("cpu", tmp_path, title)  # noqa: E731
        room = Room("turn", base, adapter, 0, {}, {}, job, lambda domain, split: items[domain])
        training, found = kind("it", room, DOMAINS, *options), {}
        for arm in training.iterate_arms():
            found[arm.name] = {n: p.detach().clone() for n, p in core.trainable_parameters(arm.model).items()}
            training.kept = {n: t.clone() for n, t in getattr(training, "slow", {}).items()}
        training.base = base
        return found, training

    return run


def largest_difference(some: dict, others: dict) -> float:
    return max(float((some[name] - others[name]).detach().abs().max()) for name in some)


def test_the_slow_adapter_is_the_weighted_sum_of_all_that_the_fast_one_was(train, monkeypatch):
    seen = []
    step = sequence.SlowSession.after_step

    def note(self, number):
        seen.append({name: p.detach().clone() for name, p in self.fast.items()})
        step(self, number)

    monkeypatch.setattr(sequence.SlowSession, "after_step", note)
    found, training = train(sequence.SlowTraining, 2, 0.7, 1.0, steps=2)
    started = {n: p.detach() for n, p in fresh_parameters(training).items()}
    times = len(seen)
    for name, start in started.items():
        expected = 0.7**times * start + 0.3 * sum(0.7 ** (times - 1 - t) * seen[t][name] for t in range(times))
        torch.testing.assert_close(found["it"][name], expected, atol=1e-6, rtol=1e-5)
    assert largest_difference(found["it"], seen[-1]) > 1e-3, "slow and fast differ"


def fresh_parameters(training) -> dict:
    core.attach(training.base.model, training.room.method, training.room.seed, training.base.heads)
    found = {name: p.clone() for name, p in core.trainable_parameters(training.base.model).items()}
    core.detach(training.base.model)
    return found


def test_a_share_of_nothing_keeps_up_and_a_share_of_all_stays(train):
    fast, _ = train(sequence.ReplayTraining, 2)
    follows, _ = train(sequence.SlowTraining, 2, 0.0, 0.0)
    assert largest_difference(follows["it"], fast["it"]) < 1e-6
    stays, training = train(sequence.SlowTraining, 2, 1.0, 0.0)
    assert largest_difference(stays["it"], fresh_parameters(training)) == 0


def test_without_memory_and_consistency_the_fast_adapter_learns_as_a_plain_one(train):
    plain, _ = train(sequence.SequentialTraining)
    own, _ = train(sequence.SlowTraining, 0, 0.0, 0.0)
    assert largest_difference(own["it"], plain["it"]) < 1e-6
    assert largest_difference(own["it:after_1"], plain["it:after_1"]) < 1e-6
    remembered, _ = train(sequence.ReplayTraining, 2)
    assert largest_difference(remembered["it"], plain["it"]) > 1e-3, "replay does something"
    assert largest_difference(remembered["it:after_1"], plain["it:after_1"]) == 0, "and nothing in the first domain"


def test_consistency_pulls_and_the_slow_adapter_needs_no_gradient(train):
    loose, _ = train(sequence.SlowTraining, 2, 0.9, 0.0)
    held, training = train(sequence.SlowTraining, 2, 0.9, 100.0)
    assert largest_difference(loose["it"], held["it"]) > 1e-4
    assert not any(tensor.requires_grad for tensor in training.slow.values())


@pytest.mark.parametrize("family", ["llama", "whisper"])
def test_states_of_equal_adapters_are_nowhere_apart_and_padding_counts_for_nothing(family):
    base = FAMILIES[family]()
    batch = base.collate(base.items[:2])
    with torch.no_grad(), sequence.record_states(base.model) as states:
        base.loss(base.model, batch)
    assert len(states) >= 2
    assert sequence.states_distance(states, states, batch) == 0
    moved = [state.clone() for state in states]
    mask = batch["mask"].bool()
    texts = [state for state in moved if state.shape[:2] == mask.shape]
    for state in texts:
        state[~mask] += 1
    assert texts and sequence.states_distance(states, moved, batch) == 0
    for state in texts:
        state[mask] += 1
    assert sequence.states_distance(states, moved, batch) == pytest.approx(len(texts) / len(states))


def test_ewc_of_no_weight_is_plain_and_of_a_great_one_stays_where_it_was(train):
    plain, _ = train(sequence.SequentialTraining)
    free, _ = train(sequence.EwcTraining, 0.0, 2)
    assert largest_difference(free["it"], plain["it"]) < 1e-6
    held, _ = train(sequence.EwcTraining, 1e9, 2)
    moved = largest_difference(plain["it"], plain["it:after_1"])
    name = max(held["it"], key=lambda n: float((plain["it"][n] - plain["it:after_1"][n]).abs().max()))
    assert float((held["it"][name] - held["it:after_1"][name]).abs().mean()) < moved


def test_the_joint_training_sees_all_domains_at_every_step(train):
    together, training = train(sequence.JointTraining)
    assert [*together] == ["it"]
    assert {*training.sessions} == {*DOMAINS}


def test_every_record_offered_is_kept_as_likely_as_any_other():
    size, offered, times = 3, 12, 2000
    counts = np.zeros(offered)
    for seed in range(times):
        reservoir = sequence.Reservoir(size, seed)
        reservoir.offer_items(range(offered // 2))
        reservoir.offer_items(range(offered // 2, offered))
        counts[reservoir.kept] += 1
    expected = times * size / offered
    statistic = ((counts - expected) ** 2 / (expected * (1 - size / offered))).sum() * (offered - 1) / offered
    assert counts.sum() == times * size and statistic < chi2.ppf(0.999, offered - 1)


def test_the_summary_is_that_of_the_formulas():
    scores = {"base": (1.0, 1.0), "it:after_1": (5.0, 2.0), "it": (4.0, 6.0), "joint": (5.0, 7.0)}
    found = Procedure().summarise_arms([*scores], DOMAINS, lambda arm, domain: scores[arm][DOMAINS.index(domain)])
    assert found["mean gain"] == {"base": 0, "it": 4, "joint": 5}
    assert found["backward transfer"] == {"it": -1} == {name: -lost for name, lost in found["forgetting"].items()}
    assert found["forward transfer"] == {"it": 1}


def test_a_model_that_learns_nothing_forgets_nothing():
    arms = ["base", "it:after_1", "it:after_2", "it"]
    found = Procedure().summarise_arms(
        arms, ("a", "b", "c"), lambda arm, domain: {"a": 1.0, "b": 2.0, "c": 3.0}[domain]
    )
    assert {what: of["it"] for what, of in found.items()} == dict.fromkeys(found, 0)


def test_what_is_kept_is_the_slow_adapter(train, tmp_path):
    from loratory.adapters.deltas import load_adapter
    from loratory.lifecycle.run import store_adapter

    found, training = train(sequence.SlowTraining, 2, 0.9, 1.0)
    core.attach(training.base.model, training.room.method, 0, training.base.heads)
    sequence.copy_weights(training.slow, core.trainable_parameters(training.base.model))
    base = SimpleNamespace(
        model=training.base.model, heads=(), family="causal", manifest={"name": "toy"}, fingerprint="0" * 64
    )
    store_adapter(SimpleNamespace(model=training.base.model, base=base), tmp_path / "kept", {})
    kept = load_adapter(tmp_path / "kept")
    for name, delta in kept.deltas.items():
        torch.testing.assert_close(delta.B, found["it"][f"{name}.adapter.B"])
