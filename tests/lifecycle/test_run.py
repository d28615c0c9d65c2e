"""A stage from a dataset and a base's folder to what is kept: of cut models, folders that any later job opens."""

from types import SimpleNamespace

import models
import pyarrow.parquet as pq
import pytest
from studies import ROOT

from loratory.adapters.deltas import load_adapter
from loratory.bases.core import load_base
from loratory.config import Evaluation, adapter_entry, load_config, stage_entry
from loratory.data.files import read_json
from loratory.domains.dataset import build_dataset
from loratory.domains.fetch import fetch_source, open_source
from loratory.evaluation.predict import examples_by_split
from loratory.lifecycle import run
from loratory.lifecycle.contract import Arm

CUT = ("lora_prune_50", "magnitude_50", "random_50")


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """A stage of LoRAPrune that has run on the test config's proteins and a tiny base, and what it ran on."""
    folder = tmp_path_factory.mktemp("stage")
    base = models.causal_base(folder / "base", ears=False)
    given = load_config(ROOT / "config" / "test.yaml").domains.protein
    fetch_source("protein", given.source, "domain", 0, folder / "raw")
    build_dataset("protein", open_source("protein", folder / "raw"), given.dataset, 0, folder / "data")
    schedule = {"steps": 3, "batch_tokens": 256, "learning_rates": [0.01], "save_every": 0}
    named = {"procedure": "lora_prune", "base": "tiny", "domains": ("protein",), "adapter": "lora"}
    evaluation = Evaluation(max_records=4)
    run.run_stage(
        name="smaller",
        entry=stage_entry(named | {"shares": (0.5,), "interval": 1}),
        base_folder=folder / "base",
        adapter=adapter_entry({"method": "lora", "rank": 2, "training": schedule}),
        data={"protein": folder / "data"},
        tasks={"protein": given.task},
        seeds=(0,),
        evaluation=evaluation,
        device="cpu",
        checkpoints=folder / "checkpoints",
        out=folder / "out",
    )
    return SimpleNamespace(out=folder / "out", data=folder / "data", base=base, task=given.task, evaluation=evaluation)


def test_every_arm_is_measured_and_nothing_but_what_is_kept_is_left(stage):
    measured = {each["arm"]: each["measures"] for each in read_json(stage.out / "measures.json")}
    assert [*measured] == ["base", "lora", *CUT]
    assert all(of["milliseconds a batch"] > 0 for of in measured.values())
    assert len({measured[arm]["parameters"] for arm in CUT}) == 1
    assert measured[CUT[0]]["MB"] < measured["base"]["MB"] == measured["lora"]["MB"]
    assert sorted(path.name for path in (stage.out / "kept" / "seed0").iterdir()) == sorted(["lora", *CUT])
    assert load_adapter(stage.out / "kept" / "seed0" / "lora").run["base_sha256"] == stage.base.fingerprint
    assert not [*stage.out.parent.glob("checkpoints/*")]


@pytest.mark.parametrize("arm", CUT)
def test_a_kept_folder_answers_as_its_arm_did(stage, arm):
    rows = pq.read_table(stage.out / "predictions" / "protein" / "seed0.parquet").to_pylist()
    opened = load_base(stage.out / "kept" / "seed0" / arm)
    assert (opened.manifest["name"], opened.manifest["origin"]) == (arm, "stage smaller")
    asked = examples_by_split("protein", stage.data, stage.task, opened, ("test",), stage.evaluation)["test"]
    again = run.answer_questions(
        Arm(arm, opened, opened.model), "protein", asked, stage.task, stage.evaluation, seed=0
    )
    before = {row["id"]: row["nll"] for row in rows if row["system"] == arm}
    assert {row["id"]: row["nll"] for row in again} == pytest.approx(before, rel=1e-6) and len(before) == 4
    bare = {row["id"]: row["nll"] for row in rows if row["system"] == "base"}
    assert before != pytest.approx(bare, rel=1e-4)
