"""Speech: what is read, refused and kept; that no voice is in two splits; how errors are counted."""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from studies import as_records

from loratory.data.audio import RATE, inspect_audio, read_audio, read_clip
from loratory.data.clips import Clip
from loratory.data.files import file_sha256
from loratory.data.ledger import Ledger
from loratory.domains.dataset import audit_split, build_dataset, read_split
from loratory.domains.fetch import fetch_source, listed_state
from loratory.domains.speech import build, metrics, simulate
from loratory.domains.speech.espeak import Synthesiser
from loratory.domains.speech.filters import answer_flags
from loratory.domains.speech.markup import find_unknown_mark
from loratory.domains.speech.sources import Dataset, Files, Simulation, Task
from loratory.domains.speech.task import baselines, examples, plain_transcript
from loratory.errors import InputError

ANY = Dataset(held_out_sentences="any")
TEXTS = ("red ball", "BLUE cat", "it's a dog", "go home")


def noise(seed, seconds=0.5):
    return np.random.default_rng(seed).normal(0, 0.1, int(seconds * RATE)).astype(np.float32)


def write_table(folder, name, rows, blank="\t"):
    Path(folder, name).write_text("".join(f"{key}{blank}{value}\n" for key, value in rows.items()))


@pytest.fixture
def corpus(tmp_path):
    """Twelve speakers with four utterances each: `s03-2` is the third one of speaker s03, who is eight."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    tables = {name: {} for name in ("wav.scp", "text", "utt2spk", "spk2age", "spk2gender")}
    for speaker in range(12):
        who = f"s{speaker:02d}"
        tables["spk2age"][who], tables["spk2gender"][who] = 5 + speaker, "MF"[speaker % 2]
        for i, text in enumerate(TEXTS):
            id = f"{who}-{i}"
            soundfile.write(folder / f"{id}.flac", noise(10 * speaker + i), RATE)
            tables["wav.scp"][id], tables["text"][id], tables["utt2spk"][id] = f"{id}.flac", text, who
    for name, rows in tables.items():
        write_table(folder, name, rows)
    return folder


def change(folder, table, key, value=None):
    """Rewrites one row of a table, or removes it."""
    rows = dict(line.split("\t", 1) for line in Path(folder, table).read_text().splitlines())
    rows.pop(key) if value is None else rows.update({key: value})
    write_table(folder, table, rows)


def files(*folders) -> Files:
    return Files(folders=[str(folder) for folder in folders], audio_root=str(folders[0]))


def records(folder, **options):
    ledger = Ledger(options.get("on_error", "fail"))
    found = list(build.read(files(folder), Dataset(**options), ledger))
    assert ledger.n_in == len(found) + len(ledger.rows)
    return found, ledger


def refusal(folder, **options) -> InputError:
    with pytest.raises(InputError) as caught:
        records(folder, **options)
    assert "\n" not in str(caught.value)
    return caught.value


# what is read


def test_records_carry_what_the_tables_say(corpus):
    found, _ = records(corpus)
    assert [record["id"] for record in found] == sorted(record["id"] for record in found)
    assert len(found) == 48
    record = found[14]
    assert record | {"sha256": ""} == {
        "id": "s03-2",
        "audio": str(corpus / "s03-2.flac"),
        "audio_sha256": file_sha256(corpus / "s03-2.flac"),
        "start": 0.0,
        "end": -1.0,
        "flaws": "",
        "text": "it's a dog",
        "speaker": "s03",
        "age": 8,
        "gender": "f",
        "seconds": 0.5,
        "sha256": "",
    }
    assert build.group(as_records(found), Dataset())[14] == "s03"


def test_blank_separated_tables_read_as_tab_separated_ones(corpus):
    expected, _ = records(corpus)
    for table in corpus.glob("*[!c]"):
        if table.suffix != ".flac":
            table.write_text(table.read_text().replace("\t", "  "))
    assert records(corpus)[0] == expected


def test_row_order_is_irrelevant(corpus):
    expected, _ = records(corpus)
    for name in ("wav.scp", "text", "utt2spk"):
        Path(corpus, name).write_text("\n".join(sorted(Path(corpus, name).read_text().split("\n"), reverse=True)))
    assert records(corpus)[0] == expected


def test_speaker_tables_are_optional_and_unknown_is_unknown(corpus):
    (corpus / "spk2gender").unlink()
    change(corpus, "spk2age", "s03")
    found, _ = records(corpus)
    assert {record["gender"] for record in found} == {""}
    assert {record["age"] for record in found if record["speaker"] == "s03"} == {-1}
    assert files(corpus).file_paths() == [str(corpus / name) for name in ("wav.scp", "text", "utt2spk", "spk2age")]


def test_wav_and_flac_of_the_same_samples_have_one_digest(corpus):
    samples, _ = soundfile.read(corpus / "s00-0.flac")
    soundfile.write(corpus / "s00-0.wav", samples, RATE, subtype="FLOAT")
    before = records(corpus)[0][0]["sha256"]
    change(corpus, "wav.scp", "s00-0", "s00-0.wav")
    assert records(corpus)[0][0]["sha256"] == before


def test_absolute_paths_ignore_the_audio_root(corpus):
    change(corpus, "wav.scp", "s00-0", str(corpus / "s00-0.flac"))
    found = list(build.read(Files(folders=[str(corpus)], audio_root=str(corpus)), Dataset(), Ledger()))
    assert found[0]["audio"] == str(corpus / "s00-0.flac")


def test_several_folders_are_pooled(corpus, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    soundfile.write(corpus / "x.flac", noise(999), RATE)
    for name, value in (("wav.scp", "x.flac"), ("text", "hello"), ("utt2spk", "new")):
        write_table(other, name, {"z-1": value})
    found = list(build.read(files(corpus, other), Dataset(), Ledger()))
    assert len(found) == 49 and found[-1]["speaker"] == "new" and found[-1]["age"] == -1


def test_text_in_another_encoding_is_read_when_named(corpus):
    table = corpus / "text"
    table.write_bytes(table.read_text().replace("go home", "été").encode("latin-1"))
    assert "not utf-8" in str(refusal(corpus)) and refusal(corpus).where == f"{table}:4"
    named = Files(folders=[str(corpus)], audio_root=str(corpus), encoding="latin-1")
    assert "été" in {record["text"] for record in build.read(named, Dataset(), Ledger())}


# what is refused, each time naming file and record


def stop_audio(folder):
    (folder / "s03-2.flac").unlink()


def corrupt_audio(folder):
    (folder / "s03-2.flac").write_text("not audio " * 100)


def cut_audio(folder):
    content = (folder / "s03-2.flac").read_bytes()
    (folder / "s03-2.flac").write_bytes(content[: len(content) // 2])


def silence_audio(folder):
    soundfile.write(folder / "s03-2.flac", np.zeros(RATE), RATE)


def repeat_row(folder):
    with open(folder / "text", "a") as table:
        table.write("s03-2\tagain\n")


BAD = {
    "orphan transcript": (lambda f: change(f, "wav.scp", "s03-2"), "wav.scp:s03-2", "no_audio"),
    "audio without transcript": (lambda f: change(f, "text", "s03-2"), "text:s03-2", "no_transcript"),
    "empty transcript": (lambda f: change(f, "text", "s03-2", ""), "text:s03-2", "empty_text"),
    "transcript of marks": (lambda f: change(f, "text", "s03-2", "?!"), "text:s03-2", "empty_text"),
    "unknown tag": (lambda f: change(f, "text", "s03-2", "a <NOISE> dog"), "text:s03-2", "tag"),
    "unknown filler mark": (lambda f: change(f, "text", "s03-2", "a +um+ dog"), "text:s03-2", "tag"),
    "unknown gap mark": (lambda f: change(f, "text", "s03-2", "a (()) dog"), "text:s03-2", "tag"),
    "no speaker": (lambda f: change(f, "utt2spk", "s03-2"), "utt2spk:s03-2", "no_speaker"),
    "age 0": (lambda f: change(f, "spk2age", "s03", "0"), "spk2age:s03", "age"),
    "age 120": (lambda f: change(f, "spk2age", "s03", "120"), "spk2age:s03", "age"),
    "age in words": (lambda f: change(f, "spk2age", "s03", "eight"), "spk2age:s03", "age"),
    "shell pipe": (lambda f: change(f, "wav.scp", "s03-2", "sph2pipe a.sph |"), "wav.scp:s03-2", "shell_pipe"),
    "missing audio": (stop_audio, "s03-2.flac:s03-2", "audio_missing"),
    "text named flac": (corrupt_audio, "s03-2.flac:s03-2", "audio_format"),
    "truncated audio": (cut_audio, "s03-2.flac:s03-2", "audio_format"),
    "silent audio": (silence_audio, "s03-2.flac:s03-2", "audio_silent"),
    "duplicate id": (repeat_row, "text:49", "duplicate_id"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_utterance_is_named(corpus, name):
    spoil, where, reason = BAD[name]
    spoil(corpus)
    error = refusal(corpus)
    assert (error.where, error.reason) == (str(corpus / where), reason)


@pytest.mark.parametrize("name", BAD)
def test_bad_utterance_is_skipped_and_counted(corpus, name):
    spoil, _, reason = BAD[name]
    spoil(corpus)
    found, ledger = records(corpus, on_error="skip")
    assert set(ledger.reason_counts()) == {reason} and ledger.n_malformed == len(ledger.rows)
    assert len(found) == 44 if reason == "age" else len(found) >= 47


def test_utterance_in_two_folders(corpus, tmp_path):
    copy = shutil.copytree(corpus, tmp_path / "copy")
    with pytest.raises(InputError, match="duplicate id") as caught:
        list(build.read(files(corpus, copy), Dataset(), Ledger()))
    assert caught.value.where == f"{copy / 'wav.scp'}:s00-0"


@pytest.mark.parametrize("table", ["wav.scp", "text", "utt2spk"])
def test_missing_and_empty_tables(corpus, table):
    (corpus / table).write_text("")
    assert str(refusal(corpus)).startswith(f"{corpus / table}: the file is empty")
    (corpus / table).unlink()
    assert str(refusal(corpus)).startswith(f"{corpus / table}: no such file")


@pytest.mark.parametrize("options", [{"min_age": 9, "max_age": 8}, {"min_seconds": 3, "max_seconds": 2}, {"old": 1}])
def test_impossible_options(options):
    with pytest.raises(ValidationError):
        Dataset(**options)


def test_unknown_encoding_is_refused_with_the_config():
    with pytest.raises(ValidationError, match="utf9"):
        Files(folders=["corpus"], encoding="utf9")


# recordings, segments and paths


def table_of(folder, name, **rows):
    write_table(folder, name, {key.replace("_", "-"): value for key, value in rows.items()}, " ")


@pytest.fixture
def lesson(tmp_path):
    """A recording of 6 s in which two children speak, one of them twice, and one that nobody cut."""
    soundfile.write(tmp_path / "lesson.wav", noise(1, 6), RATE, subtype="FLOAT")
    table_of(tmp_path, "wav.scp", rec=tmp_path / "lesson.wav", other=tmp_path / "none.wav")
    table_of(tmp_path, "segments", a_1="rec 0.5 1.25", b_1="rec   2 3", a_2="rec 4 -1")
    table_of(tmp_path, "text", a_1="one", b_1="two", a_2="three")
    table_of(tmp_path, "utt2spk", a_1="a", b_1="b", a_2="a")
    return tmp_path


def test_segments_are_parts_of_their_recording(lesson):
    found, ledger = records(lesson)
    assert [(r["id"], r["start"], r["end"], r["seconds"]) for r in found] == [
        ("a-1", 0.5, 1.25, 0.75),
        ("a-2", 4, -1, 2),
        ("b-1", 2, 3, 1),
    ]
    assert ledger.reason_counts() == {"no_segment": 1}
    assert str(lesson / "segments") in files(lesson).file_paths()
    assert build.group(as_records(found), Dataset()) == ["a", "a", "a"], (
        "who is heard in one recording stays in one split"
    )
    clips = [example.audio for example in examples([r | {"group": "a"} for r in found], Task(), "whisper")]
    assert np.array_equal(read_clip(clips[2]), noise(1, 6)[2 * RATE : 3 * RATE])


@pytest.mark.parametrize("segment", ["rec 3 2", "rec x 2", "rec 1", "rec -1 2", "rec nan 2", "rec 1 inf", "rec 5 7"])
def test_a_segment_that_is_none_is_named(lesson, segment):
    table_of(lesson, "segments", a_1=segment)
    table_of(lesson, "text", a_1="one")
    table_of(lesson, "utt2spk", a_1="a")
    assert refusal(lesson).reason == "segment_times" and "a-1" in refusal(lesson).where


def test_a_path_keeps_its_blanks_and_tables_may_begin_with_a_mark(corpus):
    soundfile.write(corpus / "my file.flac", noise(7), RATE)
    soundfile.write(corpus / "my  file.flac", noise(8), RATE)
    change(corpus, "wav.scp", "s00-0", "my  file.flac")
    for name in ("wav.scp", "text", "utt2spk", "spk2age", "spk2gender"):
        (corpus / name).write_bytes(b"\xef\xbb\xbf" + (corpus / name).read_bytes())
    found = records(corpus)[0]
    assert len(found) == 48 and found[0]["age"] == 5
    assert found[0]["audio_sha256"] == file_sha256(corpus / "my  file.flac")


def test_a_name_too_long_for_a_file_is_refused_with_its_row(corpus):
    change(corpus, "wav.scp", "s00-0", "a" * 5000)
    error = refusal(corpus)
    assert error.where == f"{corpus / 'wav.scp'}:s00-0" and len(str(error)) < 400


@pytest.mark.parametrize("codec", ["base64", "rot13", "utf9", "punycode"])
def test_what_is_no_text_encoding_is_refused_with_the_config(codec):
    with pytest.raises(ValidationError, match=codec):
        Files(folders=["corpus"], encoding=codec)


def test_flaws_of_recordings_are_counted_in_the_card(corpus, tmp_path):
    write_table(corpus, "text", {f"s{who:02d}-{i}": f"{TEXTS[i]} {who}" for who in range(12) for i in range(4)})
    soundfile.write(corpus / "s03-2.flac", np.clip(10 * noise(5), -1, 1), RATE)
    soundfile.write(corpus / "s03-3.flac", 0.1 + noise(6)[::2], 8000)
    build_dataset("speech", files(corpus), Dataset(), 0, tmp_path / "data")
    card = json.loads((tmp_path / "data" / "card.json").read_text())
    assert card["summary"]["flaws"] == {"clipped": 1, "narrow_band": 1, "dc_offset": 1}


# a recording that is replaced


def test_a_recording_that_was_replaced_is_not_read(corpus, dataset):
    clip = examples(read_split(dataset, "train"), Task(), "whisper")[0].audio
    assert len(read_clip(clip)) == RATE / 2
    soundfile.write(clip.path, noise(1234, 1), RATE)
    with pytest.raises(InputError, match="not the one that the dataset was built from"):
        read_clip(clip)


def test_a_source_notes_the_digests_of_its_recordings_and_its_state_differs_once_one_is_replaced(corpus, tmp_path):
    before = listed_state(files(corpus))
    assert before == listed_state(files(corpus))
    fetch_source("speech", files(corpus), "domain", 0, tmp_path / "raw")
    noted = json.loads((tmp_path / "raw" / "files.json").read_text())["sha256"]
    assert noted[str(corpus / "s03-2.flac")] == file_sha256(corpus / "s03-2.flac") and len(noted) == 48 + 5
    found = (corpus / "s03-2.flac").stat()
    soundfile.write(corpus / "s03-2.flac", noise(4321, 1), RATE)
    os.utime(corpus / "s03-2.flac", ns=(found.st_atime_ns, found.st_mtime_ns))
    replaced = listed_state(files(corpus))
    assert replaced != before
    (corpus / "s03-2.flac").unlink()
    assert listed_state(files(corpus)) not in (before, replaced)
    (corpus / "wav.scp").unlink()
    assert listed_state(files(corpus))


# ages


@pytest.mark.parametrize(
    ("text", "years"),
    [
        *(("6", 6), ("6.5", 6), ("6.99", 6), ("7;3", 7), ("7;03.14", 7), ("7;", 7), ("6y", 6), ("6 years", 6)),
        *(("10 yrs", 10), ("6y3m", 6), ("6 years 11 months", 6), ("100", 100)),
    ],
)
def test_ages_are_completed_years(text, years):
    assert build.completed_years("spk2age:s", text) == years


@pytest.mark.parametrize("text", ["0", "120", "7;12", "six", "-6", "6,5", "0;11", "6-7", "1990", "y", "6m", "٦x"])
def test_what_is_no_age_is_refused(text):
    with pytest.raises(InputError, match=r"age .*expected 1 to 100 years"):
        build.completed_years("spk2age:s", text)


@pytest.fixture
def second(corpus, tmp_path):
    """A second folder with an utterance of s03, who is eight in the first."""
    folder = tmp_path / "second"
    folder.mkdir()
    soundfile.write(folder / "x.flac", noise(999), RATE)
    for name, key, value in (
        ("wav.scp", "z-1", folder / "x.flac"),
        ("text", "z-1", "hello"),
        ("utt2spk", "z-1", "s03"),
    ):
        write_table(folder, name, {key: value})
    return folder


@pytest.mark.parametrize(("table", "value", "reason"), [("spk2age", "6", "age"), ("spk2gender", "M", "gender")])
def test_a_speaker_of_whom_two_folders_say_different_things_is_refused(corpus, second, table, value, reason):
    write_table(second, table, {"s03": value})
    with pytest.raises(InputError, match=f"another {reason} of the same speaker") as caught:
        list(build.read(files(corpus, second), Dataset(), Ledger()))
    assert caught.value.where == f"{second / table}:s03" and str(corpus / table) in str(caught.value)


@pytest.mark.parametrize("age", ["8;11", "8.2", None, ""])
def test_what_one_folder_says_of_a_speaker_holds_in_all(corpus, second, age):
    if age is not None:
        (second / "spk2age").write_text(f"s03 {age}\n" if age else "")
    found = list(build.read(files(corpus, second), Dataset(), Ledger()))
    assert {record["age"] for record in found if record["speaker"] == "s03"} == {8}


# marks in transcripts


@pytest.mark.parametrize(
    "mark",
    [
        *("(laughs)", "{laugh}", "*house", "SIL", "&um", "/HH IH S/", "(be)cause", "[x]", "<x>", "((x))", "+x+"),
        *("%hesitation", "=laughs=", "_laugh_", "-noise-", "$noise", "#um", "!SIL", "sil", "la:ugh", "↑yes", "🙂"),
        *("xxx", "+...", "&=coughs", "(.)", "baby@b", "0is", "（笑）", "【noise】", "♪ la", "<unk", "www", "#"),
    ],
)
def test_whatever_looks_like_a_mark_is_refused_until_it_is_listed(corpus, mark):
    change(corpus, "text", "s03-2", f"hello {mark} there")
    error = refusal(corpus)
    assert (error.where, error.reason) == (f"{corpus / 'text'}:s03-2", "tag")
    found, _ = records(corpus, tags=(mark,))
    assert next(record["text"] for record in found if record["id"] == "s03-2") == "hello there"


@pytest.mark.parametrize(
    "text",
    [
        "20° or a=b",
        "Santa_Claus – ¿sí?",
        "mm-hm wo- -s",
        "Tom & Jerry",
        "and/or",
        "it's 3.5% of $5",
        "+5 or #1",
        "silly wor- word",
        "10:30?",
    ],
)
def test_what_is_written_of_words_is_no_mark(text):
    assert find_unknown_mark(text) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("he said (be)cause [//] &-um it &=laughs (.) barked +...", "he said because um it barked"),
        ("the SILLY SIL dog", "the SILLY dog"),
        ("<the dog> [/] the dog", "the dog the dog"),
    ],
)
def test_marks_are_removed_or_unwrapped_as_listed(corpus, text, expected):
    change(corpus, "text", "s03-2", text)
    lists = {"tags": ("[...]", "&=...", "(.)", "+...", "SIL"), "spoken": ("(...)", "<...>", "&-...")}
    found, _ = records(corpus, **lists)
    assert next(record["text"] for record in found if record["id"] == "s03-2") == expected


def test_an_utterance_that_nobody_understood_and_one_too_long_are_dropped_and_listed(corpus):
    change(corpus, "text", "s03-2", "hello xxx there")
    change(corpus, "text", "s03-3", "very " * 200)
    change(corpus, "text", "s03-1", "what is /HH IH S/ here")
    _, ledger = records(corpus, unintelligible=("xxx", "/.../"))
    assert ledger.reason_counts() == {"long_text": 1, "unintelligible": 2}


@pytest.mark.parametrize("marker", ["", " ", "...", "...x", "a...b...c"])
def test_a_list_of_marks_holds_marks(marker):
    with pytest.raises(ValidationError, match="is no marker"):
        Dataset(tags=(marker,))


@given(st.text(max_size=30))
@settings(max_examples=50, deadline=None)
def test_an_answer_equal_to_the_reference_has_no_error_whatever_it_holds(text):
    columns = counted([(text, text), (plain_transcript(text), text), ("red cat", "red cat")])
    assert VALUE["wer"](columns) == VALUE["wer_verbatim"](columns) == VALUE["cer"](columns) == 0


def test_what_a_model_writes_in_brackets_is_not_counted():
    columns = counted([("hello", "(laughs) hello"), ("hello", "[BLANK_AUDIO] Hello!")])
    assert VALUE["wer"](columns) == VALUE["wer_verbatim"](columns) == 0


def test_seen_sentences_have_an_error_rate_of_their_own():
    columns = counted([("a b", "a x"), ("c d", "c d"), ("e f", "e f")])  # every second one is read in train
    assert (VALUE["wer_unseen"](columns), VALUE["wer_read_in_train"](columns)) == (0.25, 0)


@pytest.mark.parametrize("normaliser", ["basic", "letters", "plain"])
def test_characters_are_the_unit_of_the_character_error_rate(normaliser):
    columns = counted([("今天天气", "今天天汽")], normaliser=normaliser)
    assert VALUE["cer"](columns) == 0.25


def test_the_plain_normaliser_keeps_the_vowels_of_indian_scripts():
    columns = counted([("कि", "का"), ("um das", "um das")], normaliser="plain")
    assert VALUE["wer"](columns) == pytest.approx(1 / 3)


# what is left out on purpose


def test_policies_drop_with_a_reason(corpus):
    change(corpus, "spk2age", "s00")
    change(corpus, "text", "s01-0")
    change(corpus, "text", "s01-1", "<NOISE>")
    change(corpus, "text", "s01-2", "a <NOISE> dog")
    soundfile.write(corpus / "s01-3.flac", noise(7, 3), RATE)
    soundfile.write(corpus / "s02-0.flac", noise(8, 0.15), RATE)
    found, ledger = records(
        corpus, max_age=15, untranscribed="drop", tags=("<NOISE>",), max_seconds=2, min_seconds=0.2
    )
    reasons = ["age_unknown", "only_tags", "other_age", "too_long", "too_short", "untranscribed"]
    assert ledger.reason_counts() == dict(zip(reasons, [4, 1, 4, 1, 1, 1]))
    assert ledger.n_malformed == 0
    assert next(record for record in found if record["id"] == "s01-2")["text"] == "a dog"


def test_a_recording_far_too_long_is_dropped_by_its_header(corpus, monkeypatch):
    soundfile.write(corpus / "s01-3.flac", noise(7, 3), RATE)
    read = []
    monkeypatch.setattr(build, "inspect_audio", lambda path, *times: read.append(path) or inspect_audio(path, *times))
    found, ledger = records(corpus, max_seconds=2)
    assert ledger.reason_counts() == {"too_long": 1} and ledger.rows[0][2:] == ("s01-3", "too_long", "3.00 s")
    assert len(read) == len(found)


def test_planted_copy_of_a_clip_is_dropped(corpus):
    shutil.copy(corpus / "s03-2.flac", corpus / "s09-1.flac")
    found, ledger = records(corpus)
    assert ledger.reason_counts() == {"duplicate_audio": 1} and "s09-1" not in {record["id"] for record in found}
    assert ledger.rows[0][2:] == ("s09-1", "duplicate_audio", "same samples as s03-2")


# datasets


@pytest.fixture
def dataset(corpus, tmp_path):
    shutil.copy(corpus / "s03-2.flac", corpus / "s09-1.flac")
    build_dataset("speech", files(corpus), ANY, 0, tmp_path / "data")
    return tmp_path / "data"


def test_dataset_is_speaker_disjoint_and_adds_up(dataset, tmp_path):
    card = json.loads((dataset / "card.json").read_text())
    assert card["n_in"] == 48 == card["n_kept"] + sum(card["n_rejected"].values())
    assert card["summary"]["test_texts_also_in_train"] == card["summary"]["test_texts"] == 4
    assert all(record["read_in_train"] for record in read_split(dataset, "test"))
    assert sum(card["summary"]["speakers_by_age"].values()) == 12
    audit_split("speech", dataset, ANY, tmp_path / "audit.json")
    assert set(json.loads((tmp_path / "audit.json").read_text())["counts"].values()) == {0}


def test_same_input_gives_the_same_bytes(dataset, corpus, tmp_path):
    build_dataset("speech", files(corpus), ANY, 0, tmp_path / "again")
    for path in dataset.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


@pytest.mark.parametrize(
    "stolen, count",
    [
        *(
            ("speaker", "speakers_in_two_splits"),
            ("sha256", "audio_in_two_splits"),
            ("audio", "recordings_in_two_splits"),
        ),
        ("text", "wrongly_marked_read_in_train"),
    ],
)
def test_audit_finds_what_is_planted_in_test(dataset, tmp_path, stolen, count):
    test = read_split(dataset, "test")
    test[0][stolen] = "nobody reads this" if stolen == "text" else read_split(dataset, "train")[0][stolen]
    schema = pq.read_schema(dataset / "test.parquet")
    pq.write_table(pa.Table.from_pylist(test, schema=schema), dataset / "test.parquet")
    with pytest.raises(InputError, match=f"{count}.: 1"):
        audit_split("speech", dataset, ANY, tmp_path / "audit.json")


def test_sentences_of_held_out_utterances_are_dropped_from_what_is_learnt_and_the_audit_finds_those_that_are_not(
    corpus, tmp_path
):
    for speaker in range(12):
        for i in range(1, 4):
            change(corpus, "text", f"s{speaker:02d}-{i}", f"{TEXTS[i]} number {speaker} {i}")
    change(corpus, "text", "s05-0", "Red, BALL!")  # read by all; normalised, the same sentence
    for speaker in (0, 3):
        change(corpus, "text", f"s{speaker:02d}-1", "um")  # nothing is left of fillers: compared as they are
    unseen = Dataset()
    build_dataset("speech", files(corpus), unseen, 0, tmp_path / "data")
    parts = {split: read_split(tmp_path / "data", split) for split in ("train", "gate", "valid", "test")}
    texts = {split: {record["text"].lower().strip("!").replace(",", "") for record in parts[split]} for split in parts}
    assert "red ball" in texts["test"] and not texts["test"] & (texts["train"] | texts["gate"] | texts["valid"])
    card = json.loads((tmp_path / "data" / "card.json").read_text())
    speakers = {split: len({record["speaker"] for record in part}) for split, part in parts.items()}
    assert card["n_rejected"]["resembles_held_out"] >= 12 - speakers["test"]
    assert card["n_in"] == card["n_kept"] + sum(card["n_rejected"].values()) == 48
    audit_split("speech", tmp_path / "data", unseen, tmp_path / "audit.json")
    assert json.loads((tmp_path / "audit.json").read_text())["counts"]["resembles_test"] == 0
    build_dataset("speech", files(corpus), ANY, 0, tmp_path / "any")
    seen = {record["text"]: record["read_in_train"] for record in read_split(tmp_path / "any", "test")}
    assert len(seen) > 3 and [text for text in seen if seen[text]] == [text for text in seen if "number" not in text]
    with pytest.raises(InputError, match="resembles_test"):
        audit_split("speech", tmp_path / "any", unseen, tmp_path / "audit.json")


def test_a_corpus_of_which_no_sentence_would_be_left_to_learn_is_refused_with_the_way_out(corpus, tmp_path):
    with pytest.raises(InputError, match="held_out_sentences: any"):
        build_dataset("speech", files(corpus), Dataset(), 0, tmp_path / "data")


# task


def test_examples_follow_the_family(corpus):
    found, _ = records(corpus)
    for record in found:
        record["group"] = record["speaker"]
    heard = examples(found, Task(), "causal")
    assert heard[1].prompt == "Transcribe speech to text.\n" and heard[1].target == "blue cat"
    assert (
        heard[1].audio == Clip(str(corpus / "s00-1.flac"), file_sha256(corpus / "s00-1.flac"), 0.5)
        and heard[1].group == "s00"
    )
    assert {example.prompt for example in examples(found, Task(), "whisper")} == {""}


@pytest.mark.parametrize(
    "text, expected",
    [
        ("LOOK AT ANN'S PANTS.", "look at ann's pants"),
        ("“It’s 3.5%,” she said", "it's 3.5% she said"),
        ("don´t, it`s ‘odd’", "don't it's odd"),
        ("twenty-one dogs' bones", "twenty one dogs bones"),
        ("at 10:30, $5.", "at 10:30 $5"),
        ("今天，天气。", "今天 天气"),
        ("ＡＢＣ", "abc"),
        ("hel\u00adlo \u202ethere\u202c \u2060you", "hello there you"),
        ("می\u200cخواهم", "می\u200cخواهم"),
    ],
)
def test_targets_are_plain_lower_case(text, expected):
    assert plain_transcript(text) == expected


@given(st.text(max_size=30))
def test_plain_text_stays_plain(text):
    assert (
        plain_transcript(plain_transcript(text)) == plain_transcript(text) == " ".join(plain_transcript(text).split())
    )


def test_deaf_baseline_hears_nothing(corpus):
    found, _ = records(corpus)
    for record in found:
        record["group"] = record["speaker"]
    train, test = found[:40], found[40:]
    rows = baselines(train, test, Task())["deaf"]
    assert rows == baselines(train[::-1], test, Task())["deaf"]
    assert [row["id"] for row in rows] == [record["id"] for record in test]
    assert {row["text"] for row in rows} <= {plain_transcript(text) for text in TEXTS}


def test_silence_is_a_baseline_of_exactly_all_words_wrong(corpus):
    found = [record | {"group": record["speaker"], "read_in_train": False} for record in records(corpus)[0]]
    rows = baselines(found[:40], found[40:], Task())["silent"]
    assert {row["text"] for row in rows} == {""} and len(rows) == len(found[40:])
    columns = metrics.columns(rows, found, Task())
    assert VALUE["wer"](columns) == VALUE["deletions"](columns) == VALUE["cer"](columns) == 1.0


# metrics

VALUE = {metric.name: metric.compute_value for metric in metrics.METRICS}
LINES = st.lists(st.sampled_from(["cat", "dog", "red", "blue", "house", "jump"]), max_size=6).map(" ".join)


def counted(pairs, ages=None, normaliser="english", **facts):
    """Columns of (reference, text) pairs; facts: a list for each further column of the records."""
    rows = [{"id": str(i), "reference": reference, "text": text} for i, (reference, text) in enumerate(pairs)]
    common = {"age": -1, "gender": "", "seconds": 5.0}
    people = [common | {"id": str(i), "speaker": f"s{i}", "read_in_train": i % 2 == 1} for i in range(len(pairs))]
    for name, values in (facts | ({"age": ages} if ages else {})).items():
        for person, value in zip(people, values):
            person[name] = value
    return metrics.columns(rows, people, Task(normaliser=normaliser))


def edit_distance(reference, text) -> int:
    row = list(range(len(text) + 1))
    for i, wanted in enumerate(reference, 1):
        before, row[0] = row[0], i
        for j, found in enumerate(text, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (wanted != found))
    return row[-1]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(LINES.filter(bool), LINES), min_size=1, max_size=6))
def test_pooled_rates_equal_an_independent_alignment(pairs):
    columns = counted(pairs)
    words = sum(len(reference.split()) for reference, _ in pairs)
    letters = sum(len(reference) for reference, _ in pairs)
    errors = sum(edit_distance(reference.split(), text.split()) for reference, text in pairs)
    char_errors = sum(edit_distance(reference, text) for reference, text in pairs)
    assert VALUE["wer"](columns) == pytest.approx(errors / words)
    assert VALUE["wer_verbatim"](columns) == pytest.approx(errors / words)
    assert VALUE["cer"](columns) == pytest.approx(char_errors / letters)
    parts = [VALUE[name](columns) for name in ("substitutions", "deletions", "insertions")]
    assert sum(parts) == pytest.approx(VALUE["wer"](columns))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(LINES, LINES), min_size=1, max_size=6))
def test_swapping_reference_and_text_swaps_insertions_and_deletions(pairs):
    kept = [pair for pair in pairs if all(pair)]
    ahead, back = counted(kept), counted([pair[::-1] for pair in kept])
    for a, b in zip(*(zip(columns["S"], columns["D"], columns["I"]) for columns in (ahead, back))):
        assert sum(a) == sum(b) and a[2] - a[1] == b[1] - b[2]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(LINES.filter(bool), LINES, st.integers(-1, 100).filter(bool)), min_size=1, max_size=8))
def test_age_bins_sum_to_the_whole(rows):
    columns = counted([row[:2] for row in rows], [row[2] for row in rows])
    hits = [
        (youngest <= columns["age"]) & (columns["age"] <= oldest) for youngest, oldest in metrics.AGE_BINS.values()
    ]
    assert (np.sum(hits, axis=0) == 1).all()
    weights = [columns["N"][hit].sum() for hit in hits]
    errors = sum(VALUE[name](columns) * n for name, n in zip(metrics.AGE_BINS, weights) if n)
    assert errors / columns["N"].sum() == pytest.approx(VALUE["wer"](columns))


def test_rates_are_pooled_and_never_clipped():
    assert VALUE["wer"](counted([("a b c d e f g h", "a b c d e f g h"), ("i j", "x y")])) == 0.2
    assert VALUE["wer"](counted([("cat", "dog dog dog")])) == 3.0
    assert VALUE["wer"](counted([("red cat", "red cat")])) == 0.0
    silent = counted([("red cat", ""), ("dog", " ")])
    assert VALUE["deletions"](silent) == VALUE["wer"](silent) == 1.0


def test_both_sides_are_normalised():
    columns = counted([("twenty-one dollars it's the colour", "$21 it is the color")])
    assert VALUE["wer"](columns) == 0.0 < VALUE["wer_verbatim"](columns)


def test_emptied_references_are_counted_and_left_out():
    columns = counted([("um", "house house"), ("red cat", "red dog")])
    assert VALUE["references_emptied"](columns) == 1
    assert VALUE["wer"](columns) == VALUE["substitutions"](columns) == 0.5
    assert VALUE["wer_verbatim"](columns) == 1.0
    assert np.isnan(VALUE["wer"](counted([("um", "uh")])))


def test_rates_count_the_utterances_that_hold_words_and_an_age_those_of_its_speakers():
    columns = counted([("a b", "a b"), ("um", "x"), ("c d", "c"), ("e", "e")], ages=[5, 5, 8, 30])
    found = {metric.name: int(np.sum(metric.row_selection(columns))) for metric in metrics.METRICS if metric.where}
    assert (found["wer"], found["wer_verbatim"]) == (3, 4), "um is emptied by one normaliser alone"
    assert (found["wer_age_to_6"], found["wer_age_7_8"], found["wer_adult"], found["wer_age_unknown"]) == (1, 1, 1, 0)


def test_rates_of_genders_see_their_speakers_alone():
    columns = counted([("a b", "a"), ("c d", "c d"), ("e", "")], gender=["f", "m", ""])
    assert (VALUE["wer_female"](columns), VALUE["wer_male"](columns), VALUE["wer"](columns)) == (0.5, 0.0, 0.4)


def test_the_median_over_speakers_is_of_each_ones_pooled_rate_and_counts_a_speaker_as_often_as_drawn():
    pairs = [("a b c d", "a b c d"), ("e f", ""), ("g h", "g"), ("i", "x"), ("um", "x")]
    columns = counted(pairs, speaker=["s0", "s0", "s1", "s2", "s3"])
    assert VALUE["wer_speaker_median"](columns) == 0.5  # of 2/6, 1/2 and 1
    drawn = {name: column[[0, 1, 0, 1, 3, 4]] for name, column in columns.items()}
    assert VALUE["wer_speaker_median"](drawn) == pytest.approx(1 / 3)  # of 2/6, 2/6 and 1
    assert np.isnan(VALUE["wer_speaker_median"](counted([("um", "uh")])))


@pytest.mark.parametrize(
    ("text", "seconds", "flags"),
    [
        ("the cat sat on the mat", 3.0, set()),
        ("no no no", 2.0, set()),
        ("no no no no", 2.0, {"repetition"}),
        ("i like it i like it i like it i like it", 3.0, {"repetition"}),
        ("i see i see you i see i see you", 4.0, set()),
        ("thank you " * 30, 5.0, {"hallucination", "repetition", "speed"}),
        ("Thanks for watching!", 3.0, {"hallucination"}),
        ("one two three four five six seven eight nine", 1.0, {"speed"}),
        ("", 0.1, set()),
    ],
)
def test_an_answer_is_flagged_by_its_text_and_length_alone(text, seconds, flags):
    assert {name for name, is_set in answer_flags(text, seconds).items() if is_set} == flags


@pytest.mark.parametrize(
    ("answer", "seconds", "flags"),
    [
        ("今天天气很好我们去公园玩吧", 3.0, ()),  # 13 letters: one word, were blanks asked
        ("今天天气很好我们去公园玩吧", 0.8, ("speed",)),
        ("谢谢谢谢", 2.0, ("repetition",)),
        ("สวัสดีครับผมชื่อสมชาย", 2.0, ()),  # Thai: marks belong to the letter that they stand on
        ("ขอบคุณที่รับชม" * 4, 5.0, ("hallucination", "repetition")),
    ],
)
def test_filters_count_letters_where_letters_are_the_words(answer, seconds, flags):
    columns = counted([(answer, answer)], normaliser="letters", seconds=[seconds])
    assert tuple(name for name in metrics.FLAGS if columns[f"flagged_{name}"][0] == 1) == flags
    assert not counted([(answer, answer)], normaliser="basic", seconds=[seconds])["flagged_speed"][0]


def test_filters_are_reported_with_both_rates_and_change_no_other():
    pairs = [("red cat", "red red red red red"), ("blue dog", "blue dog")]
    columns = counted(pairs)
    assert VALUE["wer"](columns) == 4 / 4 and VALUE["wer_filtered"](columns) == 2 / 4
    assert VALUE["flagged"](columns) == VALUE["flagged_repetition"](columns) == 1
    assert VALUE["flagged_speed"](columns) == VALUE["flagged_hallucination"](columns) == 0
    honest = counted([("no no no no", "no no no no")])  # emptied although it is right: a filter costs too
    assert (VALUE["wer"](honest), VALUE["wer_filtered"](honest)) == (0.0, 1.0)


def test_answers_to_silence_are_empty_in_the_filtered_rate_alone_and_counted_where_they_are_asked_for():
    pairs = [("red cat", "blue dog and more"), ("blue dog", "blue dog")]
    rows = [
        {"id": str(i), "reference": said, "text": text, "no_speech": i == 0} for i, (said, text) in enumerate(pairs)
    ]
    own = {"age": -1, "gender": "", "seconds": 5.0, "speaker": "s", "read_in_train": False}
    columns = metrics.columns(rows, [own | {"id": row["id"]} for row in rows], Task())
    assert VALUE["wer"](columns) == 4 / 4 and VALUE["wer_filtered"](columns) == 2 / 4
    assert VALUE["flagged"](columns) == VALUE["flagged_no_speech"](columns) == 1
    assert np.isnan(VALUE["flagged_no_speech"](counted(pairs))) and VALUE["wer_filtered"](counted(pairs)) == 4 / 4


def test_letters_as_words_give_the_character_error_rate_of_chinese():
    columns = counted([("今天 天气", "今天天汽")], normaliser="letters")
    assert VALUE["wer"](columns) == 0.25


def test_resampled_rows_need_no_new_alignment():
    columns = counted([("a b", "a"), ("c", "c d"), ("e f g", "e")])
    drawn = {name: column[[2, 2, 0]] for name, column in columns.items()}
    assert VALUE["wer"](drawn) == (2 + 2 + 1) / 8


def test_shuffled_transcripts_are_found_out(shared_data):
    root = shared_data / "child_speech" / "speechocean762"
    lines = (root / "train" / "text").read_text().splitlines()
    texts = list(dict.fromkeys(plain_transcript(line.split("\t")[1]) for line in lines))
    assert VALUE["wer"](counted(list(zip(texts, texts[1:] + texts[:1])))) > 0.9


def test_only_one_metric_is_primary_and_options_import_nothing_heavy():
    assert [metric.name for metric in metrics.METRICS if metric.primary] == ["wer"]
    code = (
        "import sys, loratory.domains.speech.sources; light = set(sys.modules);"
        "import loratory.domains.speech.build, loratory.domains.speech.metrics, loratory.domains.speech.task;"
        "assert not {'numpy', 'librosa', 'soundfile'} & light; assert 'torch' not in sys.modules"
    )
    path = str(Path(build.__file__).parents[3])
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": path})


# simulator

SMALL = Simulation(speakers=4, utterances_per_speaker=5, disfluency=0.5)


def simulated(population, seed, out, simulation=SMALL) -> Files:
    fields = simulate.simulate(simulation, population, seed, out)
    return Files(**fields).map_locations(lambda location: str(Path(out, location)))


def digest(folder) -> str:
    paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    lines = [f"{path.relative_to(folder)} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in paths]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@pytest.fixture(scope="module")
def voices(tmp_path_factory):
    """{population: its records}."""
    found = {}
    for population in simulate.POPULATIONS:
        source = simulated(population, 1, tmp_path_factory.mktemp(population))
        found[population] = list(build.read(source, Dataset(), Ledger()))
    return found


@pytest.mark.parametrize("population", simulate.POPULATIONS)
def test_a_seed_gives_the_same_bytes_here_and_in_another_process(population, tmp_path):
    simulated(population, 1, tmp_path / "a")
    simulated(population, 1, tmp_path / "b")
    simulated(population, 2, tmp_path / "other")
    code = (
        "import sys; from loratory.domains.speech import simulate, sources;"
        "simulate.simulate(sources.Simulation.model_validate_json(sys.argv[1]), sys.argv[2], 1, sys.argv[3])"
    )
    path = str(Path(build.__file__).parents[3])
    command = [sys.executable, "-c", code, SMALL.model_dump_json(), population, str(tmp_path / "c")]
    subprocess.run(command, check=True, env={"PYTHONPATH": path})
    assert digest(tmp_path / "a") == digest(tmp_path / "b") == digest(tmp_path / "c") != digest(tmp_path / "other")


def test_simulated_corpora_are_read_without_complaint(voices):
    for found in voices.values():
        assert len(found) == SMALL.speakers * SMALL.utterances_per_speaker
        assert all(0.3 < record["seconds"] <= simulate.LONGEST for record in found)
        assert {soundfile.info(record["audio"]).samplerate for record in found} == {RATE}
    vocabulary = {word for words in simulate.WORDS.values() for word in words} | {"the", "i", "see", "a", "can", "to"}
    spoken = {word for record in voices["general"] for word in record["text"].split()}
    assert spoken <= vocabulary | {"go", "is"} and 60 <= len(vocabulary) <= 100


def test_populations_share_no_record(voices):
    for column in ("id", "speaker", "sha256"):
        general, domain = ({record[column] for record in voices[population]} for population in simulate.POPULATIONS)
        assert not general & domain
    assert min(r["age"] for r in voices["general"]) >= 18 and max(r["age"] for r in voices["domain"]) <= 13


def pitch(record) -> float:
    """Hz of the strongest self-similarity between 60 and 500 Hz."""
    samples, rate = soundfile.read(record["audio"])
    power = np.abs(np.fft.rfft(samples, 2 * len(samples))) ** 2
    similarity = np.fft.irfft(power)
    lags = np.arange(rate // 500, rate // 60)
    return rate / lags[similarity[lags].argmax()]


def test_children_speak_higher_and_slower(voices):
    of_each = [voices[population] for population in simulate.POPULATIONS]
    adult, child = (np.median([pitch(record) for record in records]) for records in of_each)
    assert child > 1.4 * adult
    adult, child = (np.median([len(r["text"].split()) / r["seconds"] for r in records]) for records in of_each)
    assert child < 0.85 * adult


def envelope(samples) -> np.ndarray:
    """Smoothed mean log spectrum from 250 to 4000 Hz, 100 points an octave, without its mean."""
    hertz = 250 * 2 ** (np.arange(400) / 100)
    power = np.abs(np.fft.rfft(samples)) ** 2
    bins = (hertz[:, None] * 2 ** np.linspace(-0.2, 0.2, 41) * len(samples) / RATE).astype(int)
    level = np.log(power[bins].mean(axis=1))
    return level - level.mean()


@pytest.mark.parametrize("stretch", [1.15, 1.4])
def test_stretch_scales_the_formants_and_keeps_the_tempo(stretch):
    voice = simulate.adult_speaker(0, np.random.default_rng(0), SMALL)
    traits = {"voice": "en-us+m3", "unevenness": 0.0, "pitch": 50, "range": 0}

    def said(stretch):
        speaker = dataclasses.replace(voice, stretch=stretch, **traits)
        rng, synthesiser = np.random.default_rng(0), Synthesiser(0)
        return simulate.phrase_samples(
            "they want to sing, go to the garden, open the yellow box", speaker, rng, synthesiser
        )

    short, long = said(1.0), said(stretch)
    assert len(long) == pytest.approx(len(short), rel=0.15)
    before, after = envelope(short), envelope(long)
    shifts = range(1, 100)
    likeness = [np.corrcoef(before[:-shift], after[shift:])[0, 1] for shift in shifts]
    assert 2 ** (shifts[int(np.argmax(likeness))] / 100) == pytest.approx(stretch, rel=0.06)


def test_slips_are_in_sound_and_transcript():
    rng = np.random.default_rng(0)
    slips = {" ".join(simulate.insert_slip("find the red ball", rng)) for _ in range(200)}
    assert {"find the the red ball", "find the re red ball", "find the red um ball"} <= slips
    assert all(len(slip.split()) == 5 for slip in slips)


# real children


def test_untouched_wav_equals_the_flac_of_the_corpus(shared_data):
    speech = shared_data / "child_speech"
    for path in sorted((speech / "original_wav").glob("*.WAV")):
        flac = next(speech.glob(f"speechocean762/WAVE/*/{path.stem}.flac"))
        assert np.array_equal(read_audio(path), read_audio(flac))


def test_speechocean_children(shared_data, tmp_path):
    root = shared_data / "child_speech" / "speechocean762"
    source = Files(folders=[str(root / "train"), str(root / "test")], audio_root=str(root))
    build_dataset("speech", source, Dataset(max_age=15), 0, tmp_path / "data")
    card = json.loads((tmp_path / "data" / "card.json").read_text())
    assert card["n_in"] == 320 and card["n_rejected"]["other_age"] == 80
    assert card["n_kept"] == 240 - card["n_rejected"]["resembles_held_out"]
    assert sum(card["groups"].values()) == 60
    assert set(card["summary"]["speakers_by_age"]) <= {str(age) for age in range(6, 13)}
    audit_split("speech", tmp_path / "data", Dataset(max_age=15), tmp_path / "audit.json")
    record = read_split(tmp_path / "data", "test")[0]
    assert Path(record["audio"]).is_file()
    assert record["seconds"] == pytest.approx(soundfile.info(record["audio"]).duration, abs=0.01)
