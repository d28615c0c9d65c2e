"""A folding base is judged: each residue's confidence beside what it is true to, and what that says of the base."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from folding_model import save_folding_model
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from scipy.stats import spearmanr

from loratory.bases.families import folding
from loratory.domains.structure import build, metrics
from loratory.domains.structure.sources import Dataset
from loratory.errors import InputError
from loratory.evaluation.assess import RESIDUES, assess_folding, chain_scores, hold_floor, residue_lddt
from loratory.evaluation.score import Floor

SEQUENCES = [
    "ACDEFGHIKLMNPQRSTVWYACDEFGHIKL",
    "MKTAYIAKQRQISFVKSHFSRQLEERL",
    "GWLPEGSHMKAANDTVVRRLFEEYYKK",
    "WWHHIIPPLLAASSTTVVNN",
]
NAMES = ("spearman", "chain_spearman", "lddt", "plddt", "calibration_error", "tm_score", "self_consistency", "rmsd")


def record(number: int, backbone, origin="experiment", **more) -> dict:
    sequence = SEQUENCES[number]
    flat = np.asarray(backbone, np.float32).ravel().tolist()
    own = {"sequence": sequence, "length": len(sequence), "backbone": flat, "origin": origin}
    return {"id": f"c{number}", "group": f"g{number}", **own, **more}


def saved(folder, records, split="test"):
    folder.mkdir(parents=True, exist_ok=True)
    columns = {"id": pa.string(), "group": pa.string()} | {
        name: pa.type_for_alias(kind) if isinstance(kind, str) else kind for name, kind in build.COLUMNS.items()
    }
    pq.write_table(pa.Table.from_pylist(records, pa.schema(columns)), folder / f"{split}.parquet")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_folding_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def folds(folder) -> list:
    """What the base makes of each sequence: the truth of these tests, bent as they need it."""
    model = folding.load_folding_model(folder)
    return [folding.fold_sequence(model, sequence) for sequence in SEQUENCES]


def backbone(structure) -> np.ndarray:
    return structure.coordinates[:, [0, 1, 2, 4]]


def assess(folder, data, out, learnt=None, limit=None, floor=(1, 1), max_length=None) -> tuple[list[dict], dict]:
    out.mkdir(exist_ok=True)
    residues, report = out / "residues.parquet", out / "metrics.json"
    drawn = (200, 0, Floor(*floor))
    assess_folding(
        "structure", "mini", data, folder, learnt, Dataset(), limit, *drawn, residues, report, max_length=max_length
    )
    assert pq.read_schema(residues).equals(RESIDUES)
    return pq.read_table(residues).to_pylist(), json.loads(report.read_text())


def test_a_prediction_that_is_true_is_found_to_be_so(folder, folds, tmp_path):
    records = [record(k, backbone(fold), "simulated" if k % 2 else "experiment") for k, fold in enumerate(folds)]
    residues, report = assess(folder, saved(tmp_path / "data", records), tmp_path / "out")
    assert [row["position"] for row in residues if row["id"] == "c1"] == list(range(1, 28))
    assert np.allclose([row["lddt"] for row in residues], 100)
    np.testing.assert_allclose([r["plddt"] for r in residues], np.concatenate([fold.plddt for fold in folds]))
    rows = {(row["part"], row["metric"]): row for row in report["rows"]}
    assert {part for part, _ in rows} == {"all", "experiment", "simulated"}
    assert [row["metric"] for row in report["rows"] if row["part"] == "all"] == list(NAMES)
    assert rows["all", "lddt"]["value"] == pytest.approx(100)
    assert rows["all", "tm_score"]["value"] == pytest.approx(1, abs=1e-4)
    assert rows["all", "rmsd"]["value"] == pytest.approx(0, abs=1e-3)
    assert rows["all", "spearman"]["value"] is None  # the truth does not vary
    gap = np.abs(100 - np.concatenate([fold.plddt for fold in folds])).mean()
    assert rows["all", "calibration_error"]["value"] == pytest.approx(gap)
    sizes = [(rows[part, "lddt"]["chains"], rows[part, "lddt"]["residues"]) for part in ("all", "simulated")]
    assert sizes == [(4, sum(map(len, SEQUENCES))), (2, len(SEQUENCES[1]) + len(SEQUENCES[3]))]
    assert sum(each["residues"] for each in report["bins"]) == sizes[0][1]
    assert report["left_out"] is None


def test_a_part_below_the_floor_has_no_number(folder, folds, tmp_path):
    records = [record(k, backbone(fold), "simulated" if k == 3 else "experiment") for k, fold in enumerate(folds)]
    residues, report = assess(folder, saved(tmp_path / "data", records), tmp_path / "out", floor=(3, 4))
    rows = {(row["part"], row["metric"]): row for row in report["rows"]}
    assert rows["all", "lddt"]["status"] == "ok" and rows["all", "lddt"]["value"] == pytest.approx(100)
    status = {"simulated": "n < 3: too few records", "experiment": "groups < 4: too few groups of records"}
    assert rows["simulated", "chain_spearman"]["chains"] == 0, "the truth does not vary within any chain"
    for part, says in status.items():
        for row in (rows[part, name] for name in NAMES if name != "chain_spearman"):
            assert (row["value"], row["low"], row["high"], row["status"]) == (None, None, None, says)
    assert len(residues) == sum(map(len, SEQUENCES)), "what was folded stays known"


def test_numbers_are_those_of_the_table_of_residues(folder, folds, tmp_path):
    rng = np.random.default_rng(1)
    truths = [backbone(fold) + rng.normal(size=(len(fold.sequence), 1, 3)) * 2 for fold in folds]
    truths[0][3:6] = np.nan
    data = saved(tmp_path / "data", [record(k, truth) for k, truth in enumerate(truths)])
    residues, report = assess(folder, data, tmp_path / "out")
    assert [row["position"] for row in residues if row["lddt"] is None] == [4, 5, 6]
    known = [row for row in residues if row["lddt"] is not None]
    plddt, lddt = (np.array([row[name] for row in known]) for name in ("plddt", "lddt"))
    rows = {row["metric"]: row for row in report["rows"] if row["part"] == "all"}
    assert rows["spearman"]["value"] == pytest.approx(spearmanr(plddt, lddt).statistic)
    within = [
        spearmanr(*zip(*[(r["plddt"], r["lddt"]) for r in known if r["id"] == f"c{k}"])).statistic for k in range(4)
    ]
    assert rows["chain_spearman"]["value"] == pytest.approx(np.mean(within))
    assert [rows[name]["value"] for name in ("lddt", "plddt")] == pytest.approx([lddt.mean(), plddt.mean()])
    for row in rows.values():
        assert row["low"] <= row["value"] <= row["high"]
        assert (row["chains"], row["groups"], row["residues"]) == (4, 4, len(known))
    assert assess(folder, data, tmp_path / "again") == (residues, report)


def test_a_metric_of_some_chains_counts_these_alone_and_a_bin_of_few_chains_has_no_mean(folder, folds, tmp_path):
    rng = np.random.default_rng(3)
    truths = [backbone(fold) for fold in folds]
    truths[:2] = [truth + rng.normal(size=(len(truth), 1, 3)) * 2 for truth in truths[:2]]
    data = saved(tmp_path / "data", [record(k, truth) for k, truth in enumerate(truths)])
    _, report = assess(folder, data, tmp_path / "out", floor=(3, 1))
    rows = {row["metric"]: row for row in report["rows"] if row["part"] == "all"}
    found = rows["chain_spearman"]
    assert (found["chains"], found["groups"], found["status"]) == (2, 2, "n < 3: too few records")
    assert found["residues"] == len(SEQUENCES[0]) + len(SEQUENCES[1]) < rows["lddt"]["residues"]
    assert rows["lddt"]["chains"] == 4 and rows["lddt"]["status"] == "ok"
    assert all((of_bin["lddt"] is None) == (of_bin["chains"] < 3) for of_bin in report["bins"])
    whole = {"low": 0, "high": 10, "chains": 3, "residues": 9, "plddt": 5.0, "lddt": 6.0}
    assert hold_floor(whole, Floor(3, 1)) == whole
    assert hold_floor(whole, Floor(4, 1)) == whole | {"plddt": None, "lddt": None}


def test_a_rigid_motion_of_the_truth_changes_nothing(folds):
    rng = np.random.default_rng(2)
    truth = backbone(folds[0]) + rng.normal(size=(30, 1, 3))
    moved = truth @ Rotation.random(rng=rng).as_matrix() + 40
    one, two = (chain_scores(record(0, points), folds[0]) for points in (truth, moved))
    for name in ("lddt", "plddt", "tm", "rmsd"):
        np.testing.assert_allclose(one[name], two[name], atol=1e-3)
    assert one["rmsd"] > 0.5 and 0.1 < one["tm"] < 1


def test_lddt_counts_kept_distances():
    line = np.arange(6)[:, None] * [3.8, 0, 0]
    bent = line.copy()
    bent[5] += [1.5, 0, 0]  # its distances are off by 1.5 Å: kept at 2 and 4 Å, not at 0.5 and 1
    found = residue_lddt(line, bent)
    assert found[5] == pytest.approx(50)
    assert found[0] == pytest.approx(100)  # 15 Å reach residues 1 to 3
    assert found[4] == pytest.approx(100 * 3.5 / 4)
    np.testing.assert_allclose(residue_lddt(line, line), 100)


def test_chains_like_those_learnt_from_are_left_out(folder, folds, tmp_path):
    long = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQVKVKALPDAQFEVVHSLAKWKRQTLGQHDFSAGEGLYTHM"
    model = folding.load_folding_model(folder)
    known = record(0, backbone(folding.fold_sequence(model, long))) | {
        "sequence": long,
        "length": len(long),
        "id": "known",
    }
    records = [*(record(k, backbone(fold)) for k, fold in enumerate(folds)), known]
    data, learnt = saved(tmp_path / "data", records), saved(tmp_path / "learnt", [known | {"id": "x"}], "train")
    residues, report = assess(folder, data, tmp_path / "out", [learnt])
    assert {row["id"] for row in residues} == {"c0", "c2", "c3"} and report["left_out"] == 2, "c1 is its beginning"
    with pytest.raises(InputError, match="each of 1 test chains resembles one that mini learnt from"):
        assess(folder, saved(tmp_path / "only", [known]), tmp_path / "none", [learnt])
    assert not list((tmp_path / "none").iterdir())


def test_the_limit_takes_chains_by_the_hash_of_their_id(folder, folds, tmp_path):
    data = saved(tmp_path / "data", [record(k, backbone(fold)) for k, fold in enumerate(folds)])
    residues, _ = assess(folder, data, tmp_path / "out", limit=2)
    assert len({row["id"] for row in residues}) == 2


def test_predicted_chains_and_those_above_the_limit_judge_no_base(folder, folds, tmp_path):
    origins = ("predicted", "experiment", "unknown", "predicted")
    records = [record(k, backbone(fold), origin) for k, (fold, origin) in enumerate(zip(folds, origins))]
    data = saved(tmp_path / "data", records)
    residues, report = assess(folder, data, tmp_path / "out")
    assert {row["id"] for row in residues} == {"c1", "c2"} and (report["predicted"], report["too_long"]) == (2, 0)
    assert {row["part"] for row in report["rows"]} == {"all", "experiment", "unknown"}
    residues, report = assess(
        folder,
        saved(tmp_path / "more", [record(3, backbone(folds[3])), *records[:2]]),
        tmp_path / "short",
        max_length=20,
    )
    assert {row["id"] for row in residues} == {"c3"}
    assert (report["predicted"], report["too_long"], report["max_length"]) == (1, 1, 20)
    with pytest.raises(InputError, match="none of 2 test chains is left: 2 are predicted, 0 too long"):
        assess(folder, saved(tmp_path / "only", records[::3]), tmp_path / "none")


def limit_memory(monkeypatch, longest: int) -> None:
    fold = folding.EsmForProteinFolding.infer

    def infer(model, sequences):
        if len(sequences[0]) > longest:
            raise MemoryError
        return fold(model, sequences)

    monkeypatch.setattr(folding.EsmForProteinFolding, "infer", infer)


def test_a_chain_that_no_memory_suffices_for_is_left_out_and_counted(folder, folds, tmp_path, monkeypatch):
    limit_memory(monkeypatch, longest=27)
    data = saved(tmp_path / "data", [record(k, backbone(fold)) for k, fold in enumerate(folds)])
    with pytest.warns(UserWarning, match="1 chains are not folded, such as test chains:c0: out of memory"):
        residues, report = assess(folder, data, tmp_path / "out")
    assert {row["id"] for row in residues} == {"c1", "c2", "c3"} and report["too_large"] == 1


def test_a_killed_assessment_goes_on_with_the_chains_that_it_has_folded(folder, folds, tmp_path, monkeypatch):
    data = saved(tmp_path / "data", [record(k, backbone(fold)) for k, fold in enumerate(folds)])
    assess(folder, data, tmp_path / "whole")
    fold, asked = folding.EsmForProteinFolding.infer, []

    def infer(model, sequences):
        asked.append(sequences[0])
        if len(asked) == 3:
            raise KeyboardInterrupt
        return fold(model, sequences)

    monkeypatch.setattr(folding.EsmForProteinFolding, "infer", infer)
    with pytest.raises(KeyboardInterrupt):
        assess(folder, data, tmp_path / "out")
    kept = sorted((tmp_path / "out" / "folds").iterdir())
    assert len(kept) == 2 and {path.name for path in (tmp_path / "out").iterdir()} == {"folds"}
    flipped = bytearray(kept[0].read_bytes())
    flipped[-9] ^= 4
    kept[0].write_bytes(flipped)  # a damaged fold is none
    asked[:] = ["killed"] * 3
    assess(folder, data, tmp_path / "out")
    assert len(asked) == 3 + len(folds) - 1
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("whole", "out"))
    assert one == two and set(two) == {"residues.parquet", "metrics.json"}


def test_where_memory_suffices_for_no_chain_the_first_is_named(folder, folds, tmp_path, monkeypatch):
    limit_memory(monkeypatch, longest=10)
    data = saved(tmp_path / "data", [record(0, backbone(folds[0]))])
    with pytest.raises(InputError, match=r"test chains:c0: out of memory, however small the chunks \(30 residues\)"):
        assess(folder, data, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


# metrics


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=1, max_size=30), min_size=1, max_size=5
    )
)
def test_bins_hold_every_residue_and_their_means_are_those_of_all(chains):
    rows = [{"plddt": np.array(c)[:, 0], "lddt": np.array(c)[:, 1], "tm": 0.5, "rmsd": 1.0} for c in chains]
    columns = metrics.columns(rows, None, None)
    bins = metrics.calibration_bins(columns)
    plddt, lddt = metrics.pooled_scores(columns)
    assert sum(each["residues"] for each in bins) == len(plddt)
    for name, values in (("plddt", plddt), ("lddt", lddt)):
        assert sum(each["residues"] * each[name] for each in bins) == pytest.approx(values.sum(), abs=1e-6)
    for each in bins:
        assert each["low"] - 1e-9 <= each["plddt"] <= each["high"] + 1e-9
    assert abs(plddt.mean() - lddt.mean()) - 1e-9 <= metrics.calibration_error(columns) <= 100


def test_one_metric_is_primary():
    assert [metric.name for metric in metrics.METRICS] == list(NAMES)
    assert [metric.name for metric in metrics.METRICS if metric.primary] == ["spearman"]


def test_a_rank_correlation_without_variation_is_undefined():
    assert np.isnan(metrics.rank_correlation(np.ones(5), np.arange(5)))
    assert np.isnan(metrics.rank_correlation(np.ones(1), np.ones(1)))
    assert metrics.rank_correlation(np.array([1, 2, 2, 9.0]), np.array([0, 3, 3, 4.0])) == pytest.approx(1)
