"""Benchmarks are run by hand: what they plan must still be a study when somebody does."""

import os
import runpy
import subprocess
import sys

from studies import ROOT

from loratory.config import read_config

SCRIPTS = str(ROOT / "scripts")


def test_the_study_whose_plan_is_timed_is_a_valid_config():
    study = runpy.run_path(str(ROOT / "benchmarks" / "dry_run.py"), run_name="benchmark")["large_study"]()
    assert len(read_config(study, "study").adapters) == len(study["adapters"]) == 600


def test_the_tables_that_are_timed_are_written_without_torch_and_equal(capsys, monkeypatch):
    timed = runpy.run_path(str(ROOT / "benchmarks" / "tables.py"), run_name="benchmark")["main"]
    for name, few in {"SYSTEMS": 3, "METRICS": 2, "METHODS": 2, "SEEDS": 1}.items():
        monkeypatch.setitem(timed.__globals__, name, few)
    timed()
    assert capsys.readouterr().out.count("torch False, equal files True") == 2


def test_a_base_of_several_files_is_opened_without_a_second_copy_in_memory(tmp_path):
    script = str(ROOT / "benchmarks" / "load_base.py")
    runpy.run_path(script, run_name="benchmark")["write_base"](tmp_path / "base", 0.1)
    assert len(list((tmp_path / "base").glob("*.safetensors"))) > 1
    opened = [sys.executable, script, "--arm", "fp32", "--folder", str(tmp_path / "base")]
    done = subprocess.run(opened, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": SCRIPTS})
    size, peak = map(float, done.stdout.split()[1:3])
    assert size > 150 and peak < 1.3 * size
