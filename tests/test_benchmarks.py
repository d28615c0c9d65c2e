"""Benchmarks are run by hand: what they plan must still be a study when somebody does."""

import runpy

from studies import ROOT

from loratory.config import read_config


def test_the_study_whose_plan_is_timed_is_a_valid_config():
    study = runpy.run_path(str(ROOT / "benchmarks" / "dry_run.py"), run_name="benchmark")["large_study"]()
    assert len(read_config(study, "study").adapters) == len(study["adapters"]) == 600
