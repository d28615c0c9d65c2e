"""Differences between methods: paired over records and seeds, positive where better."""

import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loratory import registry
from loratory.domains.contract import Metric
from loratory.errors import InputError
from loratory.evaluation.contrast import contrast_methods, seed_distribution
from loratory.evaluation.rows import write_rows
from loratory.evaluation.score import Floor

N = 40
KINDS = {"base": "base", "pooled": "control"}


@pytest.fixture(autouse=True)
def domain(monkeypatch):
    """A domain whose one metric is the mean of `nll`, the lower the better."""
    metric = Metric("loss", "nats", "down", "nll", lambda c: float(c["nll"].mean()), primary=True)
    columns = lambda rows, *_: {"nll": np.array([r["nll"] for r in rows])}  # noqa: E731
    found = SimpleNamespace(METRICS=(metric,), VERSION=3, TRAIN_KEYS=(), columns=columns)
    monkeypatch.setattr(registry, "load_module", lambda *_: found)


@pytest.fixture
def study(tmp_path):
    """Writes a study in which each system's loss is the record's own plus what `worse` says for each seed."""
    records = [{"id": f"r{i:02}", "group": f"g{i // 2}", "split": "test"} for i in range(N)]
    own = np.random.default_rng(0).normal(3, 1, N)

    def contrasted(worse: dict, against="lora", controls: dict | None = None, floor=(1, 1), cuts=None):
        """`controls`: {baseline: (what it adds on valid, on test)}."""
        pq.write_table(pa.Table.from_pylist(records), tmp_path / "test.parquet")
        files = {}
        for seed in range(len(next(iter(worse.values())))):
            rows = [
                {"split": "test", "system": name, "kind": KINDS.get(name, "adapter"), "reference": ""}
                | {"id": record["id"], "group": record["group"], "nll": own[i] + added[seed], "tokens": 1}
                for name, added in worse.items()
                for i, record in enumerate(records)
            ]
            files[seed] = tmp_path / f"seed{seed}.parquet"
            write_rows(files[seed], rows)
        pq.write_table(pa.Table.from_pylist(records), tmp_path / "valid.parquet")
        rows = [
            {"split": split, "system": name, "kind": "baseline", "reference": "", "tokens": 1}
            | {"id": record["id"], "group": record["group"], "nll": own[i] + added}
            for name, both in (controls or {}).items()
            for split, added in zip(("valid", "test"), both)
            for i, record in enumerate(records)
        ]
        baselines = tmp_path / "baselines.parquet" if controls else None
        if controls:
            write_rows(baselines, rows)
        out = tmp_path / "out.json"
        contrast_methods("toy", "mini", files, baselines, tmp_path, None, against, 200, 0, Floor(*floor), out, cuts)
        return {row["adapter"]: row for row in json.loads(out.read_text())["rows"]}

    return contrasted


def test_a_constant_difference_is_certain_though_values_are_not(study):
    rows = study({"base": [1, 1], "lora@toy": [0.5, 0.5], "other@toy": [0.25, 0.25]})
    found = rows["other"]
    assert found["high"] - found["low"] > 0.3
    for part in ("difference", "difference_low", "difference_high"):
        assert found[part] == pytest.approx(0.25)
        assert rows["base"][part] == pytest.approx(-0.5)
        assert found[part.replace("difference", "gain")] == pytest.approx(0.75)


def test_what_only_one_seed_shows_is_not_certain(study):
    rows = study({"base": [1, 1, 1], "lora@toy": [0, 0, 0], "other@toy": [-0.9, 0, 0.3]})
    assert rows["other"]["difference"] == pytest.approx(0.2)
    assert rows["other"]["difference_low"] < 0 < rows["other"]["difference_high"]
    assert rows["other"]["per_seed"][0] < rows["other"]["per_seed"][2]


def test_every_method_is_paired_with_the_best_control_which_validation_chose(study):
    worse = {"base": [1, 1], "lora@toy": [0.5, 0.5], "other@toy": [0.25, 0.25]}
    rows = study(worse, controls={"chosen": (0.1, 0.3), "lucky": (0.2, 0.0)})
    assert set(rows) == {"base", "lora", "other", "chosen"}
    for part in ("vs_control", "vs_control_low", "vs_control_high"):
        assert rows["other"][part] == pytest.approx(0.05)
        assert rows["lora"][part] == pytest.approx(-0.2)
        assert rows["chosen"][part] is None
    assert rows["chosen"]["difference_low"] == pytest.approx(0.2) and rows["chosen"]["per_seed"] == []
    assert {row["vs_control"] for row in study(worse).values()} == {None}


def test_a_control_that_beats_one_seed_and_loses_to_another_is_not_told_apart(study):
    rows = study({"base": [1, 1, 1], "lora@toy": [-0.5, 0.2, 0.2]}, controls={"one": (0, 0)})
    assert rows["lora"]["vs_control_low"] < 0 < rows["lora"]["vs_control_high"]


def test_seeds_are_paired(study):
    rows = study({"base": [9, 0, 1], "lora@toy": [9, 0, 1], "other@toy": [8, -1, 0]})
    assert rows["other"]["difference_low"] == pytest.approx(1) == rows["other"]["difference_high"]


def test_the_method_of_reference_is_paired_with_nothing(study):
    rows = study({"base": [0], "lora@toy": [0], "other@toy": [0]})
    assert rows["lora"]["difference"] is None and rows["base"]["gain"] is None


def test_only_the_domains_own_adapters_are_compared(study):
    rows = study({"base": [0], "lora@toy": [0], "lora@other": [0], "pooled": [0]})
    assert set(rows) == {"base", "lora"}


@pytest.mark.parametrize(
    ("floor", "status"),
    [((N + 1, 1), "n < 41: too few records"), ((1, 21), "groups < 21: too few groups of records"), ((N, 20), "ok")],
)
def test_below_the_floor_no_method_has_a_number(study, floor, status):
    rows = study({"base": [1, 1], "lora@toy": [0.5, 0.5], "other@toy": [0, 0]}, controls={"one": (0, 0)}, floor=floor)
    assert set(rows) == {"base", "lora", "other", "one"}
    assert {(row["n"], row["n_groups"], row["status"]) for row in rows.values()} == {(N, 20, status)}
    parts = [f"{name}{end}" for name in ("gain", "vs_control", "difference") for end in ("", "_low", "_high")]
    assert {rows["other"][part] is None for part in ("value", "low", "high", *parts)} == {status != "ok"}


def test_beside_the_primary_metric_stands_what_rates_are_chosen_by_on_the_same_draws(study, tmp_path, monkeypatch):
    rank = Metric("rank", "", "up", "nll", lambda c: -float(c["nll"].mean()), primary=True)
    loss = Metric("loss", "nats", "down", "nll", lambda c: float(c["nll"].mean()), loss=True)
    columns = lambda rows, *_: {"nll": np.array([r["nll"] for r in rows])}  # noqa: E731
    found = SimpleNamespace(METRICS=(loss, rank), VERSION=3, TRAIN_KEYS=(), columns=columns)
    monkeypatch.setattr(registry, "load_module", lambda *_: found)
    study({"base": [1, 1], "lora@toy": [0.5, 0.5], "other@toy": [0.25, 0.25]}, controls={"one": (0, 0.6)})
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [row["metric"] for row in rows] == ["rank"] * 4 + ["loss"] * 4, "the primary one first"
    assert [row["primary"] for row in rows] == [True] * 4 + [False] * 4
    for first, second in zip(rows[:4], rows[4:]):
        assert first["adapter"] == second["adapter"] and first["value"] == pytest.approx(-second["value"])
        for part in ("gain", "difference_low", "difference_high", "vs_control_low"):
            assert first[part] == (None if second[part] is None else pytest.approx(second[part]))


def test_a_reference_that_was_not_asked_is_named(study):
    with pytest.raises(InputError, match=r"unknown system \(lara@toy\).*did you mean `lora@toy`"):
        study({"base": [0], "lora@toy": [0]}, against="lara")


def test_drawn_seeds_vary_a_mean_by_its_standard_error():
    spreads = {("a", run): np.full(4000, float(value)) for run, value in enumerate((0, 1, 5))}
    drawn = seed_distribution(spreads, "a", [0, 1, 2], seed=0)
    assert drawn.mean() == pytest.approx(2, abs=0.1)
    assert drawn.std() == pytest.approx(np.std([0, 1, 5]) / np.sqrt(3), rel=0.05)


def test_an_adapter_at_a_lower_rank_is_paired_with_its_control_and_nothing_else_is(study):
    cuts = {"wide": {"wide (rank 1)": "lora (SVD to rank 1)", "wide (rank 2)": None}}
    losses = {"lora": 0.5, "wide": 0.5, "wide (rank 1)": 0.75, "lora (SVD to rank 1)": 0.625, "wide (rank 2)": 0.6}
    rows = study({"base": [1, 1]} | {f"{name}@toy": [loss] * 2 for name, loss in losses.items()}, cuts=cuts)
    for part in ("", "_low", "_high"):
        assert rows["wide (rank 1)"][f"vs_svd{part}"] == pytest.approx(-0.125)
        assert rows["wide (rank 1)"][f"difference{part}"] == pytest.approx(-0.25)
        assert {row[f"vs_svd{part}"] for name, row in rows.items() if name != "wide (rank 1)"} == {None}
