"""The command of docs/cluster.md, on a real Slurm whose jobs and nodes die, makes what this machine makes alone."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from slurm_cluster import SlurmCluster, absent_reason, job_process
from studies import ROOT, changed, shipped, written

pytestmark = [pytest.mark.whole, pytest.mark.skipif(bool(absent_reason()), reason=absent_reason())]

PAGE = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
(TRIAL,) = [line for line in PAGE.splitlines() if line.startswith("snakemake") and "config/test.yaml" in line]
STEPS = 100  # long enough to be met in the middle
STUDY = changed(  # of the test config one domain, on a base that is shipped
    shipped("test"),
    {
        "domains": {"lncrna": shipped("test")["domains"]["lncrna"] | {"adapters": {"mini_bert": ["lora"]}}},
        "general": {},
        "bases": {"mini_bert": shipped("config")["bases"]["mini_bert"]},
        "mixtures": {},
        "lifecycle": {},
        "folding": None,
        "adapters.lora.training.steps": STEPS,
        "adapters.lora.training.save_every": 1,
    },
)
RESULTS = Path("results/test")
LOG = RESULTS / "logs/train_sweep/lncrna/mini_bert/lora.log"
CONTINUED = re.compile(rf"step [1-9]\d* of {STEPS}, continued")
SAME = (  # what two runs must agree on, byte for byte
    "data/*/*",
    "bases/*/base.json",
    "adapters/*/*/*/seed*/adapter_model.safetensors",
    "metrics/**/*.json",
    "tables/*",
)
PATIENCE = 600.0  # seconds that a run may take to come to its next training, or its end


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[SlurmCluster]:
    cluster = SlurmCluster(tmp_path_factory.mktemp("slurm"))
    try:
        try:
            cluster.start()
        except TimeoutError as error:
            pytest.skip(f"no Slurm comes up on this machine: {error}")
        yield cluster
    finally:
        cluster.stop()


def clone(folder: Path) -> Path:
    """A copy of the project whose test config trains for longer."""
    for name in ("config", "envs", "profiles", "scripts", "workflow"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "resources").symlink_to(ROOT / "resources")
    written(STUDY, folder).rename(folder / "config" / "test.yaml")
    return folder


def start(folder: Path, command: str, *options: str) -> subprocess.Popen:
    asked = [sys.executable, "-m", *command.split(), *options]
    with open(folder / "said.txt", "w") as said:
        return subprocess.Popen(asked, cwd=folder, stdout=said, stderr=said)


def finish(process: subprocess.Popen, folder: Path) -> str:
    status = process.wait(PATIENCE)
    said = (folder / "said.txt").read_text()
    logs = "".join(f"{path}:\n{path.read_text()}" for path in folder.glob(".snakemake/slurm_logs/**/*.log"))
    assert status == 0, said + logs
    return said


def digests(folder: Path) -> dict[str, str]:
    paths = sorted(path for pattern in SAME for path in (folder / RESULTS).glob(pattern))
    return {str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest() for path in paths}


def wait_until(happened: Callable[[Path], bool], folder: Path, process: subprocess.Popen) -> None:
    last = time.monotonic() + PATIENCE
    while not happened(folder):
        assert process.poll() is None and time.monotonic() < last, (folder / "said.txt").read_text()
        time.sleep(0.02)


def has_checkpoint(folder: Path) -> bool:
    return any((folder / RESULTS).glob("checkpoints/**/checkpoint.safetensors"))


def has_gone_on(folder: Path) -> bool:
    return (folder / LOG).exists() and bool(CONTINUED.search((folder / LOG).read_text()))


@pytest.fixture(scope="module")
def finished(cluster, tmp_path_factory) -> Iterator[tuple[Path, Path, str]]:
    """(folder of a run on Slurm that lost a node and a job, folder of a run without Slurm, what the first said)."""
    folder, alone = (clone(tmp_path_factory.mktemp(name)) for name in ("cluster", "alone"))
    target = TRIAL.partition(" --workflow-profile")[0]
    runs = [start(folder, TRIAL)]
    try:
        wait_until(has_checkpoint, folder, runs[0])
        _, node = job_process(folder, "train_sweep")
        cluster.cut_power(node)
        runs.append(start(alone, f"{target} --configfile config/test.yaml --cores 1"))  # while Slurm finds out
        wait_until(has_gone_on, folder, runs[0])
        job, _ = job_process(folder, "train_sweep")
        os.kill(job, signal.SIGKILL)
        cluster.restore_power(node)
        finish(runs[1], alone)
        yield folder, alone, finish(runs[0], folder)
    finally:
        for process in runs:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                process.wait()


def test_killed_jobs_and_nodes_change_no_byte(finished):
    folder, alone, _ = finished
    found, expected = digests(folder), digests(alone)
    assert found == expected
    assert {path.split("/")[2] for path in found} == {pattern.partition("/")[0] for pattern in SAME}


def test_the_training_that_lost_its_node_and_then_its_process_went_on_from_its_checkpoints(finished):
    assert has_gone_on(finished[0]), (finished[0] / LOG).read_text()


def test_a_killed_job_is_told_as_such_and_tried_again(finished):
    said = finished[2].splitlines()
    (failed,) = (number for number, line in enumerate(said) if line.startswith("failed: "))
    assert said[failed].startswith("failed: train sweep: lncrna, mini_bert, lora, after ")
    assert said[failed + 1].startswith("  it was killed, most likely for want of memory (asked for 1500 MB); fix: ")
    assert any(line.startswith("9 of 9  tabulate domain: lncrna, mini_bert") for line in said)


def test_a_job_that_takes_more_memory_than_it_asked_for_gets_more_at_its_second_attempt(finished):
    folder, asked = finished[0], "predict:mem_mb=400 if attempt == 1 else 2000"
    target = f"{RESULTS}/predictions/data/lncrna/mini_bert/seed0.parquet"
    before = digests(folder)
    command = TRIAL.replace(TRIAL.split()[1], target)
    said = finish(start(folder, command, "--force", "--set-resources", asked), folder)
    assert "  it was killed, most likely for want of memory (asked for 400 MB); fix: " in said
    assert "1 of 1  predict" in said
    assert digests(folder) == before
