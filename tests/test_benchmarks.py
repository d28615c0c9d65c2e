"""Benchmarks are run by hand: what they plan must still be a study when somebody does."""

import runpy

from studies import ROOT

from loratory.config import read_config


def test_the_study_whose_plan_is_timed_is_a_valid_config():
    study = runpy.run_path(str(ROOT / "benchmarks" / "dry_run.py"), run_name="benchmark")["large_study"]()
    assert len(read_config(study, "study").adapters) == len(study["adapters"]) == 600


def test_the_tables_that_are_timed_are_written_without_torch_and_equal(capsys, monkeypatch):
    timed = runpy.run_path(str(ROOT / "benchmarks" / "tables.py"), run_name="benchmark")["main"]
    for name, few in {"SYSTEMS": 3, "METRICS": 2, "METHODS": 2, "SEEDS": 1}.items():
        monkeypatch.setitem(timed.__globals__, name, few)
    timed()
    assert capsys.readouterr().out.count("torch False, equal files True") == 2
