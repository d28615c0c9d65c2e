"""The whole workflow for real, on the smallest study: what a run leaves, and what others, killed or not, leave too."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from hashlib import sha256
from pathlib import Path

import pytest
from studies import ABSENT, ROOT, changed, command, copy_path, run_jobs, shipped, succeeded
from test_dag import Plan
from threadpoolctl import threadpool_limits

pytestmark = pytest.mark.whole

OFTEN = {"save_every": 1}  # a checkpoint after every step, so that a killed run has something to go on from
STUDY = changed(
    shipped("test"),
    {
        "pathvars": ABSENT,
        "adapters.lora.training": {"steps": 20, "learning_rates": [0.003, 0.01], "batch_tokens": 512} | OFTEN,
        "mixtures.xlora.training": {"steps": 5, "learning_rates": [0.003, 0.01], "batch_tokens": 512} | OFTEN,
    },
)
TRACKS = [f"{domain}.{base}" for domain, given in STUDY["domains"].items() for base in given.get("adapters", ())]
ERRORS = [f"{track}.errors" for track in TRACKS if track.startswith("speech.")]
TABLES = [
    *TRACKS,
    *ERRORS,
    *(f"{mixture}.summary" for mixture in STUDY["mixtures"]),
    f"{STUDY['folding']}.folding",
    *(f"{stage}.stage" for stage in STUDY["lifecycle"]),
]
SAME = (  # what two runs must agree on, byte for byte
    "data/*/*",
    "general/*/*",
    "adapters/*/*/*/seed*/adapter_model.safetensors",
    "mixtures/*/seed*/gate.safetensors",
    "bases/*/base.json",
    "folding/*/*",
    "metrics/**/*.json",
    "contrasts/*",
    "tables/*",
    "views/*/*",
    "report/*.html",
)


def run(folder: Path, *arguments: str, **options) -> str:
    return succeeded(folder, STUDY, "--cores", "2", *arguments, **options)


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for pattern in SAME for path in (folder / "results").glob(pattern))
    return {str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, warm_python) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    run(folder, python=warm_python)
    return folder


def end_while_adapters_learn(folder: Path, number: signal.Signals, *targets: str) -> str:
    """Starts a run and sends a signal to it and all its jobs when an adapter has learnt some steps and checkpoints
    them. Returns what it said."""
    asked = command(folder, STUDY, "--cores", "2", *targets)
    with open(folder / "killed.txt", "w") as said:
        process = subprocess.Popen(asked, cwd=ROOT, stdout=said, stderr=said, start_new_session=True)
        try:
            while not any("step" in log.read_text() for log in folder.glob("results/logs/train_sweep/*/*/*.log")):
                assert process.poll() is None, (folder / "killed.txt").read_text()
                time.sleep(0.05)
        finally:
            os.killpg(process.pid, number)
            assert process.wait(120)
    return (folder / "killed.txt").read_text()


def test_every_table_and_figure_is_there(finished):
    made = {path.name for path in (finished / "results/tables").iterdir()}
    assert made == {f"{table}.{suffix}" for table in TABLES for suffix in ("tsv", "md", "tex", "html")}
    drawn = {path.name for path in (finished / "results/figures").glob("*.svg")}
    folding = STUDY["folding"]
    curves = {f"{base}.curves.svg" for base in STUDY["bases"] if base != folding}
    assert drawn == curves | {f"{folding}.calibration.svg"} | {
        f"{mixture}.{figure}.svg" for mixture in STUDY["mixtures"] for figure in ("routing", "transfer")
    }


def test_every_table_says_what_adaptation_cost(finished):
    for domain, base in (track.split(".") for track in TRACKS):
        report = json.loads((finished / f"results/metrics/general/{domain}/{base}.json").read_text())
        asked = {row["system"] for row in report["rows"]}
        assert asked - {"base"} == {f"{name}@{domain}" for name in STUDY["domains"][domain]["adapters"][base]}
        assert {row["split"] for row in report["rows"]} == {"test"}
        primary = next(row["metric"] for row in report["rows"] if row["primary"])
        assert f"general: {primary}" in (finished / f"results/tables/{domain}.{base}.md").read_text()


def test_nothing_is_left_to_do(finished):
    assert "Nothing to be done" in run(finished)


def test_the_report_builds(finished):
    run(finished, "--report", "report.html")
    report = (finished / "report.html").read_text()
    assert all(f"{table}.html" in report for table in TABLES)


def test_tables_are_rebuilt_from_metrics_without_torch(finished, tmp_path):
    before = digests(finished)
    shutil.rmtree(finished / "results/tables")
    for module in ("torch", "transformers", "peft"):
        (tmp_path / f"{module}.py").write_text("raise ImportError('a table needs no model')")
    said = run(finished, "tables", env=os.environ | {"PYTHONPATH": str(tmp_path)})
    ran = {*re.findall(r"^ *\d+ of \d+  ([a-z ]+)", said, re.MULTILINE)}
    made = {"tabulate domain", "tabulate errors", "summarise mixture", "tabulate folding", "tabulate stage"}
    assert ran == {*made, "tables"}
    assert digests(finished) == before


def test_jobs_of_one_process_that_find_declared_files_alone_make_the_same_bytes(finished, tmp_path):
    """So no job leans on what a fresh process happens to hold, such as a generator's first state, nor reads or leaves
    a file that its rule does not name."""
    with threadpool_limits(1):
        run_jobs(Plan(STUDY, tmp_path).jobs, tmp_path)
    assert digests(tmp_path) == digests(finished)


LOST = {  # file: the jobs that make models again when it is gone
    "bases/mini_bert/model.safetensors": {"prepare_base mini_bert", "train_sweep lncrna mini_bert lora"},
    "adapters/protein/mini_lm/lora/seed0/adapter_model.safetensors": {
        "train_sweep protein mini_lm lora",
        "train_mixture xlora",
    },
    "mixtures/xlora/seed0/experts/speech/adapter_model.safetensors": {"train_mixture xlora"},
    "structures/protein/mini_lm/baselines/natural/scores.parquet": {"fold protein mini_lm"},
    "report/index.html": {"write_site"},
    "tables/xlora.summary.tex": {"summarise_mixture xlora"},
}
MAKERS = {"fetch_source", "build_dataset", "prepare_base", "train_sweep", "train_mixture"}


@pytest.mark.parametrize("path", LOST)
def test_a_lost_file_is_made_again_with_what_hangs_on_it_and_nothing_else(finished, tmp_path, path):
    copy_path(finished, tmp_path)
    (tmp_path / "results" / path).unlink()
    due = {*Plan(STUDY, tmp_path).due}
    assert LOST[path] <= due
    assert {job for job in due if job.split()[0] in MAKERS} == {j for j in LOST[path] if j.split()[0] in MAKERS}


def test_a_lost_adapter_is_of_no_concern_to_tables(finished, tmp_path):
    copy_path(finished, tmp_path)
    (tmp_path / "results/adapters/protein/mini_lm/lora/seed0/adapter_model.safetensors").unlink()
    assert not Plan(STUDY, tmp_path, targets=["tables"]).due


def test_deleting_all_output_leaves_what_was_said_and_measured_of_jobs_alone(finished, tmp_path):
    copy_path(finished, tmp_path)
    run(tmp_path, "--delete-all-output")
    results = tmp_path / "results"
    left = {path.relative_to(results).parts[0] for path in results.rglob("*") if path.is_file()}
    assert left == {"logs", "benchmarks"}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
def test_a_killed_run_goes_on_to_the_same_results(finished, tmp_path, warm_python, number):
    targets = [f"results/tables/lncrna.mini_bert.{suffix}" for suffix in ("md", "tsv")]
    said = end_while_adapters_learn(tmp_path, number, *targets)
    assert ("stopped: train sweep: lncrna, mini_bert" in said) == (number == signal.SIGTERM)
    assert "Traceback" not in said and "failed: " not in said
    unfinished = digests(tmp_path)
    again = run(tmp_path, *targets, python=warm_python)
    assert ("its lock is removed" in again) == (number == signal.SIGKILL)
    found, expected = digests(tmp_path), digests(finished)
    assert unfinished.keys() < found.keys() and {*targets} <= found.keys()
    assert found == {path: expected[path] for path in found}
    assert not [*tmp_path.glob("results/**/.*.part")]
    assert not [*tmp_path.glob("results/checkpoints/*")]
