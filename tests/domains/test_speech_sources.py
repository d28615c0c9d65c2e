"""Corpora of speech in other layouts than Kaldi's: the same utterances, or one line that names file and record."""

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from pydantic import ValidationError

from loratory.data.audio import RATE, read_clip
from loratory.data.ledger import Ledger
from loratory.domains.fetch import fetch_source, listed_state, open_source
from loratory.domains.speech import build
from loratory.domains.speech.sources import Dataset, Files
from loratory.domains.speech.task import record_clip
from loratory.errors import InputError


def noise(seed, seconds=0.5, channels=1):
    shape = (int(seconds * RATE), channels) if channels > 1 else int(seconds * RATE)
    return np.random.default_rng(seed).normal(0, 0.1, shape).astype(np.float32)


def save_audio(path, seed, seconds=0.5, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, noise(seed, seconds), RATE, **more)


def write_lines(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def records(on_error="fail", dataset=None, **files):
    ledger = Ledger(on_error)
    found = list(build.read(Files(**files), dataset or Dataset(), ledger))
    assert ledger.n_in == len(found) + ledger.n_rejected.total()
    return found, ledger


def refusal(dataset=None, **files) -> InputError:
    with pytest.raises(InputError) as caught:
        records(dataset=dataset, **files)
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_source_without_a_corpus_is_refused_with_the_config():
    with pytest.raises(ValidationError, match="no corpus is named, expected one of folders, librispeech"):
        Files()


# tables


@pytest.fixture
def rows(tmp_path):
    """A lesson of 4 s with two utterances, and a recording of its own; ages of both speakers."""
    save_audio(tmp_path / "lesson.flac", 1, 4)
    save_audio(tmp_path / "own.flac", 2, 1)
    keys = ("id", "audio", "text", "speaker", "start", "end", "age", "gender")
    return [
        dict(zip(keys, row))
        for row in (
            ("b1", "lesson.flac", "red ball", "b", 0.5, 1.25, "7;3", "F"),
            ("a1", "own.flac", "go, home", "a", None, None, 9, "male"),
            ("b2", "lesson.flac", "it's a cat", "b", 2, -1, "7;3", "female"),
        )
    ]


def write_rows(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        pq.write_table(
            pa.Table.from_pylist([{k: None if v is None else str(v) for k, v in r.items()} for r in rows]), path
        )
    else:
        mark = "\t" if path.suffix == ".tsv" else ","
        cells = [[*rows[0]]] + [["" if value is None else str(value) for value in row.values()] for row in rows]
        quoted = [[f'"{cell}"' if mark in cell else cell for cell in row] for row in cells]
        path.write_text("".join(mark.join(row) + "\n" for row in quoted))
    return str(path)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_tables_of_every_kind_give_the_same_utterances(rows, kind, tmp_path):
    found, _ = records(tables=write_rows(tmp_path / f"t.{kind}", rows), audio_root=str(tmp_path))
    kept = ("id", "audio", "start", "end", "text", "speaker", "age", "gender", "seconds")
    assert [tuple(record[key] for key in kept) for record in found] == [
        ("a1", str(tmp_path / "own.flac"), 0, -1, "go, home", "a", 9, "m", 1),
        ("b1", str(tmp_path / "lesson.flac"), 0.5, 1.25, "red ball", "b", 7, "f", 0.75),
        ("b2", str(tmp_path / "lesson.flac"), 2, -1, "it's a cat", "b", 7, "f", 2),
    ]
    written, _ = soundfile.read(tmp_path / "lesson.flac", dtype="float32")
    assert np.array_equal(read_clip(record_clip(found[1])), written[8000:20000])


def test_columns_may_have_other_names_and_others_be_left_out(rows, tmp_path):
    """As NeMo's manifests name them."""
    named = [
        {"utt": "x", "audio_filepath": "lesson.flac", "offset": 1.0, "duration": 0.5, "text": "one", "who": 3},
        {"utt": "y", "audio_filepath": "own.flac", "duration": 1.004, "text": "two", "who": 4},
    ]
    columns = {"id": "utt", "audio": "audio_filepath", "start": "offset", "speaker": "who"}
    table = write_rows(tmp_path / "t.jsonl", [{**named[1], "offset": 0}, named[0]])
    found, _ = records(tables=[table], columns=columns, audio_root=str(tmp_path))
    assert [(r["id"], r["start"], r["end"], r["speaker"], r["age"]) for r in found] == [
        ("x", 1.0, 1.5, "3", -1),
        ("y", 0.0, 1.004, "4", -1),
    ]
    assert "no column `offset`" in str(refusal(tables=write_rows(tmp_path / "u.jsonl", named[1:]), columns=columns))


def spoil_lesson(**changes):
    def spoil(rows):
        rows[0] |= changes

    return spoil


BAD_ROWS = {
    "no path": (spoil_lesson(audio=""), "no_audio"),
    "missing file": (spoil_lesson(audio="none.flac"), "audio_missing"),
    "pipe": (spoil_lesson(audio="cat x |"), "shell_pipe"),
    "not transcribed": (spoil_lesson(text=""), "no_transcript"),
    "nobody speaks": (spoil_lesson(speaker=""), "no_speaker"),
    "times run backwards": (spoil_lesson(start=2, end=1), "segment_times"),
    "times in words": (spoil_lesson(start="soon"), "segment_times"),
    "beyond the recording": (spoil_lesson(end=9), "segment_times"),
    "two ages": (spoil_lesson(age=8), "age"),
    "two genders": (spoil_lesson(gender="M"), "gender"),
    "no age": (spoil_lesson(age="grown"), "age"),
    "a mark": (spoil_lesson(text="red <NOISE> ball"), "tag"),
    "an id twice": (spoil_lesson(id="a1"), "duplicate_id"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_named_or_skipped_and_counted(rows, name, tmp_path):
    spoil, reason = BAD_ROWS[name]
    spoil(rows)
    table = write_rows(tmp_path / "t.csv", rows)
    error = refusal(tables=table, audio_root=str(tmp_path))
    assert error.reason == reason and error.where.rpartition(":")[2] in ("2", "3", "4", "b1")
    found, ledger = records("skip", tables=table, audio_root=str(tmp_path))
    assert {*ledger.reason_counts()} == {reason} and 1 <= len(found) <= 2


def test_a_recording_that_is_shorter_or_longer_than_its_row_says_is_refused(rows, tmp_path):
    for seconds in (0.5, 2.0):
        row = {key: rows[1][key] for key in ("id", "audio", "text", "speaker")} | {"duration": seconds}
        error = refusal(tables=write_rows(tmp_path / "t.jsonl", [row]), audio_root=str(tmp_path))
        assert error.reason == "stated_length" and f"(1.00 s); expected {seconds:g} s" in str(error)


@pytest.mark.parametrize("line", ["{", "[1]", '{"id": "x"}', '{"id": NaN,}'])
def test_a_line_that_is_no_row_is_named(rows, line, tmp_path):
    table = Path(write_rows(tmp_path / "t.jsonl", rows))
    table.write_text(f"{table.read_text()}{line}\n")
    assert refusal(tables=[str(table)], audio_root=str(tmp_path)).where == f"{table}:4"
    found, ledger = records("skip", tables=[str(table)], audio_root=str(tmp_path))
    assert len(found) == 3 and ledger.n_malformed == 1


def test_recordings_of_tables_and_manifests_are_watched(rows, tmp_path):
    table = write_rows(tmp_path / "t.csv", rows)
    write_lines(tmp_path / "r.jsonl", json.dumps(recording("own", "own.flac", 1.0)))
    source = Files(tables=str(tmp_path / "*.csv"), manifests=str(tmp_path / "*.jsonl"), audio_root=str(tmp_path))
    assert source.file_paths() == [str(tmp_path / "r.jsonl"), table]
    before = listed_state(source)
    fetch_source("speech", source, "domain", 0, tmp_path / "raw")
    noted = json.loads((tmp_path / "raw" / "files.json").read_text())["sha256"]
    assert {Path(path).name for path in noted} == {"t.csv", "r.jsonl", "lesson.flac", "own.flac"}
    assert open_source("speech", tmp_path / "raw").tables == [table]
    save_audio(tmp_path / "own.flac", 77, 1.5)
    assert listed_state(source) != before
    Path(table).write_text("nothing\n")
    write_lines(tmp_path / "r.jsonl", "{")
    assert listed_state(source), "what cannot be read is told by the job that reads it"


# manifests of lhotse


def recording(id, path, seconds, channels=1, **more):
    source = {"type": "file", "channels": [*range(channels)], "source": str(path)}
    return {
        "id": id,
        "sources": [source | more],
        "sampling_rate": RATE,
        "num_samples": round(seconds * RATE),
        "duration": seconds,
        "channel_ids": [*range(channels)],
    }


def supervision(id, of, start, seconds, text, speaker="a", **more):
    times = {"id": id, "recording_id": of, "start": start, "duration": seconds, "channel": 0}
    return times | {"text": text, "speaker": speaker} | more


def cut(id, start, seconds, recording, *supervisions, kind="MonoCut"):
    times = {"id": id, "start": start, "duration": seconds, "channel": 0, "type": kind}
    return times | {"supervisions": [*supervisions], "recording": recording}


@pytest.fixture
def lesson(tmp_path):
    pytest.importorskip("lhotse")
    save_audio(tmp_path / "lesson.wav", 1, 4, subtype="FLOAT")
    return recording("lesson", "lesson.wav", 4.0)


def manifest(tmp_path, *items, name="m.jsonl"):
    write_lines(tmp_path / name, *map(json.dumps, items))
    return {"manifests": [str(tmp_path / name)], "audio_root": str(tmp_path)}


def test_supervisions_are_utterances_of_their_recordings(lesson, tmp_path):
    save_audio(tmp_path / "own.wav", 2, 1)
    content = "".join(json.dumps(item) + "\n" for item in (lesson, recording("own", "own.wav", 1.0)))
    (tmp_path / "r.jsonl.gz").write_bytes(gzip.compress(content.encode()))
    segments = [
        supervision("l1", "lesson", 0.5, 0.75, "red ball", gender="Female", custom={"age": 6.5}),
        supervision("l2", "lesson", 2, 2, "blue cat", speaker="b", custom={"speaker_age": 30}),
        supervision("own", "own", 0, 1, "go home"),
    ]
    given = manifest(tmp_path, *segments, name="s.jsonl")
    given["manifests"] += [str(tmp_path / "r.jsonl.gz")]
    found, _ = records(**given)
    kept = ("id", "start", "end", "seconds", "speaker", "age", "gender", "text")
    assert [tuple(record[key] for key in kept) for record in found] == [
        ("l1", 0.5, 1.25, 0.75, "a", 6, "f", "red ball"),
        ("l2", 2, 4, 2, "b", 30, "", "blue cat"),
        ("own", 0, -1, 1, "a", 6, "f", "go home"),
    ]
    assert np.array_equal(read_clip(record_clip(found[0])), noise(1, 4)[8000:20000])


def test_cuts_carry_their_recording_and_their_times_are_their_own(lesson, tmp_path):
    inside = [supervision("u1", "lesson", 0.25, 0.5, "one"), supervision("u2", "lesson", 1, 0.75, "two")]
    found, ledger = records(
        dataset=Dataset(untranscribed="drop"),
        **manifest(tmp_path, cut("c", 1.0, 2.0, lesson, *inside), cut("empty", 3.0, 1.0, lesson)),
    )
    assert [(r["id"], r["start"], r["end"], r["text"]) for r in found] == [
        ("u1", 1.25, 1.75, "one"),
        ("u2", 2, 2.75, "two"),
    ]
    assert ledger.reason_counts() == {"untranscribed": 1}


def test_the_transcript_may_be_a_custom_field(lesson, tmp_path):
    said = supervision("u", "lesson", 0, 1, "the prompt", custom={"spoken": "the the prompt"})
    assert records(transcript="spoken", **manifest(tmp_path, lesson, said))[0][0]["text"] == "the the prompt"


def test_what_lhotse_writes_is_what_is_read(lesson, tmp_path):
    from lhotse import CutSet, Recording, RecordingSet, SupervisionSegment, SupervisionSet

    own = Recording.from_file(tmp_path / "lesson.wav")
    segment = SupervisionSegment("u", own.id, 1.0, 1.5, text="red ball", speaker="a", custom={"age": 7})
    sets = RecordingSet.from_recordings([own]), SupervisionSet.from_segments([segment])
    sets[0].to_file(tmp_path / "r.jsonl.gz")
    sets[1].to_file(tmp_path / "s.jsonl.gz")
    CutSet.from_manifests(*sets).to_file(tmp_path / "c.jsonl.gz")
    apart, _ = records(manifests=[str(tmp_path / "r.jsonl.gz"), str(tmp_path / "s.jsonl.gz")])
    together, _ = records(manifests=str(tmp_path / "c.jsonl.gz"))
    assert apart == together and apart[0]["seconds"] == 1.5 and apart[0]["age"] == 7


def of_lesson(**changes):
    return lambda lesson: [lesson | changes, supervision("u", "lesson", 0, 1, "one")]


def said(**changes):
    return lambda lesson: [lesson, supervision("u", "lesson", 0, 1, "one") | changes]


RECORDING = recording("lesson", "lesson.wav", 4.0)
BAD_ITEMS = {
    "a command": (of_lesson(sources=[{"type": "command", "channels": [0], "source": "touch ran"}]), "shell_pipe"),
    "a pipe": (of_lesson(sources=[{"type": "file", "channels": [0], "source": "pipe:touch ran"}]), "shell_pipe"),
    "an address": (of_lesson(sources=[{"type": "url", "channels": [0], "source": "https://a/b.wav"}]), "audio_source"),
    "bytes": (of_lesson(sources=[{"type": "memory", "channels": [0], "source": "UklGRg=="}]), "audio_source"),
    "two files": (of_lesson(sources=2 * RECORDING["sources"]), "audio_source"),
    "a faster one": (of_lesson(transforms=[{"name": "Speed", "kwargs": {"factor": 1.1}}]), "audio_source"),
    "one of two channels": (of_lesson(channel_ids=[0, 1]), "channels"),
    "another length": (of_lesson(duration=8.0, num_samples=8 * RATE), "stated_length"),
    "no such file": (of_lesson(sources=[{"type": "file", "channels": [0], "source": "none.wav"}]), "audio_missing"),
    "no recording": (said(recording_id="none"), "no_audio"),
    "beyond the end": (said(start=3.0, duration=2.0), "segment_times"),
    "before the start": (said(start=-1.0, duration=2.0), "segment_times"),
    "nothing said": (said(text=None), "no_transcript"),
    "nobody": (said(speaker=None), "no_speaker"),
    "an unknown field": (said(wild=1), "manifest_kind"),
    "no start": (lambda lesson: [lesson, {"id": "u", "recording_id": "lesson"}], "manifest_kind"),
    "a bare number": (lambda lesson: [lesson, 7], "json"),
    "a recording twice": (lambda lesson: [lesson, lesson, supervision("u", "lesson", 0, 1, "one")], "duplicate_id"),
    "features": (lambda lesson: [{"id": "c", "type": "MonoCut", "start": 0, "duration": 1, "channel": 0}], "no_audio"),
    "a mixture": (lambda lesson: [{"id": "m", "type": "MixedCut", "tracks": []}], "manifest_kind"),
    "a strange cut": (lambda lesson: [cut("c", 0, 1, lesson, kind="HyperCut")], "manifest_kind"),
    "out of its cut": (lambda lesson: [cut("c", 0, 1, lesson, supervision("u", "l", 0.5, 1, "one"))], "segment_times"),
}


@pytest.mark.parametrize("name", BAD_ITEMS)
def test_a_manifest_that_cannot_be_read_exactly_is_refused_by_line(lesson, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, reason = BAD_ITEMS[name]
    given = manifest(tmp_path, *make(lesson))
    error = refusal(**given)
    assert error.reason == reason and not Path("ran").exists()
    assert error.where.startswith(f"{tmp_path / 'm.jsonl'}:") or reason in (
        "stated_length",
        "audio_missing",
        "segment_times",
    )
    records("skip", **given)


def test_a_recording_that_no_supervision_names_is_not_gone_in_silence(lesson, tmp_path):
    assert refusal(**manifest(tmp_path, lesson)).reason == "no_transcript"
    _, ledger = records(dataset=Dataset(untranscribed="drop"), **manifest(tmp_path, lesson))
    assert ledger.reason_counts() == {"untranscribed": 1}


def test_without_lhotse_a_manifest_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lhotse", None)
    error = refusal(**manifest(tmp_path, RECORDING))
    assert error.where == str(tmp_path / "m.jsonl") and "loratory[speech]" in str(error)


# corpora as they are published


def test_librispeech_is_read_through_lhotse_and_what_it_would_leave_out_is_told(tmp_path):
    pytest.importorskip("lhotse")
    chapter = tmp_path / "LibriSpeech" / "my-part" / "19" / "198"
    for i in range(3):
        save_audio(chapter / f"19-198-000{i}.flac", i, 0.5 + i / 4)
    write_lines(
        chapter / "19-198.trans.txt", *(f"19-198-000{i} {text}" for i, text in enumerate(("ONE", "TWO WORDS")))
    )
    given = {"librispeech": str(tmp_path / "LibriSpeech")}
    found, ledger = records(dataset=Dataset(untranscribed="drop"), **given)
    kept = [(r["id"], r["text"], r["speaker"], r["seconds"]) for r in found]
    assert kept == [("19-198-0000", "ONE", "19", 0.5), ("19-198-0001", "TWO WORDS", "19", 0.75)]
    assert ledger.reason_counts() == {"untranscribed": 1}, "a recording without a transcript"
    (chapter / "19-198-0001.flac").unlink()
    error = refusal(**given)
    assert error.reason == "corpus" and "19-198-0001.flac" in str(error)


def test_cslu_kids_are_read_through_lhotse_with_their_marks(tmp_path):
    pytest.importorskip("lhotse")
    for place, id in (("scripted/00/0/ks001", "ks00100A0"), ("spontaneous/02/1/ks002", "ks0020XX0")):
        save_audio(tmp_path / "speech" / place / f"{id}.wav", len(place), 1)
    write_lines(tmp_path / "docs" / "all.map", '00 "NINE"')
    write_lines(tmp_path / "docs" / "0-verified.txt", "speech/scripted/00/0/ks001/ks00100A0.wav 1")
    write_lines(tmp_path / "trans" / "spontaneous" / "02" / "1" / "ks002" / "ks0020XX0.txt", "a <bn> b")
    found, _ = records(cslu_kids=str(tmp_path), dataset=Dataset(tags=("<...>",)))
    assert [(r["speaker"], r["text"]) for r in found] == [("ks001", "NINE"), ("ks002", "a b")]
    assert refusal(cslu_kids=str(tmp_path)).reason == "tag"
    (tmp_path / "docs" / "all.map").unlink()
    error = refusal(cslu_kids=str(tmp_path))
    assert error.where == str(tmp_path) and "not read by lhotse's recipe cslu_kids" in str(error)


@pytest.fixture
def kids(tmp_path):
    home = tmp_path / "cmu_kids"
    write_lines(
        home / "tables" / "speaker.tbl",
        "ID\tLOC\tGR/AGE\tTOT\tBIN2",
        "",
        "fabm\tSUM95\t3/9\t100\t62",
        "maxx\tFP\tNA/NA\t9\t5",
    )
    write_lines(
        home / "tables" / "transcrp.tbl",
        "fabm2aa1 a fish  swims",
        "maxx2bb2 [begin_noise] the /TH AH/ dog",
        "maxx2cc1 no\tdogs",
    )
    for i, id in enumerate(("fabm2aa1", "maxx2bb2", "maxx2cc1")):
        save_audio(home / "kids" / id[:4] / "signal" / f"{id}.sph", i, 1, format="NIST", subtype="PCM_16")
    return tmp_path


def test_cmu_kids_say_what_was_said_and_not_what_they_should_have_read(kids):
    policy = Dataset(tags=("[...]",), unintelligible=("/.../",))
    found, ledger = records(cmu_kids=str(kids), dataset=policy)
    kept = [(r["id"], r["text"], r["speaker"], r["age"], r["gender"]) for r in found]
    assert kept == [("fabm2aa1", "a fish swims", "fabm", 9, "f"), ("maxx2cc1", "no dogs", "maxx", -1, "m")]
    assert ledger.reason_counts() == {"unintelligible": 1}
    assert records(cmu_kids=str(kids / "cmu_kids"), dataset=policy)[0] == found
    assert refusal(cmu_kids=str(kids)).where == f"{kids / 'cmu_kids' / 'tables' / 'transcrp.tbl'}:2"


def test_cmu_kids_that_are_not_as_published_are_refused(kids):
    tables = kids / "cmu_kids" / "tables"
    (kids / "cmu_kids" / "kids" / "maxx" / "signal" / "maxx2cc1.sph").unlink()
    write_lines(tables / "transcrp.tbl", "maxx2cc1 no dogs")
    assert refusal(Dataset(untranscribed="drop"), cmu_kids=str(kids)).reason == "audio_missing"
    write_lines(tables / "transcrp.tbl", "maxx no dogs")
    assert refusal(cmu_kids=str(kids)).where == f"{tables / 'transcrp.tbl'}:1"
    write_lines(tables / "speaker.tbl", "head", "head", "fabm\tSUM95\t39")
    assert refusal(cmu_kids=str(kids)).where == f"{tables / 'speaker.tbl'}:3"


def test_myst_lies_beside_its_transcripts_and_most_of_it_has_none(tmp_path):
    session = tmp_path / "data" / "train" / "002030" / "myst_002030_2014-03-18"
    for i in range(3):
        save_audio(session / f"myst_002030_2014-03-18_00{i}.flac", i)
    write_lines(session / "myst_002030_2014-03-18_000.trn", "it's <SIL> like um magnets")
    (session / "myst_002030_2014-03-18_001.trn").write_text("")
    found, ledger = records(myst=str(tmp_path), dataset=Dataset(tags=("<...>",), untranscribed="drop"))
    assert [(r["text"], r["speaker"]) for r in found] == [("it's like um magnets", "002030")]
    assert ledger.reason_counts() == {"untranscribed": 2} and ledger.n_in == 3
    assert refusal(myst=str(tmp_path)).where.startswith(str(session / "myst_002030_2014-03-18_00"))
    assert refusal(myst=str(session)).reason == "corpus", "whose they are is in the folder's name"
    before = listed_state(Files(myst=str(tmp_path)))
    write_lines(session / "myst_002030_2014-03-18_002.trn", "new")
    assert listed_state(Files(myst=str(tmp_path))) != before


def test_a_corpus_of_nothing_is_refused(tmp_path):
    assert "no recordings are here" in str(refusal(myst=str(tmp_path)))


# long recordings


WORDS = [("one", 1.0, 1.5), ("two", 1.6, 2.0), ("three", 4.0, 4.5), ("four", 4.6, 5.0), ("five", 5.6, 6.0)]


def write_ctm(folder, words, of="rec"):
    write_lines(folder / "ctm", *(f"{of} 1 {start} {end - start} {word} 0.9" for word, start, end in words))


@pytest.fixture
def story(tmp_path):
    """Eight seconds of one speaker, with the times of the words."""
    save_audio(tmp_path / "story.wav", 5, 8, subtype="FLOAT")
    for name, value in (("wav.scp", "story.wav"), ("text", "One two, three four five."), ("utt2spk", "a")):
        write_lines(tmp_path / name, f"rec {value}")
    write_ctm(tmp_path, WORDS)
    return {"folders": str(tmp_path), "audio_root": str(tmp_path)}


def pieces(story, longest):
    found, ledger = records(dataset=Dataset(max_seconds=longest), **story)
    return [(r["id"], r["text"], r["start"], r["end"]) for r in found], ledger


def test_a_long_recording_is_cut_where_nobody_speaks(story, tmp_path):
    found, ledger = pieces(story, 3.5)
    assert found == [("rec.part1", "one two", 0.5, 2.5), ("rec.part2", "three four five", 3.5, 6.5)]
    assert ledger.n_changed == {"cut_at_pauses": 1} and ledger.n_in == 2
    found, _ = pieces(story, 2.2)
    assert [text for _, text, _, _ in found] == ["one two", "three four", "five"]
    assert found[1][2:] == (3.5, pytest.approx(5.3)) and found[2][2] == pytest.approx(5.3), (
        "half of a short pause each"
    )
    assert str(tmp_path / "ctm") in Files(**story).file_paths()
    found, ledger = pieces(story, 8)
    assert found == [("rec", "One two, three four five.", 0, -1)] and not ledger.n_changed


@pytest.mark.parametrize(
    "words",
    [
        [("one", 1.0, 3.0), ("two", 3.1, 5.0), ("three", 5.1, 6), ("four", 6.1, 6.5), ("five", 6.6, 7)],  # no pause
        [*WORDS[:4], ("six", 5.6, 6.0)],  # of another text
        WORDS[:4],
    ],
)
def test_what_cannot_be_cut_is_listed(story, words, tmp_path):
    write_ctm(tmp_path, words)
    found, ledger = pieces(story, 3.5)
    assert (
        not found and ledger.reason_counts() == {"too_long": 1} and ledger.rows[0][2:] == ("rec", "too_long", "8.00 s")
    )


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("rec 1 5 0.5 one", "word_times"),
        ("rec 1 x 0.5 one", "word_times"),
        ("rec 1 1 -0.5 one", "word_times"),
        ("rec 1", "word_times"),
    ],
)
def test_times_of_words_that_are_none_are_refused(story, row, reason, tmp_path):
    write_ctm(tmp_path, WORDS[1:])
    write_lines(tmp_path / "ctm", row, *(tmp_path / "ctm").read_text().splitlines())
    with pytest.raises(InputError) as caught:
        pieces(story, 3.5)
    assert caught.value.reason == reason


def test_segments_of_a_recording_are_cut_by_the_words_that_lie_in_them(story, tmp_path):
    write_lines(tmp_path / "segments", "s1 rec 0 3", "s2 rec 3 8")
    write_lines(tmp_path / "text", "s1 one two", "s2 three four five")
    write_lines(tmp_path / "utt2spk", "s1 a", "s2 a")
    found, _ = pieces(story, 3.0)
    assert found == [("s1", "one two", 0, 3), ("s2", "three four five", 3.5, 6.5)], "silence at its ends is left out"


def test_chinese_is_cut_between_its_characters(story, tmp_path):
    write_lines(tmp_path / "text", "rec 今天，天气很好。")
    write_ctm(tmp_path, [(word, *times) for word, (_, *times) in zip(("今天", "天气", "很", "好", "。"), WORDS)])
    found, _ = pieces(story, 3.5)
    assert [text for _, text, _, _ in found] == ["今天天气", "很好"]


def test_word_times_of_supervisions_cut_them(lesson, tmp_path):
    words = [[word, start, end - start, 1.0] for word, start, end in WORDS]
    save_audio(tmp_path / "lesson.wav", 1, 8, subtype="FLOAT")
    given = manifest(
        tmp_path,
        recording("lesson", "lesson.wav", 8.0),
        supervision("u", "lesson", 0, 8, "one two three four five", alignment={"word": words}),
    )
    found, _ = records(dataset=Dataset(max_seconds=3.5), **given)
    assert [(r["id"], r["text"], r["start"], r["end"]) for r in found] == [
        ("u.part1", "one two", 0.5, 2.5),
        ("u.part2", "three four five", 3.5, 6.5),
    ]
