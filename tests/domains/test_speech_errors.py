"""The worst words of transcripts: counted over all utterances, shown with those that hold them."""

import pytest
from studies import as_records

from loratory import registry
from loratory.domains.dataset import record_schema, write_records
from loratory.domains.speech.errors import aligned_lines, aligned_words, worst_words
from loratory.domains.speech.sources import Task
from loratory.evaluation.rows import write_rows
from loratory.evaluation.transcripts import worst_words as words_of_systems
from loratory.reporting.transcripts import write_error_table, write_speed_table

TEXTS = {"u1": "the red cat", "u2": "the cat runs", "u3": "um", "u4": "a cat"}


def records() -> list[dict]:
    facts = {"audio_sha256": "", "start": 0.0, "end": -1.0, "gender": "", "seconds": 2.0, "sha256": "", "flaws": ""}
    facts |= {"read_in_train": False, "age": 7, "speaker": "s1", "group": "s1"}
    return [facts | {"id": id, "audio": f"{id}.wav", "text": text} for id, text in TEXTS.items()]


def rows(answers: dict[str, str], **label) -> list[dict]:
    facts = {"split": "test", "system": "base", "kind": "base", "group": "s1"} | label
    return [facts | {"id": id, "reference": TEXTS[id], "text": text} for id, text in answers.items()]


def test_words_are_ranked_by_their_errors_and_shown_with_the_utterances_that_hold_them():
    answers = {"u1": "The rat cut", "u2": "the cut runs, Uncle", "u3": "cat cat", "u4": "a cat"}
    found = worst_words(rows(answers), records(), Task(), 3)
    assert [(r["word"], r["id"]) for r in found] == [("cat", "u1"), ("cat", "u2"), ("red", "u1"), ("uncle", "u2")]
    cat = found[0]
    assert (cat["said"], cat["substituted"], cat["deleted"], cat["inserted"], cat["heard_as"]) == (3, 2, 0, 0, "cut")
    assert (cat["reference"], cat["answer"]) == ("the red cat", "the rat cut")
    assert found[-1]["inserted"] == 1 and found[-1]["reference"] == "the cat runs ***  "
    assert found[-1]["answer"] == "the cut runs uncle" and found[0]["audio"] == "u1.wav"


def test_seeds_are_counted_together_and_an_utterance_is_shown_once():
    both = rows({"u4": "a"}) + rows({"u4": "a"})
    found = worst_words(both, records(), Task(), 5)
    assert [(r["word"], r["said"], r["deleted"]) for r in found] == [("cat", 2, 2)]
    assert worst_words(rows({"u4": "A CAT!"}), records(), Task(), 5) == []


@pytest.mark.parametrize(("reference", "text"), [("a b c", "a x c d"), ("a b", ""), ("a", "b a"), ("a b", "c")])
def test_an_alignment_loses_no_word(reference, text):
    pairs = aligned_words(reference, text)
    assert [" ".join(filter(None, side)) for side in zip(*pairs)] == [reference, text]
    lines = aligned_lines(pairs)
    assert len(lines[0]) == len(lines[1]) and lines[1].replace("*", "").split() == text.split()


def test_tables_hold_all_systems_that_answer_for_themselves(tmp_path):
    (tmp_path / "data").mkdir()
    build = registry.load_module("domain", "speech", "build")
    write_records(tmp_path / "data" / "test.parquet", build, as_records(records(), record_schema(build)))
    control = rows(dict.fromkeys(TEXTS, ""), system="x:uniform", kind="control")
    valid = rows(dict.fromkeys(TEXTS, ""), split="valid")
    adapter = rows(TEXTS | {"u1": "the bed cat"}, system="lora@speech", kind="adapter")
    write_rows(tmp_path / "seed0.parquet", rows(TEXTS | {"u4": "a"}) + adapter + control + valid)
    found = words_of_systems("speech", {0: tmp_path / "seed0.parquet"}, tmp_path / "data", Task(), 20)
    assert [(r["system"], r["word"]) for r in found] == [("base", "cat"), ("lora@speech", "red")]
    write_error_table(found, tmp_path / "errors", "Worst words")
    lines = (tmp_path / "errors.tsv").read_text().splitlines()
    assert len(lines) == 3 and lines[2].split("\t")[:2] == ["lora@speech", "red"]
    assert "the bed cat" in (tmp_path / "errors.html").read_text()
    write_error_table([], tmp_path / "none", "Worst words")
    assert "system" in (tmp_path / "none.md").read_text()


def test_the_real_time_factor_is_seconds_of_work_over_seconds_of_sound(tmp_path):
    for seed, seconds in enumerate((2.0, 4.0)):
        cost = f'{{"audio": 30.0, "writing": {seconds}, "written": 60, "systems": {seed + 1}}}'
        unheard = '{"audio": 0.0, "writing": 1.0, "written": 9}'
        (tmp_path / f"{seed}.json").write_text(f'{{"base": {cost}, "other": {unheard}}}')
    write_speed_table([tmp_path / "0.json", tmp_path / "1.json"], tmp_path / "speed.tsv")
    header, *lines = (tmp_path / "speed.tsv").read_text().splitlines()
    assert header.split("\t")[3] == "real_time_factor"
    assert [line.split("\t") for line in lines] == [["base", "60.000", "6.000", "0.1000", "20.0", "2"]]
