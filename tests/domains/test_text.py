"""The text domain: rows of any layout, splits without near-copies, and numbers worked out by hand."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loratory.data.files import read_json
from loratory.data.ledger import Ledger
from loratory.data.records import Records, table_records
from loratory.data.splits import SPLITS
from loratory.domains.dataset import audit_split, build_dataset, read_split
from loratory.domains.text import build, metrics, simulate, sources, task
from loratory.errors import InputError

CHOICE = {"prompt": "Is it warm?", "choices": ["yes", "no"], "answer": "yes"}


def lines(path, rows) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


def read(path, ledger=None, columns=None, **options) -> list[dict]:
    files = sources.Files(records=str(path), columns=columns or {})
    return list(build.read(files, sources.Dataset(**options), ledger or Ledger()))


def records(prompts, answer="a") -> list[dict]:
    """Records as they come out of `read`, of prompts that share no template."""
    return [
        {"id": f"r{i:03}", "prompt": prompt, "answer": answer, "choices": [], "unit": "", "compared": prompt}
        for i, prompt in enumerate(prompts)
    ]


def table(rows) -> Records:
    return table_records(pa.Table.from_pylist(rows))


# --- layouts ---------------------------------------------------------------------------------------------------------

LAYOUTS = {
    "completion": ({"prompt": " 1 + 1 ", "completion": 2}, "1 + 1", "2", []),
    "alpaca": ({"instruction": "Add.", "input": "1 1", "output": "2"}, "Add.\n\n1 1", "2", []),
    "alpaca_without_input": ({"instruction": "Add 1 and 1.", "input": "", "output": "2"}, "Add 1 and 1.", "2", []),
    "chat": (
        {
            "messages": [
                {"role": "system", "content": "Be short."},
                {"role": "user", "content": "1 + 1?"},
                {"role": "assistant", "content": "2"},
            ]
        },
        "Be short.\n\n1 + 1?",
        "2",
        [],
    ),
    "long_chat": (
        {
            "messages": [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Hello"},
                {"role": "user", "content": "1 + 1?"},
                {"role": "assistant", "content": "2"},
            ]
        },
        "user: Hi\n\nassistant: Hello\n\nuser: 1 + 1?",
        "2",
        [],
    ),
    "choice_by_text": (CHOICE, "Is it warm?", "yes", ["no", "yes"]),
    "choice_by_place": (CHOICE | {"answer": 1}, "Is it warm?", "no", ["no", "yes"]),
    "choice_whose_text_is_a_place": (CHOICE | {"choices": ["1", "0"], "answer": "1"}, "Is it warm?", "1", ["0", "1"]),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_rows_layout_is_told_by_its_keys(tmp_path, name):
    row, prompt, answer, choices = LAYOUTS[name]
    (record,) = read(lines(tmp_path / "rows.jsonl", [row]))
    assert (record["prompt"], record["answer"], record["choices"]) == (prompt, answer, choices)
    assert record["id"] == "rows.jsonl:1"


def test_the_same_rows_are_read_from_every_kind_of_file(tmp_path):
    rows = [CHOICE | {"id": "a", "group": "g"}, CHOICE | {"id": "b", "group": "h", "prompt": "Cold?", "answer": "no"}]
    cells = [row | {"choices": json.dumps(row["choices"])} for row in rows]
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress("".join(f"{json.dumps(r)}\n" for r in rows).encode()))
    (tmp_path / "rows.json").write_text(json.dumps(rows, indent=1))
    pq.write_table(pa.Table.from_pylist(cells), tmp_path / "rows.parquet")
    quoted = ['"' + row["choices"].replace('"', '""') + '"' for row in cells]
    body = [f"{r['id']},{r['group']},{r['prompt']},{q},{r['answer']}" for r, q in zip(rows, quoted)]
    (tmp_path / "rows.csv").write_text("\n".join(["id,group,prompt,choices,answer", *body]) + "\n")
    (tmp_path / "lists").mkdir()  # as libraries of data sets write them
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "lists" / "rows.parquet")
    paths = [*(f"rows.{suffix}" for suffix in ("jsonl.gz", "json", "parquet", "csv")), "lists/rows.parquet"]
    found = [read(tmp_path / path) for path in paths]
    own = [[{key: r[key] for key in r if key != "where"} for r in part] for part in found]
    assert all(part == own[0] for part in own)
    assert [(r["id"], r["unit"], r["answer"]) for r in own[0]] == [("a", "g", "yes"), ("b", "h", "no")]


def test_keys_may_be_called_otherwise(tmp_path):
    path = lines(tmp_path / "rows.jsonl", [{"question": "1 + 1", "reply": "2", "user": 7}])
    (record,) = read(path, columns={"prompt": "question", "completion": "reply", "group": "user"})
    assert (record["prompt"], record["answer"], record["unit"]) == ("1 + 1", "2", "7")


# --- bad input: one line that names file, record and what to do ------------------------------------------------------

SOUND = b'{"prompt": "p", "completion": "c"}'
BAD_ROWS = {
    "json": (b'{"prompt": "q", ', "not JSON"),
    "no_object": (b'["q"]', "not a JSON object"),
    "encoding": (b'{"prompt": "caf\xe9", "completion": "c"}', "not utf-8 at byte 15"),
    "no_layout": (
        b'{"text": "q"}',
        "a key is missing, or has no value; it has text; expected `prompt` and `completion`; ",
    ),
    "missing_key": (
        b'{"prompt": "q", "reply": "c"}',
        "a key is missing, or has no value; it has prompt, reply; expected `completion`",
    ),
    "empty": (b'{"prompt": "q", "completion": " "}', "`completion` is empty"),
    "no_text": (b'{"prompt": ["q"], "completion": "c"}', "`prompt` is no text (['q'])"),
    "null": (
        b'{"prompt": "q", "completion": null}',
        "a key is missing, or has no value; it has prompt; expected `comp",
    ),
    "no_number": (b'{"prompt": "q", "completion": NaN}', "`completion` is no text (nan)"),
    "surrogate": (b'{"prompt": "\\ud83d", "completion": "c"}', "half of a surrogate pair"),
    "both": (b'{"prompt": "q", "completion": "c", "choices": ["a", "b"], "answer": 0}', "a row of both questions"),
    "question": (
        b'{"prompt": "q", "choices": ["a", "b"], "answer": 0}',
        "a row of another question (a/b); expected a co",
    ),
    "answer": (b'{"prompt": "q", "choices": ["a", "b"], "answer": 2}', "the answer is not among the choices (2)"),
    "flag": (b'{"prompt": "q", "choices": ["a", "b"], "answer": true}', "the answer is not among the choices (True)"),
    "three": (b'{"prompt": "q", "choices": ["a", "b", "c"], "answer": 0}', "`choices` are not two different answers"),
    "alike": (b'{"prompt": "q", "choices": ["a", "a "], "answer": 0}', "`choices` are not two different answers"),
    "turn": (b'{"messages": [{"role": "bot", "content": "q"}]}', "turn 1 of the chat is malformed"),
    "unanswered": (b'{"messages": [{"role": "user", "content": "q"}]}', "not a chat with an answer"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_malformed_row_is_named_with_its_line_and_may_be_skipped(tmp_path, name):
    row, words = BAD_ROWS[name]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(SOUND + b"\n" + row + b"\n")
    with pytest.raises(InputError) as caught:
        read(path)
    line = str(caught.value)
    assert line.startswith(f"{path}:2: {words}") and "\n" not in line
    ledger = Ledger("skip")
    assert [record["id"] for record in read(path, ledger)] == ["rows.jsonl:1"]
    assert ledger.n_in == 2 and ledger.n_malformed == 1 and ledger.rows[0][:2] == (str(path), "2")


def test_other_answers_than_those_of_the_first_row_are_refused(tmp_path):
    path = lines(tmp_path / "rows.jsonl", [CHOICE, CHOICE | {"choices": ["yes", "maybe"]}])
    with pytest.raises(InputError, match=r":2: a row of another question \(maybe/yes\); expected no/yes, as at .*:1;"):
        read(path)


def test_a_duplicate_id_is_named_with_the_place_of_the_first(tmp_path):
    rows = [{"id": "x", "prompt": f"prompt {i}", "completion": "c"} for i in range(2)]
    files = sources.Files(records=lines(tmp_path / "rows.jsonl", rows))
    with pytest.raises(InputError, match=r"rows.jsonl:2: duplicate id, first seen at .*rows.jsonl:1 \(x\)"):
        build_dataset("text", files, sources.Dataset(), 0, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_copy_and_what_is_too_long_are_left_out_and_accounted_for(tmp_path):
    rows = [{"prompt": "one", "completion": "c"}] * 2 + [{"prompt": "one " * 9, "completion": "c"}]
    ledger = Ledger()
    kept = read(lines(tmp_path / "rows.jsonl", rows), ledger, max_prompt=20)
    assert [record["id"] for record in kept] == ["rows.jsonl:1"]
    assert ledger.reason_counts() == {"duplicate": 1, "too_long": 1} and ledger.n_in == 3


def test_the_task_must_put_the_question_of_the_records():
    with pytest.raises(
        InputError, match=r"another question \(choice\); expected completion; fix: set `task: \{ask: com"
    ):
        task.examples([r | {"group": "g"} for r in records(["one"])], sources.Task(ask="choice"), "causal")


# --- near-copies -----------------------------------------------------------------------------------------------------


def numbered(i: int, n: int = 40) -> str:
    """A text of which no run of five words stands in another."""
    return " ".join(f"w{i}x{j}" for j in range(n))


def test_what_all_prompts_share_is_not_compared(tmp_path):
    rows = [{"prompt": f"{'Answer in one word and be brief. ' * 5}{word}? Now!", "completion": "c"} for word in "abc"]
    found = read(lines(tmp_path / "rows.jsonl", rows))
    assert [record["compared"] for record in found] == ["a", "b", "c"]
    assert len({*build.group(table(found), sources.Dataset())}) == 3


def test_where_all_prompts_are_the_same_answers_are_compared(tmp_path):
    rows = [{"prompt": "Tell a story.", "completion": text} for text in ("One day.", "One night.", "One day!")]
    found = read(lines(tmp_path / "rows.jsonl", rows))
    assert build.group(table(found), sources.Dataset()) == ["rows.jsonl:1", "rows.jsonl:2", "rows.jsonl:1"]


def test_near_copies_and_rows_of_one_named_group_are_grouped():
    found = records([numbered(0), f"{numbered(0)} please", numbered(1), numbered(2), numbered(2).upper(), numbered(3)])
    found[2]["unit"] = found[5]["unit"] = "same"
    found[4]["compared"] = found[4]["compared"].casefold()
    assert build.group(table(found), sources.Dataset()) == ["r000", "r000", "r002", "r003", "r003", "r002"]


def test_a_leak_is_found_exactly_from_the_threshold_on():
    """40 words are 36 runs; 4 words more are 40, of which 36 are common: 0.9."""
    held_out, others = records([numbered(0)]), records([f"{numbered(0)} {numbered(1, 4)}", numbered(2)])
    assert build.find_leaks(table(held_out), table(others), sources.Dataset(similarity=0.9)) == {"r000": "r000"}
    assert build.find_leaks(table(held_out), table(others), sources.Dataset(similarity=0.901)) == {}
    shared = build.count_overlaps(table(held_out), table(others), sources.Dataset(similarity=0.95))
    assert {name: each["records"] for name, each in shared.items()} == {
        "the same prompt": 0,
        "95% of runs of five words": 0,
        "50% of runs of five words": 1,
    }


def test_the_same_prompt_is_a_leak_whatever_its_data_set_calls_a_template():
    held_out, others = records([numbered(0)]), records([numbered(0)])
    others[0]["compared"] = "something else"
    assert build.find_leaks(table(held_out), table(others), sources.Dataset()) == {"r000": "r000"}


def test_splits_share_nothing_and_do_not_depend_on_the_order_of_the_rows(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    simulate.simulate(sources.Simulation(n=60), "domain", 0, raw)
    rows = (raw / "records.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "backwards").mkdir()
    (tmp_path / "backwards/records.jsonl").write_text("".join(reversed(rows)))
    for folder in (raw, tmp_path / "backwards"):
        files = sources.Files(records=str(folder / "records.jsonl"))
        build_dataset("text", files, sources.Dataset(), 0, folder / "data")
    audit_split("text", raw / "data", sources.Dataset(), tmp_path / "audit.json")
    audit = read_json(tmp_path / "audit.json")
    assert {*audit["counts"].values()} == {0}
    assert audit["shared"]["other splits"]["the same prompt"]["records"] == 0
    for split in SPLITS:
        parts = [(folder / f"data/{split}.parquet").read_bytes() for folder in (raw, tmp_path / "backwards")]
        assert parts[0] == parts[1]
    home = {record["id"]: split for split in SPLITS for record in read_split(raw / "data", split)}
    again = [id for id in home if id.endswith("-again")]
    assert len(again) > 10 and all(home[id] == home[id.removesuffix("-again")] for id in again)


def test_an_audit_stops_where_a_near_copy_was_moved_into_train(tmp_path):
    files = sources.Files(
        records=lines(tmp_path / "rows.jsonl", [{"prompt": numbered(i), "completion": "c"} for i in range(12)])
    )
    build_dataset("text", files, sources.Dataset(), 0, tmp_path / "data")
    train, test = (pq.read_table(tmp_path / f"data/{split}.parquet") for split in ("train", "test"))
    row = test.slice(0, 1).to_pylist()[0]
    near = row | {"id": "near", "group": "near", "compared": f"{row['compared']} please", "prompt": "p"}
    pq.write_table(
        pa.concat_tables([train, pa.Table.from_pylist([near], train.schema)]), tmp_path / "data/train.parquet"
    )
    with pytest.raises(InputError, match="resembles_test': 1"):
        audit_split("text", tmp_path / "data", sources.Dataset(), tmp_path / "audit.json")


@pytest.mark.parametrize("ask", ["completion", "choice"])
def test_the_populations_share_no_prompt(tmp_path, ask):
    prompts = []
    for population in ("general", "domain"):
        (tmp_path / population).mkdir()
        simulate.simulate(sources.Simulation(n=40, ask=ask), population, 0, tmp_path / population)
        prompts.append({record["prompt"] for record in read(tmp_path / population / "records.jsonl")})
    assert not prompts[0] & prompts[1]


# --- numbers ---------------------------------------------------------------------------------------------------------

F1 = {
    ("The cat sat.", "a cat sat"): 1.0,
    ("cat", "the cat sat down"): 0.5,  # of 1 and 3 words, 1 in common
    ("dog", "cat"): 0.0,
    ("cat cat", "cat"): 2 / 3,
    ("", "cat"): 0.0,
    ("the", "a"): 1.0,
}


@pytest.mark.parametrize("texts", F1)
def test_token_f1_is_that_of_squad(texts):
    assert metrics.token_f1(*texts) == pytest.approx(F1[texts])


def values(rows, held_out, ask) -> dict[str, float]:
    own = sources.Task(ask=ask)
    columns = metrics.columns(rows, held_out, own)
    return {m.name: m.compute_value(columns) for m in metrics.METRICS if ask in m.questions}


def test_metrics_of_completions_equal_values_worked_out_by_hand():
    rows = [
        {"id": "a", "reference": "Red  Fox", "text": "red fox\n", "nll": 2.0, "tokens": 3},
        {"id": "b", "reference": "red fox", "text": "fox", "nll": 4.0, "tokens": 1},
    ]
    found = values(rows, [], "completion")
    assert found == pytest.approx({"token_f1": 5 / 6, "exact_match": 0.5, "nll_per_token": 1.5})


def test_metrics_of_choices_equal_values_worked_out_by_hand():
    held_out = [{"id": id, "choices": ["no", "yes"], "answer": answer} for id, answer in (("a", "yes"), ("b", "no"))]
    rows = [{"id": "b", "p": 0.5}, {"id": "a", "p": 0.5}]
    assert values(rows, held_out, "choice") == pytest.approx({"accuracy": 0.5, "log_loss": 0.693147}, abs=1e-6)


def placed(prompts, answers, choices=()) -> list[dict]:
    return [
        record | {"answer": answer, "group": record["id"], "choices": [*choices]}
        for record, answer in zip(records(prompts), answers)
    ]


def test_baselines_of_completions_take_the_commonest_and_the_nearest():
    train = placed(["red apple", "green pear", "blue plum"], ["1", "2", "2"])
    found = task.baselines(train, placed(["a red thing", "???"], ["1", "2"]), sources.Task())
    assert {name: [row["text"] for row in rows] for name, rows in found.items()} == {
        "commonest": ["2", "2"],
        "nearest_prompt": ["1", "1"],  # nothing is near `???`: the first
    }


def test_baselines_of_choices_take_the_majority_and_the_words():
    train = placed(["good", "good day", "bad", "bad day", "fine"], ["yes", "yes", "no", "no", "yes"], ["no", "yes"])
    asked = placed(["good thing", "bad thing"], ["yes", "no"], ["no", "yes"])
    found = task.baselines(train, asked, sources.Task(ask="choice"))
    assert [row["p"] for row in found["majority"]] == pytest.approx([0.6, 0.6])
    good, bad = (row["p"] for row in found["word_regression"])
    assert good > 0.6 > bad
