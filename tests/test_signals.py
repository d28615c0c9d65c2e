"""SIGTERM ends a run wherever it meets it: a handler does not wait for a lock that the main thread holds."""

import os
import signal
import subprocess
from threading import Event, Lock

import pytest
from studies import ROOT, command, shipped, succeeded

from loratory.signals import answer_aside


@pytest.fixture
def handler():
    """Sets a handler of SIGTERM for one test."""
    before = signal.getsignal(signal.SIGTERM)
    yield lambda function: signal.signal(signal.SIGTERM, function)
    signal.signal(signal.SIGTERM, before)


def test_a_handler_gets_the_lock_that_the_main_thread_held_when_the_signal_came(handler):
    lock, answered = Lock(), Event()

    def note(*given):
        with lock:
            answered.set()

    handler(note)
    answer_aside(signal.SIGTERM)
    with lock:
        os.kill(os.getpid(), signal.SIGTERM)
    assert answered.wait(60)


@pytest.mark.parametrize("action", [signal.SIG_IGN, signal.SIG_DFL])
def test_what_is_no_handler_stays(handler, action):
    handler(action)
    answer_aside(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is action


WHERE_IT_HUNG = """
import os, signal, sys
if "snakemake" in sys.orig_argv:
    from snakemake.scheduling.job_scheduler import JobScheduler

    choose = JobScheduler.update_available_resources

    def end_group(self, jobs):
        JobScheduler.update_available_resources = choose
        choose(self, jobs)
        assert self._lock.locked()
        os.killpg(0, signal.SIGTERM)

    JobScheduler.update_available_resources = end_group
"""


def test_a_run_whose_group_is_ended_while_it_chooses_jobs_ends_and_goes_on(tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(WHERE_IT_HUNG)
    asked = ["--cores", "1", *(f"results/test/raw/{corpus}/recsys/files.json" for corpus in ("data", "general"))]
    call = command(tmp_path, shipped("test"), *asked)
    env = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    with subprocess.Popen(call, cwd=ROOT, env=env, **options) as run:
        try:
            said, _ = run.communicate(timeout=120)
        finally:
            run.kill()
    assert run.returncode == 1, said
    assert said.count("stopping: no job is started any more; the same command goes on from there") == 1
    assert "1 of 2" in said and "2 of 2" not in said and "Traceback" not in said
    assert "1 of 1" in succeeded(tmp_path, shipped("test"), *asked)
