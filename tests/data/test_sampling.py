"""A sample is the same in whatever order records come, adds up, and is held in memory for itself alone."""

import random
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loratory.data.ledger import ROWS_OF_A_REASON, Ledger
from loratory.data.sampling import HashSample
from loratory.data.splits import hash_position, sample_by_hash
from loratory.errors import InputError


def record(id: str, sequence: str, file: str = "a.fa", number: int = 1) -> dict:
    return {"id": id, "sequence": sequence, "where": f"{file}:{number}"}


def taken(records, limit, distinct="sequence", on_error="fail"):
    sample, ledger = HashSample(limit, 3, distinct, Ledger(on_error)), None
    for each in records:
        sample.ledger.count_record()
        sample.add_record(each)
        assert limit is None or len(sample.held) <= 2 * limit
    kept, ledger = [*sample.kept_records()], sample.ledger
    ledger.check_counts("x", len(kept), 1)
    return [each["id"] for each in kept], ledger


sets = st.dictionaries(
    st.text("abc", min_size=1, max_size=4), st.sampled_from("ABCDEFGHIJKL"), min_size=1, max_size=40
)


@settings(max_examples=200, deadline=None)
@given(sets, st.one_of(st.none(), st.integers(1, 12)), st.randoms())
def test_the_sample_is_of_distinct_records_with_the_smallest_hashes_in_any_order(items, limit, rng):
    records = [record(id, sequence) for id, sequence in items.items()]
    first: dict[str, str] = {}
    for id in sorted(items, key=lambda id: id if limit is None else (hash_position(id, 3), id)):
        first.setdefault(items[id], id)
    wanted = sorted(list(first.values())[:limit])
    rng.shuffle(records)
    assert taken(records, limit)[0] == wanted


def test_without_copies_the_records_are_those_of_a_sort_of_all():
    records = [record(f"r{number}", str(number)) for number in range(500)]
    expected = [each["id"] for each in sample_by_hash(records, 40, 3)]
    for distinct in ("sequence", ""):
        kept, ledger = taken(records, 40, distinct)
        assert kept == expected and ledger.reason_counts() == {"not_sampled": 460}
        assert ledger.rows == []


def test_copies_are_noted_with_file_and_record():
    _, ledger = taken([record("b", "M", number=4), record("a", "M", number=9), record("c", "K")], None)
    assert ledger.rows == [("a.fa", "4", "b", "duplicate_sequence", "same as a")]


def test_one_id_in_two_files_is_a_copy_if_it_says_the_same_and_an_error_else():
    first = record("a", "M")
    assert taken([first, record("a", "M", "b.fa")], None)[1].reason_counts() == {"duplicate_sequence": 1}
    for second in (record("a", "K", "b.fa", 5), record("a", "M", "a.fa", 5)):
        with pytest.raises(InputError, match=r":5: duplicate id, first seen at a\.fa:1 \(a\)"):
            taken([first, second], None)
        assert taken([first, second], None, on_error="skip")[1].reason_counts() == {"duplicate_id": 1}


def test_memory_grows_with_the_limit_and_not_with_the_records():
    def peak(n):
        tracemalloc.start()
        taken((record(f"r{i}", f"{i:0200d}", number=i) for i in range(n)), 50)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(8000) < 1.2 * peak(2000)


def test_a_reason_of_very_many_records_is_listed_in_part_and_counted_in_full(tmp_path):
    ledger, extra = Ledger(), 7
    for number in random.Random(0).sample(range(ROWS_OF_A_REASON + extra), ROWS_OF_A_REASON + extra):
        ledger.count_record()
        ledger.drop_record("a.fa", number, f"r{number}", "too_short", "3 < 5")
    ledger.check_counts("x", 0, 0)
    assert ledger.reason_counts() == {"too_short": ROWS_OF_A_REASON + extra}
    ledger.write_rejects(tmp_path / "rejects.tsv")
    lines = (tmp_path / "rejects.tsv").read_text().splitlines()
    assert len(lines) == ROWS_OF_A_REASON + 2 and lines[-1].split("\t")[3:] == ["too_short", "7 more, not listed"]


def test_the_first_malformed_record_is_named_though_others_were_dropped_before():
    ledger = Ledger("skip")
    ledger.drop_record("a.fa", 1, "r", "too_short")
    ledger.note_error(InputError("a.fa:2", "no residue", "7"), "s")
    ledger.n_in = 2
    with pytest.raises(InputError, match=r"the first is a\.fa:2: no residue \(7\)"):
        ledger.check_counts("x", 0, 0.1)
