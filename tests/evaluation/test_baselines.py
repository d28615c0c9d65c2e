"""Baselines that answer for test records, and those that write samples."""

from collections import Counter
from functools import partial

import pyarrow.parquet as pq
import pytest

from loratory.domains.contract import prediction_row
from loratory.domains.protein import task
from loratory.domains.protein.sources import Task
from loratory.evaluation import baselines, ranking
from loratory.reporting.tables import CONTROLS

TEST = [
    {"id": f"p{i}", "group": f"g{i}", "sequence": s} for i, s in enumerate(["MKTAYIAKQR", "GGSSEELLKK", "WYVANDPLQC"])
]


def test_natural_and_permuted_are_samples_of_test_sequences():
    rows = task.sample_baselines(TEST, 2, Task())
    assert [*rows] == ["natural", "permuted"]
    names = [example.id for example in task.sample_prompts(TEST, 2, Task(), "causal")]
    for own in rows.values():
        assert [row["id"] for row in own] == names
    natural, permuted = ([task.sample_residues(row["text"]) for row in own] for own in rows.values())
    assert set(natural) < {record["sequence"] for record in TEST}
    for one, other in zip(natural, permuted):
        assert one != other and Counter(one) == Counter(other)
    assert task.sample_baselines(TEST[::-1], 2, Task()) == rows


def test_no_control_without_a_language_model_is_called_like_a_control_of_mixtures():
    names = {*task.sample_baselines(TEST, 2, Task()), *task.baselines(TEST, TEST, Task())}
    assert names == {"natural", "permuted", "residue_frequency", "trigram"} and not names & {*CONTROLS}


def test_baselines_learn_from_train_and_answer_valid_and_test(tmp_path, monkeypatch):
    asked, learnt = [], []

    def read(data, split, limit=None):
        asked.append((split, limit))
        return [record | {"id": f"{split}-{record['id']}"} for record in TEST]

    def learn(train, held_out, options):
        learnt.append([{record["id"].partition("-")[0] for record in part} for part in (train, held_out)])
        return {}

    monkeypatch.setattr(baselines, "read_records", read)
    monkeypatch.setattr(baselines, "open_split", read)
    monkeypatch.setattr(task, "baselines", learn)
    baselines.predict_baselines("protein", tmp_path, Task(), 7, 5, 0, tmp_path / "b.parquet")
    assert sorted(asked) == [("test", 7), ("train", None), ("valid", 5)]
    assert learnt == [[{"train"}, {"valid", "test"}]]


def test_baselines_that_learnt_of_another_entry_stand_beside_and_those_that_learn_nothing_do_not(
    tmp_path, monkeypatch
):
    def learn(train, held_out, options):
        answers = {"constant": 0.0, "learnt": float(len(train))}
        return {name: [{"id": record["id"], "nll": value} for record in held_out] for name, value in answers.items()}

    def read(data, split, limit=None):
        return [record | {"id": f"{split}-{record['id']}"} for record in TEST[: 1 + (data == "cow")]]

    monkeypatch.setattr(baselines, "read_records", read)
    monkeypatch.setattr(baselines, "open_split", read)
    monkeypatch.setattr(task, "baselines", learn)
    baselines.predict_baselines("protein-cow", "cow", Task(), 7, 5, 0, tmp_path / "b.parquet", {"protein": "human"})
    rows = pq.read_table(tmp_path / "b.parquet").to_pylist()
    assert {row["system"] for row in rows} == {"constant", "learnt", "learnt@protein"}
    assert {row["nll"] for row in rows if row["system"] == "learnt@protein"} == {1.0}


def test_fewer_test_sequences_than_samples_come_again():
    texts = [row["text"] for row in task.sample_baselines(TEST, 7, Task())["natural"]]
    assert len(texts) == 7 and texts[:3] == texts[3:6] and len(set(texts)) == 3


@pytest.mark.parametrize("samples", [0, 4])
def test_rows_of_both_kinds_stand_in_one_file(tmp_path, monkeypatch, samples):
    def read(data, split, limit=None):
        return [record | {"id": f"{split}-{record['id']}"} for record in TEST][:limit]

    monkeypatch.setattr(baselines, "read_records", read)
    monkeypatch.setattr(baselines, "open_split", read)
    baselines.predict_baselines("protein", tmp_path, Task(), None, 2, samples, tmp_path / "b.parquet")
    rows = pq.read_table(tmp_path / "b.parquet").to_pylist()
    assert {row["kind"] for row in rows} == {"baseline"}
    found = Counter((row["split"], row["system"]) for row in rows)
    written = {("sample", "natural"): samples, ("sample", "permuted"): samples} if samples else {}
    answered = {
        (split, name): n for split, n in (("valid", 2), ("test", 3)) for name in ("residue_frequency", "trigram")
    }
    assert found == answered | written
    assert {row["id"] for row in rows if row["split"] == "valid"} == {"valid-p0", "valid-p1"}
    for row in rows:
        assert (row["nll"] is None) == (row["split"] == "sample") == (row["text"] is not None)


# --- full ranking


class Ranking:
    """A domain of two questions, whose systems say what the test says."""

    P = {"sure": [0.9, 0.1, 0.2, 0.1], "flat": [0.5] * 4, "wrong": [0.1, 0.9, 0.1, 0.5]}  # noqa: RUF012

    @staticmethod
    def ranking_lists(parts, users):
        assert set(parts) == {"train", "gate", "valid", "test"}
        return [
            [{"id": f"u{user}|{i}" if i else f"u{user}", "group": f"u{user}"} for i in range(4)]
            for user in range(users)
        ]

    @classmethod
    def answers(cls):
        def answer(records, p):
            return [prediction_row(record, " yes", p=each) for record, each in zip(records, p)]

        return {name: partial(answer, p=p) for name, p in cls.P.items()}


def test_a_rank_row_says_how_many_candidates_stand_above_and_beside_the_right_one(monkeypatch):
    monkeypatch.setattr(ranking, "open_split", lambda data, split: [])
    rows = baselines.rank_baselines(Ranking, "nowhere", Ranking.answers(), 2)
    found = {(row["system"], row["id"]): (row["above"], row["tied"]) for row in rows}
    assert found == {(name, f"u{user}"): places for user in (0, 1) for name, places in PLACES.items()}
    assert {(row["split"], row["kind"], row["p"], row["reference"]) for row in rows} == {
        ("rank", "baseline", None, " yes")
    }
    assert baselines.rank_baselines(Ranking, "nowhere", Ranking.answers(), 0) == []


PLACES = {"sure": (0, 0), "flat": (0, 3), "wrong": (2, 1)}
