"""Whatever ends a job, the next run of it makes the same bytes: kills, signals and full disks at random moments."""

import json
import subprocess
import sys

import pytest
from faults import FAULTS, LESS
from studies import ROOT
from test_dag import Plan

pytestmark = pytest.mark.whole


def test_a_job_of_every_rule_goes_on_to_the_same_bytes_behind_whatever_ended_it(tmp_path):
    done = subprocess.run([sys.executable, ROOT / "tests" / "faults.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    tried = json.loads(done.stdout.splitlines()[0])
    assert tried["rules"].keys() == {job.rule.name for job in Plan(LESS, tmp_path).jobs if job.rule.script}
    assert tried["faults"].keys() == {*FAULTS}
