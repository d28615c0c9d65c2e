"""Methods against one another on the smallest study, run in this process: one budget, two tables and two figures."""

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from studies import changed, run_jobs, shipped
from test_dag import Plan

from loratory.reporting.tables import CONTROL

METHODS = {
    "lora": {"method": "lora", "rank": 2},
    "dylora": {"method": "dylora", "rank": 2},
    "full_ft": {"method": "full_ft"},
}
CUTS = ["dylora (rank 1)", "lora (SVD to rank 1)"]
LINES = ["lora", "dylora", *CUTS, "full_ft"]
TRAINING = {"steps": 6, "learning_rates": [0.001, 0.01], "batch_tokens": 512}
DOMAINS = ("lncrna", "recsys")
SEEDS = [0, 1]
STUDY = {
    key: value
    for key, value in changed(
        shipped("test"),
        {
            "seeds": SEEDS,
            "adapters": {name: entry | {"training": TRAINING} for name, entry in METHODS.items()},
            "compare": {"base": "mini_lm"},
            "bases": {"mini_lm": shipped("config")["bases"]["mini_lm"]},
            "domains": {name: shipped("test")["domains"][name] for name in DOMAINS},
            **{f"domains.{domain}.adapters": {"mini_lm": list(METHODS)} for domain in DOMAINS},
            "evaluation.max_records": 40,
        },
    ).items()
    if key not in ("pathvars", "general", "mixtures", "lifecycle", "folding")
}


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("comparison")
    run_jobs(Plan(STUDY, folder, targets=["compare_methods"]).jobs, folder)
    return folder / "results"


def curve_points(results: Path, domain: str) -> list[dict]:
    return pq.read_table(results / f"adapters/{domain}/mini_lm/lora/runs.parquet").to_pylist()


def table(results: Path, name: str) -> list[dict]:
    with open(results / f"tables/mini_lm.{name}.tsv", newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def test_every_method_is_compared_on_every_domain(results):
    contrasts = {domain: json.loads((results / f"contrasts/{domain}/mini_lm.json").read_text()) for domain in DOMAINS}
    controls = {domain: report["control"]["system"] for domain, report in contrasts.items()}
    assert sorted((row["domain"], row["metric"], row["adapter"]) for row in table(results, "methods")) == sorted(
        (domain, metric, name)
        for domain in DOMAINS
        for metric in ("auc", "log_loss")
        for name in ["base", controls[domain], *LINES]
    )
    lines = (results / "tables/mini_lm.methods.md").read_text().splitlines()
    head, _, *named = [line.split("|")[1].strip() for line in lines if line.startswith("| ")]
    assert [head, *named] == ["method", "base", CONTROL, *LINES]


def test_each_is_paired_with_lora_and_lora_with_nothing(results):
    for row in table(results, "methods"):
        assert (row["difference"] == "") == (row["adapter"] == "lora")


def test_a_method_for_many_ranks_is_held_against_a_lora_cut_by_svd(results):
    for row in table(results, "methods"):
        assert bool(row["vs_svd"]) == (row["adapter"] == CUTS[0])
    assert f"{CUTS[0]} is better than {CUTS[1]} by" in (results / "tables/mini_lm.methods.md").read_text()


def test_every_run_saw_the_same_targets_and_says_what_it_cost(results):
    runs = {path: json.loads(path.read_text()) for path in results.glob("adapters/*/*/*/seed*/run.json")}
    assert len(runs) == len(DOMAINS) * len(METHODS) * len(SEEDS)
    targets = {(run["domain"], run["seed"], run["train_info"]["targets"]) for run in runs.values()}
    assert len(targets) == len(DOMAINS) * len(SEEDS)
    for run in runs.values():
        assert {"run_info", "train_info", "meta_info"} <= set(run)
        assert run["train_info"]["flops"] > 0
        assert run["run_info"]["total_time"] > 0
    costs = {(row["domain"], row["adapter"]): row for row in table(results, "costs")}
    for domain in DOMAINS:
        lora, whole = (costs[domain, name] for name in ("lora", "full_ft"))
        assert float(lora["flops"]) < float(whole["flops"])
        assert float(lora["num_trainable_params"]) < float(whole["num_trainable_params"])


def test_the_figures_are_drawn(results):
    rates = {row["learning_rate"] for domain in DOMAINS for row in curve_points(results, domain)}
    assert rates == {*TRAINING["learning_rates"]}, "whatever rate a step was scheduled"
    for name in ("rates", "pareto"):
        drawn = (results / f"figures/mini_lm.{name}.svg").read_text()
        assert all(domain in drawn for domain in DOMAINS)
        assert "lora" in drawn
