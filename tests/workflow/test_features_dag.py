"""Jobs that features of the base, and experts that a mixer starts itself, add to the graph; nothing is run."""

from pathlib import Path

import pytest
from studies import changed
from test_dag import DEMO, Plan, told

EXPERTS = DEMO["mixtures"]["xlora"]["experts"]
PAIR = {"mixer": "xlora", "base": "mini_lm", "experts": {"protein": "lora", "lncrna": "lora"}, "features": True}


@pytest.fixture
def plan(tmp_path):
    return lambda changes: Plan(changed(DEMO, changes), tmp_path)


def training(plan, mixture: str):
    return next(job for job in plan.jobs if told(job) == f"train_mixture {mixture}")


def test_features_are_a_job_for_each_domain_between_its_data_and_the_gate(plan):
    found = plan({"mixtures.xlora.features": True})
    assert found.counts["compute_gate_features"] == len(EXPERTS)
    edges = {edge for edge in found.edges if "compute_gate_features" in edge}
    reads = {("compute_gate_features", rule) for rule in ("fetch_source", "build_dataset", "prepare_base")}
    assert edges == reads | {("train_mixture", "compute_gate_features")}
    files = [f"results/features/{domain}/mini_lm/gate/index.json" for domain in EXPERTS]
    assert [*training(found, "xlora").input.features] == files


def test_mixtures_of_one_base_and_all_seeds_share_features(plan):
    found = plan({"mixtures.xlora.features": True, "mixtures.pair": PAIR, "seeds": [0, 1]})
    assert found.counts["compute_gate_features"] == len(EXPERTS)
    assert found.counts["train_mixture"] == 2
    assert len(training(found, "pair").input.features) == 2


def test_a_mixer_that_starts_its_own_experts_learns_from_train_and_gate_and_features_are_of_these(plan):
    fresh = PAIR | {"mixer": "slide_lora", "gating": "learned"}
    given = training(plan({"mixtures.pair": fresh}), "pair").input
    learnt = [("protein", "train"), ("protein", "gate"), ("lncrna", "train"), ("lncrna", "gate")]
    read = {*learnt, ("protein", "valid"), ("lncrna", "valid")}
    assert {tuple(Path(path).with_suffix("").parts[-2:]) for path in given.data} == read
    assert [tuple(Path(path).parts[2:5]) for path in given.features] == [(d, "mini_lm", s) for d, s in learnt]
    assert not any("test" in Path(path).parts or Path(path).stem == "test" for path in given)


def test_without_the_option_nothing_is_kept(plan):
    found = plan({"mixtures.pair": PAIR | {"features": False}})
    assert not found.counts["compute_gate_features"] and not training(found, "pair").input.features
