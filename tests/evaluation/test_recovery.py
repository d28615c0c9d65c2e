"""Recovery: shares of the oracle's gain, paired over records, seeds and, in the mean, domains."""

import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loratory import registry
from loratory.domains.contract import Metric
from loratory.errors import InputError
from loratory.evaluation.contrast import PairedComparison
from loratory.evaluation.recovery import (
    DomainPredictions,
    contrast_mixers,
    mean_recoveries,
    measure_recovery,
    system_recoveries,
)
from loratory.evaluation.rows import write_rows
from loratory.evaluation.score import Floor, score_domain

N, SEEDS = 40, (0, 1)
METRICS = {"rise": "up", "fall": "down"}  # domain: where better is
EXPERTS = {"rise": "lora", "fall": "lora"}
SYSTEMS = ("base", "lora@rise", "lora@fall", "mix:uniform", "mix:oracle", "mix:shuffled", "mix", "plain")


@pytest.fixture(autouse=True)
def domains(monkeypatch):
    """Two domains whose one metric is the mean of `nll`: the higher, or the lower the better."""

    def load(noun, domain, part):
        metric = Metric("mean", "nats", METRICS[domain], "nll", lambda c: float(c["nll"].mean()), primary=True)
        columns = lambda rows, *_: {"nll": np.array([r["nll"] for r in rows])}  # noqa: E731
        return SimpleNamespace(METRICS=(metric,), VERSION=3, TRAIN_KEYS=(), columns=columns)

    monkeypatch.setattr(registry, "load_module", load)


@pytest.fixture
def recovered(tmp_path):
    """Makes the report of a study in which each system is better than the base by what `gains` says, the same for all
    records but for `noise`, which all systems share."""

    def report(
        gains: dict,
        noise=1.0,
        mixtures=("mix", "plain"),
        against="plain",
        systems=SYSTEMS,
        controls=None,
        n=None,
        on_valid=None,
    ):
        """`controls`: {domain: {baseline: its gain over the base}}; `n`: {domain: its records}, N if not given;
        `on_valid`: the gains there, where they are others."""
        asked, at = {}, {"test": gains, "valid": on_valid or gains}
        for domain, direction in METRICS.items():
            size = (n or {}).get(domain, N)
            folder = tmp_path / domain
            folder.mkdir()
            records = [{"id": f"r{i:02}", "group": f"g{i // 2}"} for i in range(size)]
            for split in ("test", "valid"):
                pq.write_table(pa.Table.from_pylist(records), folder / f"{split}.parquet")
            own = np.random.default_rng(len(domain)).normal(3, noise, size)
            files = {}
            for seed in SEEDS:
                rows = [
                    {"split": split, "system": name, "kind": "adapter", "reference": "", "tokens": 1}
                    | records[i]
                    | {"nll": own[i] + (1 if direction == "up" else -1) * told(at[split], name, domain, seed, i)}
                    for split in ("test", "valid")
                    for name in systems
                    if split == "test" or name == "base" or "@" in name
                    for i in range(size)
                ]
                files[seed] = folder / f"seed{seed}.parquet"
                write_rows(files[seed], rows)
            sign = 1 if direction == "up" else -1
            rows = [
                {"split": split, "system": name, "kind": "baseline", "reference": "", "tokens": 1}
                | records[i]
                | {"nll": own[i] + sign * gain}
                for split in ("test", "valid")
                for name, gain in (controls or {}).get(domain, {}).items()
                for i in range(size)
            ]
            write_rows(folder / "baselines.parquet", rows)
            asked[domain] = DomainPredictions(files, folder, None, folder / "baselines.parquet")
        contrast_mixers("mini", asked, EXPERTS, mixtures, against, 200, 0, Floor(10, 3), tmp_path / "out.json")
        measure_recovery("mini", asked, EXPERTS, "mix", 200, 0, Floor(10, 3), tmp_path / "mix.json")
        return json.loads((tmp_path / "out.json").read_text())

    return report


def measured(tmp_path) -> dict:
    """What `measure_recovery` wrote of the mixture `mix`."""
    return json.loads((tmp_path / "mix.json").read_text())


def told(gains, name, domain, seed, i) -> float:
    """The gain of a system: a number, or a function of (domain, seed, record)."""
    gain = gains.get(name, 0.0)
    if name == f"lora@{domain}":
        gain = gains.get("own", 2.0)
    return gain(domain, seed, i) if callable(gain) else gain


def rows_of(report) -> dict:
    return {(row["domain"], row["system"]): row for row in report["rows"]}


def test_recovery_is_the_share_of_the_own_experts_gain_whichever_way_the_metric_points(recovered):
    rows = rows_of(recovered({"mix": 1.5, "plain": 0.5, "mix:shuffled": -1.0}))
    for domain in METRICS:
        shares = {name: rows[domain, name]["recovery"] for name in ("base", "mix", "plain", "mix:shuffled")}
        assert shares == pytest.approx({"base": 0, "mix": 0.75, "plain": 0.25, "mix:shuffled": -0.5})
        assert rows[domain, f"lora@{domain}"]["recovery"] == pytest.approx(1)
        assert rows[domain, "mix"]["difference"] == pytest.approx(1)
        assert rows[domain, "plain"]["difference"] is None


def test_the_best_control_of_each_domain_recovers_its_share_and_joins_no_mean(recovered):
    controls = {"rise": {"good": 1.0, "poor": 0.1}, "fall": {"good": 3.0}}
    report = recovered({"mix": 1.5}, controls=controls)
    assert report["controls"] == {domain: {"system": "good", "split": "valid"} for domain in METRICS}
    rows = rows_of(report)
    assert (rows["rise", "good"]["recovery"], rows["fall", "good"]["recovery"]) == pytest.approx((0.5, 1.5))
    assert rows["rise", "mix"]["vs_control_low"] == pytest.approx(0.5)
    assert rows["fall", "mix"]["vs_control_high"] == pytest.approx(-1.5)
    assert rows["rise", "good"]["vs_control"] is None and ("rise", "poor") not in rows
    assert "good" not in {row["system"] for row in report["means"]}, "of two domains, it is not one system"


def test_what_all_systems_share_does_not_blur_the_ratio(recovered):
    row = rows_of(recovered({"mix": 1.5}))["fall", "mix"]
    assert row["high"] - row["low"] > 0.3
    assert row["recovery_low"] == pytest.approx(0.75) == row["recovery_high"]


def test_the_interval_is_of_the_ratio_and_not_of_the_difference(recovered):
    each = np.random.default_rng(1).normal(2, 1.5, N)
    rows = rows_of(recovered({"own": lambda d, s, i: each[i], "mix": lambda d, s, i: each[i] / 2}))
    found = rows["rise", "mix"]
    assert found["gain_high"] - found["gain_low"] > 0.2
    for part in ("recovery", "recovery_low", "recovery_high"):
        assert found[part] == pytest.approx(0.5)


def test_seeds_that_differ_widen_the_interval(recovered):
    row = rows_of(recovered({"mix": lambda d, seed, i: 2.0 * seed}))["rise", "mix"]
    assert row["recovery"] == pytest.approx(0.5)
    assert (row["recovery_low"], row["recovery_high"]) == pytest.approx((0, 1))


def test_where_the_oracle_may_gain_nothing_there_is_nothing_to_recover(recovered):
    nothing = {"own": lambda domain, seed, i: 2.0 if domain == "rise" else (-1) ** (i // 2), "mix": 1.0}
    report = recovered(nothing)
    rows = rows_of(report)
    assert rows["fall", "mix"]["recovery"] is None is rows["fall", "lora@fall"]["recovery_low"]
    assert rows["fall", "mix"]["difference"] == pytest.approx(1)
    [mean] = [row for row in report["means"] if row["system"] == "mix"]
    assert mean["recovery"] == rows["rise", "mix"]["recovery"] == pytest.approx(0.5)
    assert (mean["over"], mean["domains"]) == (1, 2), "of one of two domains"
    status = {domain: rows[domain, "mix"]["recovery_status"] for domain in METRICS}
    assert status == {"rise": "ok", "fall": "undefined: the oracle may gain nothing"}


def test_a_mean_recovery_is_over_domains_draw_by_draw(recovered):
    report = recovered({"mix": lambda domain, seed, i: 2.0 * seed if domain == "rise" else 1.0})
    [mean] = [row for row in report["means"] if row["system"] == "mix"]
    assert (mean["recovery"], mean["over"], mean["domains"]) == (pytest.approx(0.5), 2, 2)
    assert (mean["recovery_low"], mean["recovery_high"]) == pytest.approx((0.25, 0.75))


def test_a_domain_below_the_floor_has_no_number_and_joins_no_mean(recovered):
    report = recovered({"mix": 1.5}, n={"rise": 8}, controls={"rise": {"good": 1.0}})
    rows = rows_of(report)
    kinds = ("value", "gain", "diff", "vs_")
    numbers = [key for key in rows["rise", "mix"] if key.startswith(kinds)]
    numbers += ["recovery", "recovery_low", "recovery_high"]
    few = {system: row for (domain, system), row in rows.items() if domain == "rise"}
    assert {"mix", "base", "good", "lora@rise"} < set(few) and len(numbers) == 13
    assert {row[name] for row in few.values() for name in numbers} == {None}
    assert {(row["n"], row["status"]) for row in few.values()} == {(8, "n < 10: too few records")}
    assert {(row["recovery_n"], row["recovery_status"]) for row in few.values()} == {(8, "n < 10: too few records")}
    assert {row["value"] for row in report["valid"] if row["domain"] == "rise"} == {None}
    [mean] = [row for row in report["means"] if row["system"] == "mix"]
    assert mean["recovery"] == rows["fall", "mix"]["recovery"] == pytest.approx(0.75)
    assert (mean["over"], mean["domains"]) == (1, 2)


def test_recovery_by_loss_stands_beside_that_by_the_primary_metric_where_they_are_two(
    recovered, tmp_path, monkeypatch
):
    """On `rise` rates are chosen by another metric than systems are ranked by, on `fall` by the same one."""
    mean = lambda c: float(c["nll"].mean())  # noqa: E731
    rank = Metric("rank", "", "up", "nll", lambda c: mean(c) ** 3, primary=True)
    metrics = {"rise": (rank, Metric("loss", "nats", "down", "nll", lambda c: -mean(c), loss=True))}
    metrics["fall"] = (Metric("mean", "nats", "down", "nll", mean, primary=True, loss=True),)
    columns = lambda rows, *_: {"nll": np.array([r["nll"] for r in rows])}  # noqa: E731
    load = lambda noun, name, part: SimpleNamespace(METRICS=metrics[name], VERSION=1, TRAIN_KEYS=(), columns=columns)  # noqa: E731
    monkeypatch.setattr(registry, "load_module", load)
    report = recovered({"mix": 1.0}, noise=0.1)
    for found in (report, measured(tmp_path)):
        shares = {(row["domain"], row["metric"]): row["recovery"] for row in found["rows"] if row["system"] == "mix"}
        assert shares["rise", "loss"] == shares["fall", "mean"] == pytest.approx(0.5) != shares["rise", "rank"]
        means = {name: {row["system"]: row for row in found[name]}["mix"] for name in ("means", "loss_means")}
        assert means["loss_means"]["recovery"] == pytest.approx(0.5)
        assert means["means"]["recovery"] == pytest.approx((0.5 + shares["rise", "rank"]) / 2)
        assert {(mean["over"], mean["domains"]) for mean in means.values()} == {(2, 2)}


def test_a_domain_whose_loss_is_not_among_its_metrics_joins_no_mean_by_loss(recovered):
    report = recovered({"mix": 1.0})
    assert report["loss_means"] == [] and len(report["means"]) > 0


def test_training_seeds_are_drawn_alike_in_all_domains(recovered):
    opposed = {"rise": 1, "fall": -1}
    report = recovered({"mix": lambda domain, seed, i: 1.0 + opposed[domain] * seed})
    [mean] = [row for row in report["means"] if row["system"] == "mix"]
    assert rows_of(report)["rise", "mix"]["recovery_high"] > rows_of(report)["rise", "mix"]["recovery_low"]
    assert mean["recovery_low"] == pytest.approx(0.5) == mean["recovery_high"]


def test_groups_of_different_domains_are_not_drawn_alike(recovered):
    each, opposed = np.random.default_rng(2).normal(0, 1, N), {"rise": 1, "fall": -1}
    report = recovered({"mix": lambda domain, seed, i: 1.0 + opposed[domain] * each[i]})
    [mean] = [row for row in report["means"] if row["system"] == "mix"]
    assert mean["recovery_high"] - mean["recovery_low"] > 0.1


def test_valid_rows_are_of_the_base_and_the_experts_alone(recovered):
    report = recovered({})
    assert {row["system"] for row in report["valid"]} == {"base", "lora@rise", "lora@fall"}
    assert {row["split"] for row in report["valid"]} == {"valid"}


def test_controls_of_single_mixtures_are_left_to_mixtures_of_that_kind(recovered):
    assert {system for _, system in rows_of(recovered({}))} == {*SYSTEMS} - {"mix:uniform", "mix:oracle"}


def test_a_mixture_that_was_not_asked_is_named(recovered):
    with pytest.raises(
        InputError, match=r"unknown system \(mixt\); expected one of base, lora@fall, lora@rise, plain"
    ):
        recovered({}, mixtures=("mixt", "plain"))


def test_a_base_that_was_not_asked_leaves_nothing_to_gain(recovered):
    with pytest.raises(InputError, match=r"unknown system \(base\)"):
        recovered({}, systems=SYSTEMS[1:])


def test_draws_without_a_gain_of_the_oracle_have_no_recovery():
    metric = Metric("mean", "nats", "up", "nll", None, primary=True)
    gains = np.r_[np.full(99, 2.0), -2.0]
    spreads = {"base": np.zeros(100), "own": gains, "mix": np.ones(100)}
    values = {"base": {0: 0.0}, "own": {0: 2.0}, "mix": {0: 1.0}}
    value, draws = system_recoveries(PairedComparison(metric, "test", {}, {}, values, spreads, [0]), "own")["mix"]
    assert value == 0.5
    np.testing.assert_array_equal(draws, np.r_[np.full(99, 0.5), np.nan])


def test_without_any_domain_to_recover_in_there_is_no_mean():
    assert mean_recoveries([{}, {}]) == []


def test_a_summary_and_a_comparison_of_mixers_recover_the_same(recovered, tmp_path):
    report = recovered({"mix": lambda domain, seed, i: 1.0 + seed}, controls={"rise": {"good": 1.0}})
    summed = measured(tmp_path)
    compared = {key: row for key, row in rows_of(report).items() if key[1] != "plain"}
    for row in summed["rows"]:
        if not row["system"].endswith((":uniform", ":oracle")):
            other = compared.pop((row["domain"], row["system"]))
            assert {name: other[name] for name in row} == row and row["recovery_n"] == N
    assert not compared
    means = {row["system"]: row for row in report["means"]}
    assert all(means[row["system"]] == row for row in summed["means"] if row["system"] in means)
    assert summed["best_single"] == report["best_single"]


def test_a_gain_that_hangs_on_the_seed_is_nothing_to_recover_in_either(recovered, tmp_path):
    """Of the oracle's gain on `rise`, 4 with one seed and −1 with the other, records leave no doubt but seeds do."""
    report = recovered({"own": lambda domain, seed, i: 4.0 - 5 * seed if domain == "rise" else 2.0, "mix": 1.0})
    score_domain(
        "rise",
        "mini",
        {seed: tmp_path / "rise" / f"seed{seed}.parquet" for seed in SEEDS},
        None,
        tmp_path / "rise",
        None,
        None,
        200,
        0,
        Floor(10, 3),
        tmp_path / "score.json",
    )
    scored = json.loads((tmp_path / "score.json").read_text())
    assert {"rise": scored["metrics_version"], "fall": 3} == report["metrics_versions"]
    scored = scored["rows"]
    assert [row["gain_low"] for row in scored if row["system"] == "lora@rise" and row["split"] == "test"] > [0]
    shares = {(row["domain"], row["system"]): row["recovery"] for row in measured(tmp_path)["rows"]}
    for domain, expected in (("rise", None), ("fall", pytest.approx(0.5))):
        assert shares[domain, "mix"] == rows_of(report)[domain, "mix"]["recovery"] == expected


def test_the_best_single_expert_is_chosen_on_valid_by_its_mean_recovery(recovered, tmp_path):
    report = recovered({"lora@fall": 1.5, "lora@rise": 0.5})
    assert report["best_single"] == measured(tmp_path)["best_single"] == "lora@fall"


def test_what_test_says_of_single_experts_chooses_none(recovered, tmp_path):
    report = recovered({"lora@fall": 1.5, "lora@rise": 0.5}, on_valid={"lora@fall": 0.5, "lora@rise": 1.5})
    assert report["best_single"] == measured(tmp_path)["best_single"] == "lora@rise"
    means = {row["system"]: row["recovery"] for row in report["valid_means"]}
    assert means["lora@rise"] == pytest.approx((1 + 0.75) / 2) and means["lora@fall"] == pytest.approx((0.25 + 1) / 2)


def test_without_anything_to_recover_on_valid_no_expert_is_the_best(recovered):
    assert recovered({"own": -1.0})["best_single"] is None


def test_a_mixtures_controls_are_measured_with_it_and_other_mixtures_are_not(recovered, tmp_path):
    recovered({})
    names = {row["system"] for row in measured(tmp_path)["rows"]}
    assert names == {*SYSTEMS} - {"plain"}
