import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loratory import registry
from loratory.domains.contract import Metric
from loratory.domains.scores import auc
from loratory.errors import InputError
from loratory.evaluation.score import NOT_FOLDED, Floor, cell_size, compared_metrics, score_domain

SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("split", "system", "kind", "id", "group", "reference")]
    + [("nll", pa.float64()), ("tokens", pa.int64()), ("p", pa.float64()), ("text", pa.string())]
)
N, GROUPS = 40, 20
LOOKED_AT = set()


def columns(rows, records, task):
    LOOKED_AT.update(row["system"] for row in rows)
    truth = {record["id"]: record["label"] for record in records}
    return {
        "label": np.array([truth.get(row["id"], 0) for row in rows]),
        "p": np.array([row["p"] for row in rows], dtype=float),
        "nll": np.array([row["nll"] for row in rows], dtype=float),
        "tokens": np.array([row["tokens"] or 0 for row in rows], dtype=float),
        "letters": np.array([len(row["text"] or "") for row in rows], dtype=float),
        "new": np.array([row["text"] not in {record["text"] for record in records} for row in rows], dtype=float),
        "plddt": np.array([row.get("plddt") or np.nan for row in rows], dtype=float),
    }


def mean(values) -> float:
    return float(values.mean()) if values.size else float("nan")


METRICS = (
    Metric("AUC", "0–1", "up", "choice", lambda c: auc(c["label"], c["p"]), primary=True, note="ties count half"),
    Metric("of liked", "0–1", "up", "choice", lambda c: mean(c["p"]), where=lambda c: c["label"] == 1),
    Metric("agreement", "0–1", "up", "choice", lambda c: mean(c["p"]), classes=lambda c: c["label"]),
    Metric("NLL", "nats/token", "down", "nll", lambda c: float(c["nll"].sum() / c["tokens"].sum())),
    Metric("novelty", "0–1", "up", "sample", lambda c: float(c["new"].mean())),
    Metric("pLDDT", "0–100", "up", "structure", lambda c: float(np.nanmean(c["plddt"]))),
)


@pytest.fixture(autouse=True)
def domain(monkeypatch):
    def load(noun, name, part=""):
        assert (noun, name, part) == ("domain", "toy", "metrics")
        return SimpleNamespace(METRICS=METRICS, VERSION=3, TRAIN_KEYS=(), columns=columns)

    monkeypatch.setattr(registry, "load_module", load)


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "valid", "test"):
        records = [
            {
                "id": f"{split}-{i:03}",
                "group": f"{split}-g{i % GROUPS}",
                "label": i % 2,
                "text": "MKV" if split == "train" else "ACD",
            }
            for i in range(N)
        ]
        pq.write_table(pa.Table.from_pylist(records), folder / f"{split}.parquet")
    return folder


def row(system, kind, split, i, **values):
    return {
        "split": split,
        "system": system,
        "kind": kind,
        "id": f"{split}-{i:03}",
        "group": f"{split}-g{i % GROUPS}",
    } | values


def answers(system, kind, split, quality, seed=0):
    """Probabilities that lean `quality` towards the truth, in shuffled order."""
    generator = np.random.default_rng(seed)
    noise = generator.normal(size=N)
    made = [
        row(system, kind, split, i, reference=str(i % 2), p=float(1 / (1 + np.exp(-(noise[i] + quality * (i % 2))))))
        | {"nll": 30.0 - quality, "tokens": 10}
        for i in range(N)
    ]
    return [made[i] for i in generator.permutation(N)]


def samples(system, kind, n=6):
    return [
        row(system, kind, "sample", i, text="MKV" if i < 2 else f"MKV{i}", reference="") | {"group": f"sample-{i}"}
        for i in range(n)
    ]


def write(path, rows, schema=SCHEMA):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    return path


@pytest.fixture
def predictions(tmp_path):
    files = {}
    for seed in (1, 0):
        rows = []
        for split in ("valid", "test"):
            rows += answers("base", "base", split, 0.2)
            rows += answers("lora@toy", "adapter", split, 2.0, seed)
        rows += samples("base", "base") + samples("lora@toy", "adapter")
        files[seed] = write(tmp_path / "predictions" / f"seed{seed}.parquet", rows)
    return files


@pytest.fixture
def run(tmp_path, data, predictions):
    def run(predictions=predictions, baselines=None, structures=None, floor=(1, 1), out="metrics.json"):
        score_domain(
            "toy", "mini", predictions, baselines, data, None, structures, 200, 0, Floor(*floor), tmp_path / out
        )
        return json.loads((tmp_path / out).read_text())

    return run


def pick(report, system, metric, split="test"):
    found = [r for r in report["rows"] if (r["system"], r["metric"], r["split"]) == (system, metric, split)]
    return found[0] if found else None


def test_values_are_the_metric_of_the_whole_split_averaged_over_seeds(run, predictions):
    report = run()
    found = pick(report, "lora@toy", "AUC")
    expected = []
    for _, path in sorted(predictions.items()):
        rows = [r for r in pq.read_table(path).to_pylist() if (r["system"], r["split"]) == ("lora@toy", "test")]
        expected.append(auc([int(r["reference"]) for r in rows], [r["p"] for r in rows]))
    assert found["per_seed"] == expected and report["seeds"] == [0, 1]
    assert found["value"] == pytest.approx(np.mean(expected))
    assert found["low"] < found["value"] < found["high"]
    assert (found["n"], found["n_groups"], found["status"]) == (N, GROUPS, "ok")
    assert (found["unit"], found["direction"], found["primary"], found["note"]) == (
        "0–1",
        "up",
        True,
        "ties count half",
    )


def test_gain_is_positive_where_the_system_is_better_whichever_way_the_metric_points(run):
    report = run()
    up, down = pick(report, "lora@toy", "AUC"), pick(report, "lora@toy", "NLL")
    assert up["gain"] == pytest.approx(up["value"] - pick(report, "base", "AUC")["value"]) and up["gain_low"] > 0
    assert down["value"] == pytest.approx(2.8) and down["gain"] == pytest.approx(0.18)
    assert down["gain_low"] == pytest.approx(0.18) and down["gain_high"] == pytest.approx(0.18), "a paired interval"
    assert pick(report, "base", "AUC")["gain"] is None


def test_a_copy_of_the_base_gains_exactly_nothing(run, tmp_path):
    rows = answers("base", "base", "test", 1.0) + answers("twin@toy", "adapter", "test", 1.0)
    found = pick(run({0: write(tmp_path / "p.parquet", rows)}), "twin@toy", "AUC")
    assert (found["gain"], found["gain_low"], found["gain_high"]) == (0, 0, 0)


def test_without_a_base_there_is_no_gain(run, tmp_path):
    report = run({0: write(tmp_path / "p.parquet", answers("lora@toy", "adapter", "test", 1.0))})
    assert {r["gain"] for r in report["rows"]} == {None}


def test_baselines_join_with_one_value_and_only_the_outputs_they_fill(run, tmp_path):
    rows = [r | {"nll": None, "tokens": None} for r in answers("length_only", "baseline", "test", 0.0)]
    report = run(baselines=write(tmp_path / "baselines.parquet", rows))
    found = pick(report, "length_only", "AUC")
    assert found["kind"] == "baseline" and found["per_seed"] == [] and found["gain"] < 0
    assert pick(report, "length_only", "NLL") is None
    assert "baselines" in report["inputs"]


def controls(tmp_path, splits=("valid", "test"), **qualities):
    """A file of baselines whose quality on (valid, test) is given."""
    rows = [
        r | {"nll": None, "tokens": None}
        for name, of in qualities.items()
        for split, quality in zip(("valid", "test"), of)
        if split in splits
        for r in answers(name, "baseline", split, quality, seed=7)
    ]
    return write(tmp_path / "baselines.parquet", rows)


def test_the_best_control_is_chosen_on_valid_whatever_test_says(run, tmp_path):
    report = run(baselines=controls(tmp_path, steady=(3.0, 1.0), lucky=(0.0, 9.0)))
    assert report["control"] == {"system": "steady", "split": "valid"}
    found = pick(report, "lora@toy", "AUC")
    expected = found["value"] - pick(report, "steady", "AUC")["value"]
    assert found["vs_control"] == pytest.approx(expected)
    assert found["vs_control_low"] < expected < found["vs_control_high"]
    assert pick(report, "steady", "AUC")["vs_control"] is None
    assert pick(report, "lora@toy", "NLL")["vs_control"] is None, "the control has no likelihoods"


def test_a_planted_control_wins_and_a_planted_adapter_wins(run, tmp_path):
    won = pick(run(baselines=controls(tmp_path, knows=(9.0, 9.0))), "lora@toy", "AUC")
    assert won["vs_control_high"] < 0 < won["gain_low"]
    lost = pick(run(baselines=controls(tmp_path, guesses=(0.0, 0.0))), "lora@toy", "AUC")
    assert lost["vs_control_low"] > 0


def test_a_system_that_says_what_the_control_says_differs_by_exactly_nothing(run, tmp_path):
    rows = [r | {"nll": None, "tokens": None} for r in answers("twin", "baseline", "test", 0.2)]
    found = pick(run(baselines=write(tmp_path / "b.parquet", rows)), "base", "AUC")
    assert [found[f"vs_control{part}"] for part in ("", "_low", "_high")] == [0, 0, 0], "paired"


def test_without_answers_for_valid_the_control_is_chosen_on_test_and_without_baselines_there_is_none(run, tmp_path):
    report = run(baselines=controls(tmp_path, ("test",), steady=(0, 1.0), lucky=(0, 9.0)))
    assert report["control"] == {"system": "lucky", "split": "test"}
    report = run()
    assert report["control"] is None and {row["vs_control"] for row in report["rows"]} == {None}


def test_a_metric_of_some_records_counts_them_and_sees_no_others(run, predictions):
    found = pick(run(), "lora@toy", "of liked")
    assert (found["n"], found["n_groups"]) == (N // 2, GROUPS // 2)
    rows = [row for path in predictions.values() for row in pq.read_table(path).to_pylist()]
    liked = [r["p"] for r in rows if (r["system"], r["split"], r["reference"]) == ("lora@toy", "test", "1")]
    assert found["value"] == pytest.approx(np.mean(liked))
    assert found["low"] < found["value"] < found["high"]


@pytest.mark.parametrize(
    ("floor", "status"),
    [((21, 1), "n < 21: too few records"), ((1, 11), "groups < 11: too few groups of records"), ((20, 10), "ok")],
)
def test_below_the_floor_nothing_is_computed(run, floor, status):
    report = run(floor=floor)
    found = pick(report, "lora@toy", "of liked")
    assert found["status"] == status and (found["n"], found["n_groups"]) == (20, 10)
    numbers = [found[name] for name in ("value", "low", "high", "gain", "gain_low", "gain_high")]
    assert (None in numbers) == (status != "ok") and len({value is None for value in numbers}) == 1
    assert pick(report, "lora@toy", "AUC")["status"] == "ok"


@pytest.mark.parametrize(
    ("liked", "floor", "status"),
    [
        (0, (3, 1), "ok"),  # there is one class, and nothing to tell apart
        (2, (3, 1), "class n < 3: too few records of a class"),
        (2, (2, 3), "class groups < 3: too few groups of records of a class"),
        (2, (2, 2), "ok"),
    ],
)
def test_a_metric_that_tells_classes_apart_needs_enough_records_of_the_rarest(
    run, data, predictions, liked, floor, status
):
    records = pq.read_table(data / "test.parquet").to_pylist()
    rare = [record | {"label": int(i < liked)} for i, record in enumerate(records)]
    pq.write_table(pa.Table.from_pylist(rare), data / "test.parquet")
    found = pick(run(floor=floor), "lora@toy", "agreement")
    assert (found["n"], found["n_groups"], found["status"]) == (N, GROUPS, status)
    assert (found["n_class"], found["n_class_groups"]) == ((liked, liked) if liked else (N, GROUPS))
    assert (found["value"] is None) == (found["gain"] is None) == (status != "ok")


def test_the_size_of_a_cell_is_the_least_of_its_runs_in_records_and_in_groups():
    groups = np.array(["a", "a", "a", "b"])
    metric = Metric("m", "", "up", "nll", None, where=lambda c: c["known"])
    runs = [{"known": np.array(known, bool)} for known in ([1, 1, 1, 0], [0, 0, 1, 1])]
    assert cell_size(metric, groups, runs) == (2, 1, 2, 1)


def test_systems_are_compared_by_the_primary_metric_and_by_the_loss():
    def names(*metrics):
        return [metric.name for metric in compared_metrics(SimpleNamespace(METRICS=metrics))]

    make = lambda name, **more: Metric(name, "", "up", "nll", None, **more)  # noqa: E731
    loss, both = make("loss", loss=True), make("both", primary=True, loss=True)
    assert names(loss, make("other"), make("rank", primary=True)) == ["rank", "loss"]
    assert names(make("other"), both) == ["both"] and names(make("rank", primary=True)) == ["rank"]


def test_a_baseline_named_like_a_trained_system_is_refused(run, tmp_path):
    rows = answers("lora@toy", "baseline", "test", 0.0)
    with pytest.raises(InputError, match="a baseline has the name of a trained system"):
        run(baselines=write(tmp_path / "baselines.parquet", rows))


def test_columns_are_not_asked_of_rows_that_no_metric_looks_at(run, tmp_path):
    mute = [r | {"p": None, "nll": None, "tokens": None} for r in answers("mute", "baseline", "test", 0.0)]
    report = run(baselines=write(tmp_path / "baselines.parquet", mute))
    assert "mute" not in {r["system"] for r in report["rows"]} and "mute" not in LOOKED_AT


def test_structure_without_a_folding_base_is_said_to_be_missing_never_replaced(run):
    report = run()
    missing = pick(report, "lora@toy", "pLDDT", "sample")
    assert missing["value"] is missing["low"] is missing["gain"] is None
    assert missing["status"] == NOT_FOLDED and missing["n"] == 6
    assert pick(report, "lora@toy", "pLDDT") is None, "only samples are folded"
    assert pick(report, "lora@toy", "novelty", "sample")["value"] == pytest.approx(4 / 6), "compared with train"


def test_folded_samples_are_scored(run, tmp_path):
    keys = [(seed, system, i) for seed in (0, 1) for system in ("base", "lora@toy") for i in range(6)]
    rows = [
        {"seed": seed, "system": system, "id": f"sample-{i:03}", "plddt": 50.0 + 10 * seed + i}
        for seed, system, i in keys
    ]
    path = tmp_path / "structures.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    report = run(structures=path)
    found = pick(report, "lora@toy", "pLDDT", "sample")
    assert (found["per_seed"], found["value"], found["status"]) == ([52.5, 62.5], 57.5, "ok")


def test_what_baselines_write_is_folded_and_scored_like_any_sample(run, tmp_path):
    rows = [{"seed": None, "system": "natural", "id": f"sample-{i:03}", "plddt": 80.0 + i} for i in range(6)]
    for seed, system in ((0, "base"), (1, "base"), (0, "lora@toy"), (1, "lora@toy")):
        rows += [{"seed": seed, "system": system, "id": f"sample-{i:03}", "plddt": 40.0} for i in range(6)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "structures.parquet")
    natural = write(tmp_path / "baselines.parquet", samples("natural", "baseline"))
    report = run(baselines=natural, structures=tmp_path / "structures.parquet")
    found = pick(report, "natural", "pLDDT", "sample")
    assert (found["kind"], found["value"], found["per_seed"]) == ("baseline", 82.5, [])
    assert pick(report, "natural", "novelty", "sample")["value"] == pytest.approx(4 / 6)
    assert pick(report, "natural", "NLL") is None


def test_undefined_values_are_null_and_said_so(run, tmp_path):
    rows = [r for r in answers("base", "base", "test", 1.0) if r["reference"] == "0"]
    found = pick(run({0: write(tmp_path / "p.parquet", rows)}), "base", "AUC")
    assert (found["value"], found["low"], found["high"], found["status"]) == (None, None, None, "undefined")
    assert found["per_seed"] == [None]


def test_one_group_gives_a_value_but_no_interval(run, tmp_path):
    rows = [r | {"group": "same"} for r in answers("base", "base", "test", 1.0)]
    found = pick(run({0: write(tmp_path / "p.parquet", rows)}), "base", "AUC")
    assert found["value"] is not None and found["low"] is None and found["status"] == "no interval"


def test_same_input_gives_the_same_bytes_whatever_the_row_order(run, tmp_path, predictions):
    run(out="one.json")
    shuffled = {}
    for seed, path in reversed([*predictions.items()]):
        rows = pq.read_table(path).to_pylist()
        shuffled[seed] = write(tmp_path / "shuffled" / path.name, rows[::-1])
    run(shuffled, out="two.json")
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    assert one.pop("inputs") != two.pop("inputs") and one == two
    run(out="again.json")
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "again.json").read_bytes()


@pytest.mark.parametrize(
    ("spoil", "reason", "says"),
    [
        (lambda rows: [*rows, rows[0]], "duplicate_id", "twice"),
        (lambda rows: rows[1:], "records", "do not fit"),
        (lambda rows: [rows[0] | {"id": "test-999"}, *rows[1:]], "records", "do not fit"),
        (lambda rows: [rows[0] | {"p": None}, *rows[1:]], "partial", "has no `p` for 1 of 40"),
    ],
)
def test_incomplete_predictions_are_refused_by_file_and_record(run, tmp_path, spoil, reason, says):
    rows = answers("base", "base", "test", 1.0) + spoil(answers("lora@toy", "adapter", "test", 1.0))
    path = write(tmp_path / "bad.parquet", rows)
    with pytest.raises(InputError, match=says) as caught:
        run({0: path})
    assert caught.value.reason == reason
    assert caught.value.where.startswith(f"{path}:test-") and "fix:" in str(caught.value)
    assert not (tmp_path / "metrics.json").exists()


def test_records_unknown_to_the_dataset_are_refused(run, tmp_path):
    rows = [r | {"id": "x" + r["id"]} for r in answers("base", "base", "test", 1.0)]
    with pytest.raises(InputError, match="records of the dataset") as caught:
        run({0: write(tmp_path / "bad.parquet", rows)})
    assert caught.value.where.endswith("bad.parquet:xtest-000")


def test_a_missing_column_is_named(run, tmp_path):
    path = tmp_path / "bad.parquet"
    pq.write_table(pa.Table.from_pylist([{"id": "a", "split": "test"}]), path)
    with pytest.raises(InputError, match="columns are missing") as caught:
        run({0: path})
    assert caught.value.reason == "columns" and "system" in str(caught.value)


def test_scoring_imports_no_torch():
    code = "import sys, loratory.evaluation.score; sys.exit(any(m in sys.modules for m in ('torch', 'transformers')))"
    scripts = Path(__file__).parents[2] / "scripts"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(scripts)})
