"""Generated proteins beside each other and beside what was learnt from, held against values known by construction."""

import math
import random

import numpy as np
import pytest
from scipy.stats import ks_2samp

from loratory.data.alphabets import RESIDUES
from loratory.domains.protein import metrics
from loratory.domains.protein.samples import compare_with_train, share_clusters
from loratory.domains.protein.sources import Task


def protein(seed: int, length: int = 100) -> str:
    return "".join(random.Random(seed).choices(RESIDUES, k=length))


def mutant(sequence: str, share: float, seed: int = 0) -> str:
    """With so many of its residues, evenly spread, exchanged for another."""
    places = {round(i / share) for i in range(round(share * len(sequence)))}
    rng = random.Random(seed)
    return "".join(rng.choice(RESIDUES.replace(r, "")) if i in places else r for i, r in enumerate(sequence))


TRAIN = [protein(seed) for seed in range(20)]


@pytest.mark.parametrize(
    ("sample", "novelty"),
    [
        (TRAIN[3], 0),
        (mutant(TRAIN[3], 0.1), 0.1),
        (mutant(TRAIN[3], 0.3), 0.3),
        (TRAIN[3][20:70], 0),  # a fragment of a record is not new
        (protein(99, 30) + TRAIN[3] + protein(98, 30), 0),  # nor is a record that was made longer
    ],
)
def test_novelty_is_what_differs_from_the_nearest_record(sample, novelty):
    found = compare_with_train({"s": sample}, [*TRAIN, mutant(TRAIN[3], 0.5)])["s"]
    assert found["novelty"] == pytest.approx(novelty, abs=0.03)


def test_a_shared_domain_is_not_what_most_of_a_sample_is():
    sample = protein(99, 150) + TRAIN[3][:40] + protein(98, 150)
    assert compare_with_train({"s": sample}, TRAIN)["s"]["novelty"] == 1


def test_as_many_samples_as_share_a_cluster_count_as_one():
    samples = {"a": TRAIN[0], "b": TRAIN[0], "c": mutant(TRAIN[0], 0.2), "d": TRAIN[1], "e": mutant(TRAIN[0], 0.7)}
    assert share_clusters(samples) == {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3, "d": 1, "e": 1}


@pytest.mark.parametrize("spread", [(50, 60), (80, 120), (150, 160)])
def test_the_distance_of_lengths_is_the_statistic_of_kolmogorov_and_smirnov(spread):
    rng = np.random.default_rng(0)
    train, samples = ([int(n) for n in rng.integers(*ends, size)] for ends, size in (((60, 140), 50), (spread, 30)))
    rows = [metrics_row(protein(i, n)) for i, n in enumerate(samples)]
    columns = metrics.columns(rows, [{"sequence": protein(100 + i, n)} for i, n in enumerate(train)], Task())
    expected = ks_2samp(samples, train, method="asymp").statistic
    assert value("length_distance", columns) == pytest.approx(expected, abs=1e-9)


def metrics_row(sequence: str, closed: bool = True) -> dict:
    text = {"text": sequence + ">" * closed}
    return dict.fromkeys(("reference", "nll", "tokens", "p")) | {"id": sequence[:9], "group": "g"} | text


def value(name: str, columns) -> float:
    return next(metric for metric in metrics.METRICS if metric.name == name).compute_value(columns)


def test_only_valid_samples_are_compared():
    """A loop is like no record, and as good as nothing."""
    rows = [
        metrics_row(TRAIN[0]),
        metrics_row(TRAIN[1]),
        metrics_row("A" * 100),
        metrics_row(protein(50), closed=False),
    ]
    columns = metrics.columns(rows, [{"sequence": sequence} for sequence in TRAIN], Task())
    assert np.isnan(columns["novelty"]).tolist() == [False, False, True, True]
    assert (value("novelty", columns), value("diversity", columns)) == (0, 1)


def test_without_records_or_valid_samples_there_is_no_number_and_nothing_is_searched(monkeypatch):
    alone = metrics.columns([metrics_row(TRAIN[0])], [], Task())
    assert math.isnan(value("novelty", alone)) and value("diversity", alone) == 1
    monkeypatch.setattr("loratory.data.mmseqs.run_mmseqs", lambda *_: pytest.fail("searched"))
    none = metrics.columns([metrics_row("A" * 100)], [{"sequence": TRAIN[0]}], Task())
    assert all(math.isnan(value(name, none)) for name in ("novelty", "diversity", "length_distance"))
