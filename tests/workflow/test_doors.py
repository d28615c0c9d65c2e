"""Ways into the workflow: as a module of another one, from a git host, and with inputs that are not there."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from snakemake.api import SnakemakeApi
from snakemake.exceptions import WorkflowError
from snakemake.settings.types import DAGSettings, OutputSettings, Quietness, ResourceSettings
from studies import ROOT, changed, shipped, written
from test_dag import Plan, told, write_outputs

from loratory.data.files import read_json

OUTER = f"""
configfile: "study.yaml"

module loratory:
    snakefile: "{ROOT}/workflow/Snakefile"
    config: config

use rule * from loratory as loratory_*

rule everything:
    default_target: True
    input: rules.loratory_all.input
"""
DEPLOYED = """
configfile: "config/config.yaml"

module loratory:
    snakefile:
        github("owner/loratory", path="workflow/Snakefile", tag="v1")
    config:
        config

use rule * from loratory
"""
FORGET = 'import sys; sys.path[:] = [path for path in sys.path if not path.endswith("/scripts")]'
TEST = shipped("test")


def test_as_a_module_of_another_workflow_it_plans_the_same_jobs(tmp_path):
    written(TEST, tmp_path)
    (tmp_path / "Snakefile").write_text(OUTER)
    with SnakemakeApi(OutputSettings(quiet={Quietness.ALL}, enable_file_logging=False, dryrun=True)) as api:
        flow = api.workflow(ResourceSettings(cores=2), snakefile=tmp_path / "Snakefile", workdir=tmp_path)
        flow.dag(DAGSettings()).execute_workflow(executor="dryrun")
        jobs = list(flow._workflow.dag.jobs)
    found = {(job.rule.name.removeprefix("loratory_"), *job.output) for job in jobs} - {("everything",)}
    plan = Plan(TEST, tmp_path)
    assert found == {(job.rule.name, *job.output) for job in plan.jobs} - {("all",)}
    scripts = {job.rule.script for job in jobs if job.rule.script}
    assert len(scripts) > 10 and all((ROOT / "workflow" / "rules" / path).is_file() for path in scripts)


@pytest.fixture
def hosted(tmp_path) -> dict[str, str]:
    """Variables with which this project lies at a git host, and no environment has its library."""
    repository = tmp_path / "owner" / "loratory"
    repository.mkdir(parents=True)
    place = os.environ | {"GIT_DIR": f"{repository}/.git", "GIT_WORK_TREE": str(ROOT)}
    as_somebody = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]
    for arguments in (["init", "-q"], ["add", "."], [*as_somebody, "commit", "-qm", "all"], ["tag", "v1"]):
        subprocess.run(["git", *arguments], env=place, check=True)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(FORGET)
    instead = {"GIT_CONFIG_KEY_0": f"url.file://{repository.parent}/.insteadOf"}
    instead |= {"GIT_CONFIG_VALUE_0": "https://github.com/owner/", "GIT_CONFIG_COUNT": "1"}
    return os.environ | instead | {"XDG_CACHE_HOME": f"{tmp_path}/cache", "PYTHONPATH": f"{tmp_path}/site"}


def test_a_folder_as_snakedeploy_makes_it_has_all_that_it_needs_from_the_git_host(hosted, tmp_path):
    folder = tmp_path / "study"
    for part in ("config", "profiles"):
        shutil.copytree(ROOT / part, folder / part)
    (folder / "workflow").mkdir()
    (folder / "workflow" / "Snakefile").write_text(DEPLOYED)

    def snakemake(*arguments: str) -> str:
        call = [sys.executable, "-m", "snakemake", *arguments]
        done = subprocess.run(
            call, cwd=folder, env=hosted, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    snakemake("results/data/recsys/audit.json", "--cores", "1")
    assert (folder / "results" / "data" / "recsys" / "audit.json").is_file()
    plan = snakemake("-n")
    assert "Using workflow specific profile profiles/default" in plan
    [shipped_base] = {Path(word) for word in plan.replace(",", " ").split() if word.endswith("/mini_lm/config.json")}
    assert shipped_base.is_relative_to(tmp_path / "cache") and shipped_base.is_file()


def test_a_plan_names_all_that_is_missing(tmp_path):
    with pytest.raises(WorkflowError) as caught:
        Plan(changed(shipped("real"), {"data_root": "/nowhere"}), tmp_path)
    assert str(caught.value).count("/nowhere/") == 7
    assert "study.yaml: 7 of the files and folders that it names do not exist: /nowhere/" in str(caught.value)


def test_what_files_and_their_names_say_is_never_run(tmp_path):
    said = "$(touch ran) `touch ran` {x} %s </script><script>alert(1)</script>"
    folder = tmp_path / "d $(touch ran);'\"&|?[x]* ü %s"
    folder.mkdir()
    asked = [f"{n * 7919 % 1000} is what? {said}" for n in range(60)]
    rows = [{"id": f"{n} {said}", "prompt": prompt, "completion": said} for n, prompt in enumerate(asked)]
    (folder / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    source = {"kind": "files", "records": [str(folder / "a.jsonl")], "licence": said}
    config = {key: TEST[key] for key in ("seeds", "adapters")} | {"title": said}
    config |= {"bases": {"mini_lm": {"family": "causal", "path": "{resources}/bases/mini_lm"}}}
    config |= {"domains": {"text": {"source": source, "dataset": {"similarity": 1.0}, "adapters": {"mini_lm": []}}}}
    written(config, tmp_path)
    call = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "workflow" / "Snakefile"), "--cores", "1"]
    call += ["results/data/text/audit.json", "--configfile", "study.yaml"]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert read_json(tmp_path / "results/data/text/card.json")["n_kept"] == len(rows)
    assert [path for path in tmp_path.rglob("*") if path.name == "ran"] == []


def test_a_plan_refuses_a_base_that_cannot_be_made(tmp_path):
    with pytest.raises(WorkflowError, match=r"bases\.mini_lm\.pretrain\.architecture: unknown key \(hiden_size\)"):
        Plan(changed(shipped("bases"), {"bases.mini_lm.pretrain.architecture.hiden_size": 8}), tmp_path)


def test_a_plan_refuses_options_that_peft_does_not_know_until_the_adapter_is_made(tmp_path):
    odd = {"method": "peft", "type": "loha", "options": {"rr": 2}, "training": TEST["adapters"]["lora"]["training"]}
    study = changed(TEST, {"adapters.odd": odd, "domains.recsys.adapters.mini_lm": ["odd"]})
    study = changed(study, {"mixtures": {}})
    with pytest.raises(
        WorkflowError, match=r"study\.yaml: adapters\.odd\.options: PEFT's loha: unknown option \(rr\)"
    ):
        Plan(study, tmp_path)
    made = tmp_path / "results/test/adapters/recsys/mini_lm/odd/runs.parquet"
    made.parent.mkdir(parents=True)
    made.touch()
    assert Plan(study, tmp_path).counts["train_sweep"]


def test_a_recording_that_was_replaced_in_place_is_fetched_and_learnt_again(tmp_path):
    (tmp_path / "corpus").mkdir()
    for name, value in (("wav.scp", "a.wav"), ("text", "hello"), ("utt2spk", "s")):
        (tmp_path / "corpus" / name).write_text(f"a {value}\n")
    (tmp_path / "corpus" / "a.wav").write_bytes(bytes(100))
    source = {"kind": "files", "folders": [str(tmp_path / "corpus")], "audio_root": str(tmp_path / "corpus")}
    config = {key: value for key, value in TEST.items() if key not in ("mixtures", "lifecycle", "folding", "general")}
    base = {"family": "whisper", "path": str(tmp_path / "base")}
    config |= {"domains": {"speech": {"source": source, "adapters": {"w": ["lora"]}}}, "bases": {"w": base}}
    write_outputs(Plan(config, tmp_path), tmp_path)
    Plan(config, tmp_path, "touch", force=True)
    assert not Plan(config, tmp_path).due
    (tmp_path / "corpus" / "a.wav").write_bytes(bytes(200))
    due = Plan(config, tmp_path).due
    assert {"fetch_source data speech", "build_dataset data speech", "train_sweep speech w lora"} <= {*due}
    assert "prepare_base w" not in due


def test_a_file_from_the_future_ends_a_plan_as_it_would_hide_every_change(tmp_path):
    manifest = tmp_path / "results/test/raw/data/protein/files.json"
    manifest.parent.mkdir(parents=True)
    manifest.touch()
    assert Plan(TEST, tmp_path).jobs
    os.utime(manifest, (time.time() + 86400,) * 2)
    with pytest.raises(WorkflowError, match=r"protein/files\.json: dated in the future, .*; fix: set the clock"):
        Plan(TEST, tmp_path)


def test_equal_keys_of_a_file_end_a_plan(tmp_path):
    settings = written(TEST, tmp_path)
    settings.write_text(settings.read_text() + "seeds: [1]\n")
    (tmp_path / "Snakefile").write_text(OUTER)
    with SnakemakeApi(OutputSettings(quiet={Quietness.ALL}, enable_file_logging=False, dryrun=True)) as api:
        flow = api.workflow(ResourceSettings(cores=2), snakefile=tmp_path / "Snakefile", workdir=tmp_path)
        with pytest.raises(WorkflowError, match=r"study\.yaml:\d+: the key stands twice, first in line \d+ \(seeds\)"):
            flow.dag(DAGSettings()).execute_workflow(executor="dryrun")


def test_logs_and_results_go_where_the_config_says(tmp_path):
    plan = Plan(changed(TEST, {"pathvars": {"results": "elsewhere/a"}}), tmp_path)
    job = next(job for job in plan.jobs if told(job).startswith("prepare_base"))
    assert job.output[0].startswith("elsewhere/a/bases/") and job.log[0].startswith("elsewhere/a/logs/")
    assert str(job.params.checkpoints) == "elsewhere/a/checkpoints"
