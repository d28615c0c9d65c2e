"""Locks of runs that were killed go; all others stay."""

import os
import subprocess
import sys

import pytest

from loratory.locks import JOBS, LOCKS, note_lock_owner, remove_lost_locks, start_tick, this_system


@pytest.fixture
def lock(tmp_path, monkeypatch):
    """The lock of a run in an empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    JOBS.mkdir(parents=True)
    LOCKS.mkdir()
    (LOCKS / "0.output.lock").write_text("results/a\n")
    return LOCKS / "0.output.lock"


def note_of_a_killed_run():
    owner = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (LOCKS / f"{owner.pid}.owner").write_text(f"{this_system()}\n{start_tick(owner.pid)}\n")
    assert remove_lost_locks() == ""
    owner.kill()
    owner.wait()
    return LOCKS / f"{owner.pid}.owner"


def test_the_lock_of_a_killed_run_goes_and_that_of_a_living_one_stays(lock):
    note_lock_owner()
    assert remove_lost_locks() == "" and lock.exists()
    (LOCKS / f"{os.getpid()}.owner").unlink()
    note_of_a_killed_run()
    assert "removed" in remove_lost_locks() and not [*LOCKS.iterdir()]


def test_a_number_that_another_process_took_over_is_no_sign_of_life(lock):
    (LOCKS / f"{os.getpid()}.owner").write_text(f"{this_system()}\n1\n")
    assert "removed" in remove_lost_locks()


def test_the_lock_stays_while_jobs_of_the_killed_run_work(lock):
    note_of_a_killed_run()
    script = JOBS.resolve() / "tmp1.train_sweep.py"
    script.write_text("import time; print(flush=True); time.sleep(600)")
    job = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE)
    job.stdout.readline()
    said = remove_lost_locks()
    job.kill()
    job.communicate()
    assert f"(process {job.pid})" in said and lock.exists()
    assert "removed" in remove_lost_locks()


def test_the_lock_of_another_machine_of_nobody_known_or_beside_one_of_a_living_run_stays(lock):
    note = note_of_a_killed_run()
    (LOCKS / "1.output.lock").write_text("results/b\n")  # of a run that has not said yet who it is
    assert remove_lost_locks() == ""
    (LOCKS / "1.output.lock").unlink()
    note.write_text("another boot pid:[1]\n5\n")
    assert remove_lost_locks() == ""
    note.unlink()
    assert remove_lost_locks() == "" and lock.exists()
