"""Examples are made of records when they are asked for."""

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from loratory.bases.core import Encoded
from loratory.data import batching
from loratory.data.records import join_records, table_records
from loratory.domains.contract import Example
from loratory.errors import InputError
from loratory.training import encoding
from loratory.training.encoding import EncodedExamples, example_lengths

WORDS = ("a", "bb", "ccc", "dddd", "ee", "f")


def records_of(texts):
    rows = [{"id": f"{n:03d}", "group": "g", "text": text} for n, text in enumerate(texts)]
    tables = [pa.Table.from_pylist(rows[start : start + 4]) for start in range(0, len(rows), 4)]
    return join_records(map(table_records, tables))


@pytest.fixture
def base(monkeypatch):
    """Encodes letters; each record has as many examples as letters, up to two. `asked` are those that were encoded."""
    asked = []

    def domain_examples(domain, records, task, family):
        return [Example(r["id"], "g", r["text"], str(n)) for r in records for n in range(min(2, len(r["text"])))]

    def encode(example):
        asked.append((example.id, example.target))
        if example.prompt == "too long":
            raise InputError(example.id, "too long")
        ids = [*map(ord, example.prompt + example.target)]
        return Encoded(ids, ids, len(ids))

    monkeypatch.setattr(encoding, "domain_examples", domain_examples)
    monkeypatch.setattr(encoding, "check_readable", lambda *_: None)
    return SimpleNamespace(family="toy", encode=encode, check_choices=lambda _: None, asked=asked)


def eager(base, texts):
    examples = encoding.domain_examples("toy", [*records_of(texts)], None, "toy")
    return [base.encode(example) for example in examples]


@pytest.mark.parametrize("kept", [0, 8, 1 << 20])
def test_what_is_made_when_it_is_asked_for_is_what_would_have_been_made_at_once(base, monkeypatch, kept):
    monkeypatch.setattr(encoding, "KEPT", kept)
    expected = eager(base, WORDS)
    items = EncodedExamples(base, "toy", records_of(WORDS), None)
    assert [*items] == expected and items[-1] == expected[-1] and items[2:5] == expected[2:5]
    assert items.lengths.tolist() == [item.length for item in expected] == example_lengths(expected).tolist()
    assert sum(item.length for item in items.kept.values()) <= kept


def test_planning_batches_encodes_nothing(base, monkeypatch):
    monkeypatch.setattr(encoding, "KEPT", 0)
    items = EncodedExamples(base, "toy", records_of(WORDS), None)
    base.asked.clear()
    plan = batching.Batches(example_lengths(items), 8, 0)
    assert not base.asked
    batch = [items[i] for i in plan(0)]
    assert len(base.asked) == len(batch) < len(items)


def test_several_splits_follow_each_other(base, monkeypatch):
    monkeypatch.setattr(encoding, "KEPT", 5)
    first, second = (EncodedExamples(base, "toy", records_of(texts), None) for texts in (WORDS[:3], WORDS[3:]))
    joined = first.join(second)
    assert [*joined] == [*first, *second] and joined.lengths.tolist() == [*first.lengths, *second.lengths]


def test_an_example_that_cannot_be_encoded_ends_the_job_before_it_trains(base):
    with pytest.raises(InputError, match="too long"):
        EncodedExamples(base, "toy", records_of([*WORDS, "too long"]), None)


def test_a_record_costs_its_columns_and_not_its_prompt(base, monkeypatch):
    """Of 2,000 records with 500 letters: what was 20 kB each as lists of tokens is their text and two numbers."""
    monkeypatch.setattr(encoding, "KEPT", 0)
    records = records_of(["x" * 500] * 2000)
    tracemalloc.start()
    items = EncodedExamples(base, "toy", records, None)
    base.asked.clear()
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(items) == 4000 and held / 2000 < 500


def test_records_are_read_as_they_are_wanted():
    records = records_of(WORDS)
    assert [r["text"] for r in records] == [*WORDS] == [records[n]["text"] for n in range(len(records))]
    assert records[1:3] == [records[1], records[2]] and records[-1]["text"] == "f"
    few = records.sample(3, seed=1)
    assert len(few) == 3 and [r["id"] for r in few] == sorted(r["id"] for r in few)
    assert records.sample(None, seed=1) is records and [*few] == [few[n] for n in range(3)]
    assert [*records.select(np.array([0, 5]))] == [records[0], records[5]]
    assert [*few.join([records])] == [*few, *records]
    assert [*records.select(np.array([3, 4])).join([few]).in_id_order()] == sorted(
        [records[3], records[4], *few], key=lambda record: record["id"]
    )
