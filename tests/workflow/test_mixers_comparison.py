"""Mixers against their controls: what a config may ask for, and the smallest study of them, run in this process."""

import csv
import json
from pathlib import Path

import pytest
from studies import ABSENT, changed, run_jobs, shipped
from test_dag import Plan

from loratory.config import MIXTURE_FIELDS, read_config
from loratory.errors import InputError
from loratory.registry import load_module, registered_names
from loratory.reporting.tables import CONTROL

DOMAINS = ("lncrna", "recsys")
SEEDS = [0, 1]
LEARNT = {"steps": 4, "learning_rates": [0.003, 0.01], "batch_tokens": 512}
MIXERS = {"uniform": {"mixer": "uniform"}, "xlora": {"mixer": "xlora"}, "one": {"mixer": "pooled", "rank": 4}}


def given() -> dict:
    return {"base": "mini_lm", "experts": dict.fromkeys(DOMAINS, "lora"), "training": LEARNT}


STUDY = {
    key: value
    for key, value in changed(
        shipped("test"),
        {
            "seeds": SEEDS,
            "adapters.lora.training": {"steps": 20, "learning_rates": [0.01], "batch_tokens": 512},
            "mixtures": {name: given() | mixer for name, mixer in MIXERS.items()},
            "compare_mixers": {"base": "mini_lm", "prompts": {"both": list(DOMAINS)}},
            "bases": {"mini_lm": shipped("config")["bases"]["mini_lm"]},
            "domains": {name: shipped("test")["domains"][name] for name in DOMAINS},
            **{f"domains.{domain}.adapters": {"mini_lm": ["lora"]} for domain in DOMAINS},
            "evaluation.max_records": 40,
        },
    ).items()
    if key not in ("pathvars", "general", "lifecycle", "folding")
}


def test_the_shipped_comparison_has_every_registered_mixer_and_the_controls_beside_them():
    config = read_config(shipped("mixers"), "mixers")
    assert {mixture.mixer for mixture in config.mixtures.values()} == set(registered_names("mixer"))
    assert len(config.seeds) >= 3
    ranks = [mixture.rank for mixture in config.mixtures.values() if mixture.mixer == "pooled"]
    given = config.adapters["lora"].rank
    assert ranks == [given, given * len(config.mixtures["uniform"].experts)]
    assert [name for name, mixture in config.mixtures.items() if mixture.needs_domain] == ["oracle", "slide_lora"]


@pytest.mark.parametrize("kind", registered_names("mixer"))
def test_no_option_of_a_mixer_is_hidden_by_one_that_every_mixture_has(kind):
    assert not {*load_module("mixer", kind).Mixer.model_fields} & {*MIXTURE_FIELDS}


def test_the_shipped_comparison_asks_all_mixtures_of_a_domain_in_one_job(tmp_path):
    config = shipped("mixers")
    jobs = Plan(config, tmp_path, targets=["compare_mixers"]).counts
    assert jobs["train_mixture"] == len(config["mixtures"])
    assert jobs["predict"] == jobs["train_sweep"] == len(config["domains"])
    assert jobs["contrast_mixers"] == jobs["tabulate_mixers"] == jobs["route_tokens"] == 1
    look = [m for m in read_config(config, "mixers").mixtures.values() if m.reads != "nothing"]
    assert jobs["draw_layers"] == jobs["draw_tokens"] == jobs["gather_routing"] == len(look)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compare_mixers.against": "unifrom"}, r"compare_mixers.against: unknown mixture.*did you mean `uniform`"),
        ({"compare_mixers.base": "mini_lma"}, r"compare_mixers.base: unknown base.*did you mean `mini_lm`"),
        (
            {"mixtures.xlora.experts.recsys": "other", "adapters.other": {"method": "lora"}}
            | {"domains.recsys.adapters.mini_lm": ["lora", "other"]},
            r"mixture xlora has other experts than uniform \(lora@lncrna, other@recsys\)",
        ),
        ({"compare_mixers.prompts.both": ["lncrna"]}, r"prompts.both: too few domains"),
        (
            {"compare_mixers.prompts.both": ["lncrna", "recsis"]},
            r"prompts.both: unknown domain.*did you mean `recsys`",
        ),
    ],
)
def test_a_comparison_that_cannot_be_made_is_refused_before_anything_runs(changes, message):
    with pytest.raises(InputError, match=message):
        read_config(changed(STUDY, changes), "study")


def test_what_is_heard_must_stand_first():
    prompts = {"compare_mixers.prompts": {"heard": ["protein", "speech"]}}
    with pytest.raises(InputError, match=r"prompts.heard: audio stands before all text \(speech\)"):
        read_config(changed(shipped("mixers"), prompts), "mixers")


def test_without_a_comparison_nothing_is_asked_of_mixers(tmp_path):
    plan = Plan(changed(STUDY, {"compare_mixers": ABSENT}), tmp_path, targets=["compare_mixers"])
    assert not plan.counts["train_mixture"]


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mixers")
    run_jobs(Plan(STUDY, folder, targets=["compare_mixers"]).jobs, folder)
    return folder / "results"


@pytest.fixture(scope="module")
def rows(results) -> dict:
    with open(results / "tables/mini_lm.mixers.tsv", newline="") as stream:
        found = [row for row in csv.DictReader(stream, delimiter="\t") if row["primary"] == "True"]
    return {(row["domain"], row["system"]): row for row in found}


def test_every_mixer_and_its_controls_are_compared_on_every_domain(results, rows):
    systems = {"base", *MIXERS, "xlora:shuffled"}
    report = json.loads((results / "contrasts/mini_lm.mixers.json").read_text())
    controls = {(domain, control["system"]) for domain, control in report["controls"].items()}
    best = {system for _, system in {*rows} - controls} - systems
    assert best <= {"lora@lncrna", "lora@recsys"} and len(best) <= 1
    assert set(rows) == {(domain, name) for domain in DOMAINS for name in systems | best} | controls
    lines = (results / "tables/mini_lm.mixers.md").read_text().splitlines()
    named = [line.split("|")[1].strip() for line in lines if line.startswith("| ") and "---" not in line]
    shown = [name for name in named if not name.startswith("best single")]
    assert shown == ["system", "base", CONTROL, "uniform", "xlora", "xlora:shuffled", "one"]


def test_each_is_paired_with_uniform_and_uniform_with_nothing(rows):
    for (_, system), row in rows.items():
        assert (row["difference"] == "") == (system == "uniform")


def test_recovery_is_that_of_the_gains(results, rows):
    report = json.loads((results / "contrasts/mini_lm.mixers.json").read_text())
    gains = {(row["domain"], row["system"]): row for row in report["rows"] if row["primary"]}
    for domain in DOMAINS:
        oracle = gains[domain, f"lora@{domain}"]
        if oracle["gain_low"] > 0:
            expected = gains[domain, "xlora"]["gain"] / oracle["gain"]
            assert float(rows[domain, "xlora"]["recovery"]) == pytest.approx(expected)
        else:
            assert rows[domain, "xlora"]["recovery"] == ""


def test_the_table_says_what_each_cost(rows):
    runs = {name: row for (domain, name), row in rows.items() if domain == "lncrna"}
    assert float(runs["uniform"]["trainable"]) == 0 < float(runs["xlora"]["trainable"])
    assert float(runs["one"]["trainable"]) == float(runs["one"]["stored"]) > 0
    experts = float(runs["uniform"]["stored"])
    assert experts == float(runs["one"]["stored"])  # two of rank 2, and one of rank 4
    assert float(runs["xlora"]["stored"]) == experts + float(runs["xlora"]["trainable"])
    assert [name for name, row in runs.items() if row["first_pass"] == "True"] == ["xlora"]
    assert float(runs["base"]["read_per_second"]) > float(runs["xlora"]["read_per_second"]) > 0


def test_uniform_weights_as_a_mixture_and_as_a_control_say_the_same(results):
    for domain in DOMAINS:
        known = json.loads((results / f"predictions/data/{domain}/mini_lm/seed0.costs.json").read_text())
        assert {"uniform:uniform", "xlora:uniform", "one:uniform"} < set(known)
        assert known["one:uniform"] == known["xlora:uniform"]


def test_a_mixture_that_looks_at_its_input_is_drawn_by_layer_and_by_token(results):
    figures = {path.name for path in (results / "figures").glob("*.svg")}
    assert {"xlora.layers.svg", "xlora.tokens.svg"} <= figures and not {"uniform.layers.svg"} & figures
    found = json.loads((results / "predictions/tokens/mini_lm.json").read_text())
    routed = found["xlora"]["both"]
    assert list(dict.fromkeys(routed["domains"])) == list(DOMAINS) == routed["experts"]
    assert len(routed["tokens"]) == len(routed["weights"]) > 10
