import time

import numpy as np
import pytest

from loratory.evaluation.bootstrap import (
    LEVEL,
    bootstrap_distributions,
    group_draws,
    percentile_interval,
    row_statistic,
)


def mean(columns):
    return float(np.mean(columns["x"])) if len(columns["x"]) else float("nan")


def ratio(columns):
    return float(columns["x"].sum() / columns["y"].sum())


def spread(value, seeds, groups, times=1000, seed=0):
    return bootstrap_distributions({"it": row_statistic(value, seeds)}, groups, times, seed)["it"]


def names(codes):
    return [f"g{code}" for code in codes]


def test_interval_covers_a_known_mean_about_as_often_as_it_says():
    generator = np.random.default_rng(1)
    groups = names(range(60))
    hits = 0
    for _ in range(200):
        x = generator.normal(3.0, 2.0, size=60)
        low, high = percentile_interval(spread(mean, [{"x": x}], groups, times=250))
        hits += low <= 3.0 <= high
    assert 0.90 <= hits / 200 <= 0.98


def test_groups_of_one_record_give_the_closed_form_of_a_mean():
    x = np.random.default_rng(2).exponential(size=150)
    values = spread(mean, [{"x": x}], names(range(150)), times=20_000)
    standard_error = x.std() / np.sqrt(len(x))
    assert values.mean() == pytest.approx(x.mean(), abs=4 * standard_error / np.sqrt(20_000))
    assert values.std() == pytest.approx(standard_error, rel=0.03)
    low, high = percentile_interval(values)
    assert (low, high) == pytest.approx((x.mean() - 1.96 * standard_error, x.mean() + 1.96 * standard_error), abs=0.02)


def test_correlated_groups_widen_the_interval_as_the_design_effect_says():
    generator = np.random.default_rng(3)
    codes = np.repeat(np.arange(80), 5)
    x = generator.normal(size=80)[codes] + generator.normal(size=400) * 0.3
    grouped = spread(mean, [{"x": x}], names(codes), times=2000).std()
    naive = spread(mean, [{"x": x}], names(range(400)), times=2000).std()
    group_means = x.reshape(80, 5).mean(axis=1)
    assert grouped > 1.8 * naive
    assert grouped == pytest.approx(group_means.std() / np.sqrt(80), rel=0.06)


def test_draws_hold_whole_groups_of_any_size_wherever_their_rows_stand():
    groups = names([2, 0, 1, 2, 0, 2, 7])
    members = {g: sorted(i for i, h in enumerate(groups) if h == g) for g in groups}
    seen = set()
    for rows in group_draws(groups, 200, seed=4):
        counts = np.bincount(rows, minlength=len(groups))
        for rows_of_group in members.values():
            assert len(set(counts[rows_of_group])) == 1
        assert sum(counts[rows_of_group[0]] for rows_of_group in members.values()) == len(members)
        seen.update(rows.tolist())
    assert seen == set(range(7))


def test_difference_of_a_system_with_itself_is_exactly_zero():
    x = np.random.default_rng(5).normal(size=50)
    both = {"a": row_statistic(mean, [{"x": x}]), "b": row_statistic(mean, [{"x": x.copy()}])}
    found = bootstrap_distributions(both, names(np.arange(50) % 20), 500, 0)
    assert percentile_interval(found["a"] - found["b"]) == (0.0, 0.0)


def test_pairing_sees_a_small_steady_gain_that_separate_intervals_hide():
    x = np.random.default_rng(6).normal(size=100)
    found = bootstrap_distributions(
        {"a": row_statistic(mean, [{"x": x}]), "b": row_statistic(mean, [{"x": x + 0.05}])}, names(range(100)), 500, 0
    )
    low, high = percentile_interval(found["b"] - found["a"])
    assert low == pytest.approx(0.05) and high == pytest.approx(0.05)
    assert percentile_interval(found["b"])[0] < percentile_interval(found["a"])[1]


def test_seeds_are_averaged_inside_each_draw():
    generator = np.random.default_rng(7)
    x, y = generator.normal(size=(2, 40))
    groups = names(range(40))
    pooled = spread(mean, [{"x": x}, {"x": y}], groups)
    assert pooled == pytest.approx(spread(mean, [{"x": (x + y) / 2}], groups))
    opposite = spread(mean, [{"x": x}, {"x": -x}], groups)
    assert opposite == pytest.approx(np.zeros(1000), abs=1e-12)


def test_ratio_of_sums_is_recomputed_not_averaged():
    x, y = np.array([0.0, 9.0]), np.array([1.0, 9.0])
    values = spread(ratio, [{"x": x, "y": y}], ["a", "b"], times=200)
    assert set(np.round(values, 12)) == {0.0, 1.0, 0.9}


def test_same_seed_same_draws_whatever_else_is_computed():
    x = np.random.default_rng(8).normal(size=30)
    groups = names(np.arange(30) // 2)
    alone = spread(mean, [{"x": x}], groups, times=50, seed=9)
    many = bootstrap_distributions({k: row_statistic(mean, [{"x": x * k}]) for k in (1, 2, 3)}, groups, 50, 9)
    assert np.array_equal(alone, many[1])
    assert not np.array_equal(alone, spread(mean, [{"x": x}], groups, times=50, seed=10))


def test_undefined_stays_undefined():
    nan = float("nan")
    assert np.isnan(percentile_interval(spread(lambda columns: nan, [{"x": np.ones(4)}], list("abcd"), 20))).all()
    assert np.isnan(percentile_interval(spread(mean, [{"x": np.ones(4)}], list("aaaa"), 20))).all(), (
        "one group cannot vary"
    )
    assert np.isnan(percentile_interval(spread(mean, [{"x": np.ones(0)}], [], 20))).all()
    mostly = np.r_[np.full(4, nan), np.arange(96)]
    assert percentile_interval(mostly) == pytest.approx(tuple(np.percentile(np.arange(96), [2.5, 97.5])))
    assert np.isnan(percentile_interval(np.r_[np.full(6, nan), np.arange(94)])).all()
    assert LEVEL == 0.95


def test_a_table_of_systems_takes_seconds():
    generator = np.random.default_rng(10)
    groups = names(np.arange(200) // 2)
    columns = [{"x": generator.normal(size=200), "y": generator.random(200) + 1} for _ in range(15)]
    cells = {(i, j): row_statistic(ratio, [c]) for i, c in enumerate(columns) for j in range(6)}
    start = time.process_time()
    bootstrap_distributions(cells, groups, 1000, 0)
    assert time.process_time() - start < 5
