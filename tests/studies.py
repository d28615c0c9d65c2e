"""Configs to test with (the shipped ones, changed), and runs of the workflow on them."""

import contextlib
import os
import pickle
import runpy
import subprocess
import sys
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pyarrow as pa
import pytest
import yaml

from loratory.data.records import Records, table_records

ROOT = Path(__file__).parent.parent
ABSENT = object()


def as_records(rows: list[dict], schema: pa.Schema | None = None) -> Records:
    """The rows as what is built and read."""
    return table_records(pa.Table.from_pylist(rows, schema=schema))


def shipped(name: str) -> dict:
    return yaml.safe_load((ROOT / "config" / f"{name}.yaml").read_text())


def pretrained() -> dict:
    """The demo with one seed, without folding, and with its bases trained on the way."""
    recipe = shipped("bases")
    demo = shipped("config") | {"seeds": [0]} | {key: recipe[key] for key in ("general", "bases")}
    return changed(demo, {"folding": ABSENT, "domains.structure": ABSENT})


def changed(config: dict, changes: dict) -> dict:
    """A copy with the values at dotted keys replaced, or taken out."""
    config = deepcopy(config)
    for path, value in changes.items():
        *parents, last = path.split(".")
        place = config
        for key in parents:
            place = place.setdefault(key, {})
        if value is ABSENT:
            del place[last]
        else:
            place[last] = value
    return config


def written(config: dict, folder: Path) -> Path:
    """The config as a file in a folder that a workflow may run in."""
    path = Path(folder) / "study.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def command(folder: Path, config: dict, *arguments: str) -> list[str]:
    """Snakemake as users call it, working in `folder`."""
    file = written(config, folder)
    return [sys.executable, "-m", "snakemake", "--configfile", str(file), "-d", str(folder), *arguments]


def succeeded(folder: Path, config: dict, *arguments: str, **options) -> str:
    """What `snakemake` said, which must have succeeded."""
    run = snakemake(folder, config, *arguments, **options)
    assert run.returncode == 0, run.stdout
    return run.stdout


def snakemake(folder: Path, config: dict, *arguments: str, **options) -> subprocess.CompletedProcess:
    """Runs the workflow in `folder`; `stdout` of the result is all that was said."""
    asked = command(folder, config, *arguments)
    return subprocess.run(asked, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)


def run_jobs(jobs: Iterable, folder: Path) -> None:
    """Runs the scripts of planned jobs in this process, where torch is imported once.

    Where a job fails, the test does, with the job's log. A script is given what Snakemake gives it, its parameters
    pickled on the way as there.
    """
    with contextlib.chdir(folder), mock.patch.dict(os.environ):
        for job in (job for job in jobs if job.rule.script):
            for path in (*job.log, *job.output):
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            given = {name: getattr(job, name) for name in ("input", "output", "wildcards", "log")}
            given |= {"params": pickle.loads(pickle.dumps(job.params)), "resources": {"attempt": 1}}
            try:
                script = ROOT / "scripts" / f"{job.rule.name}.py"
                runpy.run_path(str(script), {"snakemake": SimpleNamespace(**given)})
            except SystemExit:
                pytest.fail(Path(job.log[0]).read_text())
