"""Configs to test with (the shipped ones, changed), and runs of the workflow on them."""

import contextlib
import os
import pickle
import runpy
import shutil
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


def command(folder: Path, config: dict, *arguments: str, python: Path | str = sys.executable) -> list[str]:
    """Snakemake as users call it, working in `folder`."""
    file = written(config, folder)
    return [str(python), "-m", "snakemake", "--configfile", str(file), "-d", str(folder), *arguments]


def succeeded(folder: Path, config: dict, *arguments: str, **options) -> str:
    """What `snakemake` said, which must have succeeded."""
    run = snakemake(folder, config, *arguments, **options)
    assert run.returncode == 0, run.stdout
    return run.stdout


def snakemake(
    folder: Path, config: dict, *arguments: str, python: Path | str = sys.executable, **options
) -> subprocess.CompletedProcess:
    """Runs the workflow in `folder`; `stdout` of the result is all that was said."""
    asked = command(folder, config, *arguments, python=python)
    return subprocess.run(asked, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)


def run_jobs(jobs: Iterable, folder: Path) -> None:
    """Runs the scripts of planned jobs in this process, where torch is imported once.

    Each works in a folder that holds what its rule declares as input and nothing else, as on a machine that shares no
    disk with the others; of what it leaves, all but its log must be declared as output. Where a job fails, the test
    does, with the job's log.
    """
    for number, job in enumerate(job for job in jobs if job.rule.script):
        own = folder / f"job{number}"
        for path in job.input:
            copy_path(folder / path, own / path)
        before = found_files(own)
        try:
            run_script(job, own)
        except SystemExit:
            pytest.fail((own / job.log[0]).read_text())
        left = [path for path in found_files(own) - before if not path.is_relative_to(job.log[0])]
        undeclared = [path for path in left if not any(path.is_relative_to(declared) for declared in job.output)]
        assert not undeclared, (job.rule.name, undeclared)
        for path in (*job.log, *job.output):
            copy_path(own / path, folder / path)
        shutil.rmtree(own)


def run_script(job, folder: Path) -> None:
    """Runs the script of a planned job in a folder, with what Snakemake gives it, pickled parameters too."""
    for path in (*job.log, *job.output):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
    given = {name: getattr(job, name) for name in ("input", "output", "wildcards", "log")}
    given |= {"params": pickle.loads(pickle.dumps(job.params)), "resources": {"attempt": 1}}
    with contextlib.chdir(folder), mock.patch.dict(os.environ):
        runpy.run_path(str(ROOT / "scripts" / f"{job.rule.name}.py"), {"snakemake": SimpleNamespace(**given)})


def copy_path(source: Path, target: Path) -> None:
    """A file, or all files of a folder, as links."""
    for path in [source, *source.rglob("*")]:
        place = target / path.relative_to(source)
        if path.is_dir():
            place.mkdir(parents=True, exist_ok=True)
        elif not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, place)


def found_files(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
