"""A federation of real processes, and a whole stage from a dataset to a table."""

import os
import signal
from pathlib import Path
from types import SimpleNamespace

import models
import pytest
from studies import ROOT
from test_federated import adapter_tensors, same

from loratory.adapters.deltas import load_adapter
from loratory.bases.core import load_base
from loratory.config import Evaluation, adapter_entry, load_config, stage_entry
from loratory.data.files import read_json
from loratory.domains.dataset import build_dataset
from loratory.domains.fetch import fetch_source, open_source
from loratory.evaluation.baselines import predict_baselines
from loratory.evaluation.score import Floor
from loratory.lifecycle import federation, run
from loratory.lifecycle.contrast import contrast_stage
from loratory.lifecycle.room import open_room
from loratory.reporting.stages import write_stage_table

NAMED = {"procedure": "federated", "base": "tiny", "domains": ("protein",), "adapter": "lora", "local_steps": 1}
SCHEDULE = {"steps": 3, "batch_tokens": 256, "learning_rates": [0.01], "save_every": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A dataset and a base on disk."""
    folder = tmp_path_factory.mktemp("made")
    models.causal_base(folder / "base", ears=False)
    given = load_config(ROOT / "config" / "test.yaml").domains.protein
    fetch_source("protein", given.source, "domain", 0, folder / "raw")
    build_dataset("protein", open_source("protein", folder / "raw"), given.dataset, 0, folder / "data")
    return SimpleNamespace(folder=folder, task=given.task)


@pytest.fixture
def train(made, tmp_path):
    """Options of the procedure -> the tensors and measures of FFA-LoRA."""

    def learn(**options):
        entry = stage_entry(NAMED | {"epsilon": None} | options)
        adapter = adapter_entry({"method": "lora", "rank": 2, "training": SCHEDULE})
        base = load_base(made.folder / "base", "cpu")
        data, tasks = {"protein": made.folder / "data"}, {"protein": made.task}
        checkpoints = tmp_path / f"checkpoints{len([*tmp_path.iterdir()])}"
        room = open_room("many", entry, base, adapter, 0, data, tasks, "cpu", checkpoints, "out")
        for arm in entry.federations(entry, room)["ffa_lora"].iterate_arms():
            return adapter_tensors(arm.model), dict(arm.measures)
        raise AssertionError

    return learn


def listening_addresses(port: int) -> set[str]:
    """The last eight hexadecimal digits of the addresses at which something listens on a port of this machine."""
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    ends = [(*line[1].split(":"), line[3]) for line in lines if ":" in line[1]]
    return {host[-8:] for host, at, state in ends if int(at, 16) == port and state == "0A"}


def test_processes_learn_what_a_simulation_does_and_one_that_is_killed_is_left_out(train, monkeypatch, capfd):
    """Three clients; the last is killed behind the first of three rounds, and in the simulation fails there."""
    started, start, aggregate = [], federation.start_client_process, federation.CheckedFedAvg.aggregate_fit
    address = []

    def note(training, number, at, key):
        address.append(at)
        started.append(start(training, number, at, key))
        return started[-1]

    monkeypatch.setattr(federation, "start_client_process", note)

    def kill_last(self, server_round, results, failures):
        found = aggregate(self, server_round, results, failures)
        if server_round == 1:
            assert len(results) == 3, "all have answered before"
            assert listening_addresses(int(address[0].rpartition(":")[2])) == {"0100007F"}, "127.0.0.1 alone"
            os.kill(started[2].pid, signal.SIGKILL)
            started[2].wait()
        return found

    monkeypatch.setattr(federation.CheckedFedAvg, "aggregate_fit", kill_last)
    found, measures = train(processes=True)
    assert "round 2 goes on without client 2" in capfd.readouterr().out
    assert all(process.poll() is not None for process in started), "none is left behind"
    monkeypatch.undo()

    def fail_last(self, ins, timeout, group_id, fit=federation.LocalProxy.fit):
        if self.client.number == 2 and ins.config["first"] > 0:
            raise RuntimeError
        return fit(self, ins, timeout, group_id)

    monkeypatch.setattr(federation.LocalProxy, "fit", fail_last)
    simulated, counted = train()
    assert same(found, simulated) and measures == counted and measures["clients lost"] == 1


def test_a_stage_has_all_arms_with_the_mean_of_local_ones_and_keeps_adapters_of_one_a(made, tmp_path):
    entry = stage_entry(NAMED | {"private_batch": 4, "clients": 2})
    evaluation, out = Evaluation(max_records=4), tmp_path / "out"
    run.run_stage(
        name="many",
        entry=entry,
        base_folder=made.folder / "base",
        adapter=adapter_entry({"method": "lora", "rank": 2, "training": SCHEDULE}),
        data={"protein": made.folder / "data"},
        tasks={"protein": made.task},
        seeds=(0,),
        evaluation=evaluation,
        device="cpu",
        checkpoints=tmp_path / "checkpoints",
        out=out,
    )
    rounds = ["fedavg_lora", "ffa_lora", "fedavg_lora_dp", "ffa_lora_dp"]
    arms = [each["arm"] for each in read_json(out / "measures.json")]
    assert arms == ["base", "central", "local:client_0", "local:client_1", *rounds]
    assert not [*tmp_path.glob("checkpoints/*")]
    kept = {arm: load_adapter(out / "kept" / "seed0" / arm).deltas for arm in ("ffa_lora", "ffa_lora_dp")}
    assert all((kept["ffa_lora"][name].A == delta.A).all() for name, delta in kept["ffa_lora_dp"].items())
    assert any((kept["ffa_lora"][name].B != delta.B).any() for name, delta in kept["ffa_lora_dp"].items())
    controls = tmp_path / "baselines.parquet"
    predict_baselines("protein", made.folder / "data", made.task, 4, 4, 0, controls)
    contrast_stage(
        "many", entry, out, {"protein": made.folder / "data"}, {"protein": made.task}, (0,), 50, 0,
        Floor(1, 1), tmp_path / "many.json", {"protein": controls},
    )  # fmt: skip
    report = read_json(tmp_path / "many.json")
    values = {row["system"]: row for row in report["rows"]}
    own = [values[f"local:client_{number}"] for number in (0, 1)]
    assert values["local"]["value"] == pytest.approx(sum(row["value"] for row in own) / 2)
    assert own[0]["value"] != own[1]["value"] and values["local"]["low"] <= values["local"]["value"]
    measures = report["measures"]
    assert measures["trained numbers"]["local"] == measures["trained numbers"]["central"]
    assert {*measures["epsilon"]} == {*rounds[2:]} and all(value <= 6 for value in measures["epsilon"].values())
    half = measures["bytes from a client a round"]
    assert half["ffa_lora"] < 0.6 * half["fedavg_lora"]
    write_stage_table(tmp_path / "many.json", tmp_path / "many")
    shown = (tmp_path / "many.md").read_text()
    best = report["controls"]["protein"]["system"]
    assert f"protein: {best}" in shown and values[best]["value"] != values["base"]["value"]
    assert shown.splitlines()[[line.startswith("| base ") for line in shown.splitlines()].index(True) + 1].startswith(
        "| best control without a language model "
    )
    assert "| local " in shown and "client_0" not in shown and "client_0" in (tmp_path / "many.tsv").read_text()
