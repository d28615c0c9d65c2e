"""How ratings are split: what each protocol keeps apart, and that the audit would see it if it did not."""

import json
from collections import Counter
from itertools import pairwise
from statistics import fmean

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from studies import as_records

from loratory.data.ledger import Ledger
from loratory.data.splits import SPLITS
from loratory.domains.dataset import AUDIT, CARD, audit_split, build_dataset, read_split, record_schema
from loratory.domains.recsys import build, task
from loratory.domains.recsys.sources import Dataset, Files, Simulation, Task
from loratory.errors import InputError

LOOSE = {"k_core": 1, "min_history": 1}
HELD_OUT = SPLITS[1:]


def random_log(seed=0, users=60, items=25, ratings=14):
    """[user, item, half stars, time], each user's within a stretch of a common time line, some in one second."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        start = rng.integers(0, 5000)
        times = start + np.sort(rng.integers(0, 40, ratings)) * 25
        rows += [
            (f"u{user}", f"i{item}", rng.integers(1, 11) / 2, int(time))
            for item, time in zip(rng.permutation(items)[:ratings], times)
        ]
    return rows


LOG = random_log()


@pytest.fixture
def files(tmp_path):
    return place(tmp_path, LOG)


def place(folder, rows):
    lines = "".join(f"{u},{i},{s},{t}\n" for u, i, s, t in rows)
    (folder / "log.csv").write_text("user,item,rating,timestamp\n" + lines)
    return Files(ratings=str(folder / "log.csv"), format="table")


def built(files, folder, seed=0, **options):
    """{split: records}, audited, and the card."""
    dataset = Dataset(**LOOSE | options)
    build_dataset("recsys", files, dataset, seed, folder / "data")
    audit_split("recsys", folder / "data", dataset, folder / AUDIT)
    counts = json.loads((folder / AUDIT).read_text())["counts"]
    assert set(counts.values()) == {0}
    parts = {split: read_split(folder / "data", split) for split in SPLITS}
    return parts, json.loads((folder / "data" / CARD).read_text()), counts


def test_by_time_every_split_lies_before_the_next(files, tmp_path):
    parts, card, counts = built(files, tmp_path)
    ends = [(min(r["timestamp"] for r in parts[s]), max(r["timestamp"] for r in parts[s])) for s in SPLITS]
    assert all(early[1] < late[0] for early, late in pairwise(ends))
    assert "not_before_later_split" in counts and card["summary"]["protocol"] == "time"


def test_leaving_the_last_out_keeps_each_users_time_in_order(files, tmp_path):
    parts, card, counts = built(files, tmp_path, protocol="leave_last_out")
    assert "not_before_later_split" in counts
    by_user = {}
    for split in SPLITS:
        for record in parts[split]:
            by_user.setdefault(record["user"], {}).setdefault(split, set()).add(record["timestamp"])
    for times in by_user.values():
        assert set(times) == set(SPLITS), "all users have more than three seconds of records"
        assert all(len(times[split]) == 1 for split in HELD_OUT)
        assert all(max(times[early]) < min(times[late]) for early, late in zip(SPLITS, HELD_OUT))
    assert card["summary"]["test"]["users"]["never_in_train"] == 0


def test_users_with_too_few_records_to_leave_any_out_are_trains(tmp_path):
    short = [("short", f"i{n}", 4.0, 100 * n) for n in range(4)]  # three records with a past
    parts, _, _ = built(place(tmp_path, [*LOG, *short]), tmp_path, protocol="leave_last_out")
    assert {split: sum(r["user"] == "short" for r in parts[split]) for split in SPLITS} == {
        **{"train": 3, "gate": 0, "valid": 0, "test": 0}
    }


def test_cold_users_of_a_held_out_split_stand_in_no_other(files, tmp_path):
    parts, card, counts = built(files, tmp_path, protocol="user_cold")
    users = {split: {r["user"] for r in parts[split]} for split in SPLITS}
    assert sum(map(len, users.values())) == len(set().union(*users.values())) == 60
    assert counts["users_in_two_splits"] == 0
    unseen = card["summary"]["test"]["users"]
    assert unseen == {
        "all": len(users["test"]),
        "never_in_train": len(users["test"]),
        "their_records": len(parts["test"]),
    }
    others, _, _ = built(files, tmp_path, seed=1, protocol="user_cold")
    assert {r["user"] for r in others["test"]} != users["test"]


def known_items(parts, protocol):
    """[user, item, stars, time] that what a record says of its item may be made of."""
    held = {}
    for split in HELD_OUT:
        for record in parts[split]:
            user, time = record["user"], record["timestamp"]
            held[user] = min(held.get(user, time), time)
    if protocol == "time":
        return LOG
    if protocol == "user_cold":
        return [row for row in LOG if row[0] not in held]
    return [row for row in LOG if row[0] not in held or row[3] < held[row[0]]]


@pytest.mark.parametrize("protocol", ["time", "leave_last_out", "user_cold"])
def test_averages_are_of_earlier_ratings_and_tell_train_nothing_of_held_out_ones(files, tmp_path, protocol):
    parts, _, _ = built(files, tmp_path, protocol=protocol)
    known = known_items(parts, protocol)
    for record in [record for part in parts.values() for record in part]:
        time = record["timestamp"]
        past = sorted((t, i, s) for u, i, s, t in LOG if u == record["user"] and t < time)
        others = [s for _, i, s, t in known if i == record["item"] and t < time]
        assert record["user_ratings"] == len(past) and record["user_mean"] == pytest.approx(fmean(s for *_, s in past))
        assert record["item_ratings"] == len(others)
        assert record["item_mean"] == pytest.approx(fmean(others) if others else 0)
        assert [*zip(record["history_times"], record["history_items"], record["history_stars"])] == past[-10:]


def test_the_card_counts_users_and_items_of_test_that_train_never_saw(tmp_path):
    rows = [*LOG, *(("late", f"i{n}" if n < 5 else f"new{n}", 4.0, 90_000 + n) for n in range(8))]
    parts, card, _ = built(place(tmp_path, rows), tmp_path)
    for name in ("user", "item"):
        seen, test = ({r[name] for r in parts[split]} for split in ("train", "test"))
        lost = test - seen
        records = sum(r[name] in lost for r in parts["test"])
        told = {"all": len(test), "never_in_train": len(lost), "their_records": records}
        assert card["summary"]["test"][f"{name}s"] == told and lost


def test_few_shots_of_train_are_scored_on_the_whole_test(files, tmp_path):
    whole, card, _ = built(files, tmp_path / "whole")
    for protocol in ("time", "user_cold", "leave_last_out"):
        whole, _, _ = built(files, tmp_path / "whole", protocol=protocol)
        few, card, _ = built(files, tmp_path / "few", protocol=protocol, max_train=16)
        assert len(few["train"]) == 16 and {split: few[split] for split in HELD_OUT} == {s: whole[s] for s in HELD_OUT}
        assert [r for r in whole["train"] if r in few["train"]] == few["train"]
        assert card["n_rejected"]["not_sampled"] == len(whole["train"]) - 16


def test_the_core_of_train_leaves_held_out_ratings_alone(tmp_path):
    rows = [
        *LOG,
        *(("once", f"rare{n}", 4.0, 10 + n) for n in range(3)),
        *(("late", f"rare{n}", 4.0, 90_000 + n) for n in range(6)),
    ]
    files = place(tmp_path, rows)
    every, _, _ = built(files, tmp_path / "a", k_core=4)
    inside, card, _ = built(files, tmp_path / "b", k_core=4, k_core_of="train")
    assert not any(r["user"] in ("once", "late") for part in every.values() for r in part)
    assert sum(r["user"] == "late" for r in inside["test"]) == 5
    train = inside["train"]
    assert not any(r["user"] == "once" for r in train) and card["n_rejected"]["k_core"] >= 2
    cut = min(r["timestamp"] for split in HELD_OUT for r in inside[split])
    kept = {(u, i) for u, i, _, t in core_of([row for row in rows if row[3] < cut], 4)}
    assert {(r["user"], r["item"]) for r in train} <= kept
    assert all((r["user"], item) in kept for r in train for item in r["history_items"])


def core_of(rows, k):
    while True:
        users, items = Counter(r[0] for r in rows), Counter(r[1] for r in rows)
        kept = [r for r in rows if users[r[0]] >= k and items[r[1]] >= k]
        if len(kept) == len(rows):
            return rows
        rows = kept


@pytest.mark.parametrize("protocol", ["leave_last_out", "user_cold"])
def test_the_core_of_train_goes_with_every_protocol(tmp_path, protocol):
    rare = [(user, f"rare{n}", 4.0, time + 1) for n, (user, _, _, time) in enumerate(LOG[7::14])]
    parts, card, _ = built(place(tmp_path, [*LOG, *rare]), tmp_path, protocol=protocol, k_core=5, k_core_of="train")
    assert not any("rare" in item for r in parts["train"] for item in (r["item"], *r["history_items"]))
    learnt = {row[0] for row in rare} & {r["user"] for r in parts["train"]}
    assert card["n_rejected"]["k_core"] == len(learnt)
    assert any("rare" in item for r in parts["test"] for item in (r["item"], *r["history_items"])) == (
        protocol == "user_cold"
    )


@pytest.mark.parametrize("protocol", ["time", "leave_last_out", "user_cold"])
def test_splits_do_not_depend_on_the_order_of_rows(tmp_path, protocol):
    folders = [tmp_path / name for name in "ab"]
    rows = [LOG, [LOG[i] for i in np.random.default_rng(1).permutation(len(LOG))]]
    for folder in folders:
        folder.mkdir()
    first, second = (built(place(f, log), f, protocol=protocol)[0] for f, log in zip(folders, rows))
    assert first == second


def test_options_that_contradict_each_other_are_refused():
    with pytest.raises(ValidationError, match="`protocol: leave_last_out` has no fractions; expected no `split`"):
        Dataset(protocol="leave_last_out", split={"train": 0.4, "gate": 0.2, "valid": 0.2, "test": 0.2})
    timeless = Files(ratings="r.csv", format="table", ratings_table={"columns": {"time": None}}, time="none")
    assert "no split by time is possible (protocol: leave_last_out)" in (
        Dataset(protocol="leave_last_out").source_conflict(timeless)
    )
    assert Dataset(protocol="user_cold").source_conflict(timeless) is None
    assert Dataset().source_conflict(Simulation()) is None
    assert Dataset().source_conflict(Files(ratings="ml.zip")) is None
    conflict = Task(history=50).dataset_conflict(Dataset(max_history=10))
    assert conflict.startswith("`task.history` 50 is above the 10 ratings that a record carries; expected at most")
    assert Task(history=10).dataset_conflict(Dataset(max_history=10)) is None


# --- what the audit would see

PAST = {"history_times": [1], "history_items": ["old"], "history_titles": ["Old"], "history_stars": [4.0]}


def a_record(split, user, item, time, **other):
    known = {"id": f"{user}:{item}:{time}", "group": user, "user": user, "item": item, "title": item, "profile": ""}
    numbers = {"timestamp": time, "rating": 4.0, "label": 1, "user_mean": 3.0, "item_mean": 3.0}
    return split, known | numbers | {"user_ratings": 1, "item_ratings": 0} | PAST | other


def proof_of(rows, protocol):
    parts = {split: as_records([r for s, r in rows if s == split], record_schema(build)) for split in SPLITS}
    return {name: n for name, n in build.proof(parts, Dataset(protocol=protocol)).items() if n}


SOUND = {
    "time": [a_record(split, f"u{n}", f"i{n}", 10 * n + 10) for n, split in enumerate(SPLITS)],
    "leave_last_out": [
        a_record(s, u, f"{u}{s}", 10 * n + 10 + 7 * (u == "v"), user_ratings=n + 1)
        for n, s in enumerate(SPLITS)
        for u in "uv"
    ],
    "user_cold": [a_record(split, f"u{n}", f"i{n}", 100 - n) for n, split in enumerate(SPLITS)],
}


@pytest.mark.parametrize(
    ("protocol", "bad", "name"),
    [
        ("time", a_record("train", "new", "new", 20), "not_before_later_split"),
        ("time", a_record("gate", "new", "new", 40), "not_before_later_split"),
        ("leave_last_out", a_record("train", "u", "new", 40, user_ratings=9), "not_before_later_split"),
        ("leave_last_out", a_record("valid", "v", "new", 47, user_ratings=9), "not_before_later_split"),
        ("user_cold", a_record("train", "u3", "new", 2, user_ratings=0), "users_in_two_splits"),
        ("user_cold", a_record("gate", "u0", "new", 2, user_ratings=0), "users_in_two_splits"),
        *(
            (protocol, a_record("test", "new", "new", 99, **PAST | {"history_times": [99]}), "future_in_history")
            for protocol in SOUND
        ),
        *(
            (
                p,
                a_record("test", "new", "new", 99, **{k: v * 2 for k, v in PAST.items()} | {"history_times": [9, 8]}),
                "history_not_in_order",
            )
            for p in SOUND
        ),
        *((p, a_record("test", "new", "old", 99), "item_in_own_history") for p in SOUND),
        ("time", a_record("test", "u3", "new", 50), "future_in_averages"),
        ("time", a_record("test", "new", "i0", 50), "future_in_averages"),
        ("user_cold", a_record("train", "u0", "new", 200), "future_in_averages"),
    ],
)
def test_the_audit_counts_what_a_protocol_forbids(protocol, bad, name):
    assert proof_of(SOUND[protocol], protocol) == {}
    assert proof_of([*SOUND[protocol], bad], protocol) == {name: 1}


def test_an_audit_that_finds_something_fails(files, tmp_path):
    dataset = Dataset(**LOOSE, protocol="user_cold")
    build_dataset("recsys", files, dataset, 0, tmp_path / "data")
    train, test = (pq.read_table(tmp_path / "data" / f"{split}.parquet") for split in ("train", "test"))
    mixed = pa.concat_tables([train, test.slice(0, 1)]).unify_dictionaries()
    pq.write_table(mixed, tmp_path / "data/train.parquet", write_page_checksum=True)
    with pytest.raises(InputError, match=r"the splits leak .*(users_in_two_splits|ids_in_two_splits)"):
        audit_split("recsys", tmp_path / "data", dataset, tmp_path / AUDIT)
    assert not (tmp_path / AUDIT).exists()


# --- prompts of other things than films


def test_a_search_of_parts_is_that_of_each_part():
    rng = np.random.default_rng(0)
    sizes = np.array([0, 5, 1, 40, 0])
    starts = np.append(0, np.cumsum(sizes))
    values = np.concatenate([np.sort(rng.integers(0, 9, size)) for size in sizes]).astype(np.uint32)
    parts, wanted = rng.integers(0, len(sizes), 200), rng.integers(-1, 11, 200)
    expected = [
        starts[part] + np.searchsorted(values[starts[part] : starts[part + 1]], at) for part, at in zip(parts, wanted)
    ]
    assert build.search_parts(values, starts[parts], starts[parts + 1], wanted).tolist() == expected


def test_prompts_are_templates_of_the_config():
    books = Task(
        heading="Books read so far ({{}} marks nothing):",
        event="* {title}: {rating}/10",
        question_text="Will the reader like “{title}”? Say yes or no:",
    )
    past = {"history_times": [1, 2], "history_titles": ["Emma", "{title} {0}"], "history_stars": [7.0, 8.5]}
    record = {"title": "Dune {rating}", "profile": "", **past}
    assert task.record_prompt(record, books).splitlines() == [
        "Books read so far ({} marks nothing):",
        "* Emma: 7/10",
        "* {title} {0}: 8.5/10",
        "Will the reader like “Dune {rating}”? Say yes or no:",
    ]


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"question_text": "Like it?"}, "`question_text` says nothing of the item; expected {title} in it"),
        ({"event": "- {rating}"}, "`event` says nothing of the item"),
        ({"event": "- {titel}"}, "nothing to fill into `{titel}`; expected {title}, {rating}"),
        ({"event": "- {title.__class__}"}, "nothing to fill into `{title.__class__}`"),
        ({"event": "- {}"}, "nothing to fill into `{}`"),
        ({"event": "- {title:>10}"}, "`{title}` is filled in as it is; expected no `:`"),
        ({"event": "- {title!r}"}, "`{title}` is filled in as it is"),
        ({"event": "- {title"}, "not a template"),
        ({"event": "{title}\n"}, "`event` is more than one line"),
        ({"heading": "of {title}"}, "nothing to fill into `{title}`; expected none"),
        ({"question_text": "{title}? yes or no: "}, "`question_text` ends in white space"),
        ({"item_average": "{stars}"}, "nothing to fill into `{stars}`; expected {mean}, {count}"),
    ],
)
def test_a_template_that_cannot_be_filled_is_refused_with_the_config(given, what):
    with pytest.raises(ValidationError) as caught:
        Task(**given)
    assert what in str(caught.value)


def test_the_prompt_of_films_is_what_it_was():
    past = {"history_times": [1], "history_titles": ["Heat (1995)"], "history_stars": [3.5]}
    known = {"user_ratings": 2, "user_mean": 3.25, "item_ratings": 1, "item_mean": 4.0}
    record = {"title": "Ronin (1998)", "profile": "Sex: male. Age: 25-34.", **past, **known}
    assert task.record_prompt(record, Task(averages=True)) == (
        "Sex: male. Age: 25-34.\n"
        "The user rated these movies in the past, in this order:\n"
        "- Heat (1995) (3.5 stars)\n"
        "The user gave 3.25 stars on average (2 ratings).\n"
        "Other users gave this movie 4.00 stars on average (1 ratings).\n"
        "Based on these ratings, deduce whether the user will like the movie ***Ronin (1998)***.\n"
        "More stars mean that the user liked a movie more.\n"
        "Answer only yes or no:"
    )


def test_negatives_split_with_the_choice_they_stand_beside(tmp_path):
    rows = [row for row in LOG if row[2] > 2]
    parts, card, _ = built(place(tmp_path, rows), tmp_path, negatives=1, positive=0.5)
    drawn = [r for part in parts.values() for r in part if r["rating"] == 0]
    assert len(drawn) == card["n_changed"]["drawn_as_not_chosen"] > 100
    assert all(r["label"] == (r["rating"] > 0) for part in parts.values() for r in part)
    ledger = Ledger()
    table = build.read(place(tmp_path, rows), Dataset(**LOOSE, negatives=1, positive=0.5), ledger)
    assert [*table.ids()] == sorted(table.ids())
