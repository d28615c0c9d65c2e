"""Corpora of speech → validated utterances; a speaker is a group."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from hashlib import sha256
from os.path import join
from typing import TypeVar

from loratory.data.audio import (
    FLAWS,
    OVERHANG,
    RATE,
    check_stated_length,
    inspect_audio,
    recording_digest,
    recording_seconds,
)
from loratory.data.ledger import Ledger
from loratory.data.records import Records
from loratory.data.splits import SPLITS, connected_components, count_shared, links_by_key
from loratory.domains.contract import exact_overlap, random_split
from loratory.domains.speech.corpora import corpus_utterances
from loratory.domains.speech.cutting import cut_record
from loratory.domains.speech.kaldi import folder_utterances, speaker_tables
from loratory.domains.speech.manifests import manifest_utterances
from loratory.domains.speech.markup import find_mark, find_unknown_mark, remove_marks, unwrap_marks
from loratory.domains.speech.sources import CORPORA, Dataset, Files
from loratory.domains.speech.tables import table_utterances
from loratory.domains.speech.utterances import FACTS, Stated, Utterance, add_speaker_facts, duplicate_error
from loratory.errors import InputError

DISTINCT = ""
COLUMNS = {
    "audio": "string",  # path, relative to where the workflow runs unless the tables hold absolute ones
    "audio_sha256": "string",  # of the file
    "start": "double",  # seconds in the recording
    "end": "double",  # -1 where the utterance is the whole recording
    "text": "string",  # as transcribed, without tags
    "speaker": "string",
    "age": "int32",  # completed years; -1 if unknown
    "gender": "string",  # "" if unknown
    "seconds": "double",
    "sha256": "string",  # of the samples at 16 kHz
    "flaws": "string",  # of `data.audio.FLAWS`, with blanks between; "" if there are none
    "read_in_train": "bool",  # whether train has an utterance of the same sentence
}
Value = TypeVar("Value", int, str)
GENDERS = {"female": "f", "male": "m"}
AGES = range(1, 101)  # 0 and 120 are what forms hold where the age is unknown
AGE = re.compile(
    r"(?P<years>\d{1,3})(?:\.\d+)?\s*(?:y|yrs?|years?)?\.?"  # 6, 6.5, 6y, 6 years
    r"|(?P<completed>\d{1,3});(?P<months>\d{1,2})?(?:\.\d{0,2})?"  # 6;3, 6;03.14: years;months.days
    r"|(?P<y>\d{1,3})\s*y\w*\s*(?P<m>\d{1,2})\s*m\w*",  # 6y3m, 6 years 3 months
    re.IGNORECASE,
)
LONGEST_NAME, LONGEST_PATH = 255, 4095  # bytes that a file system takes


def read(files: Files, dataset: Dataset, ledger: Ledger) -> Iterator[dict]:
    """Yields utterances in id order; of clips with equal samples the first one.

    Raises:
        InputError: a table is missing, or has another encoding. With `on_error: fail` also the first utterance without
            path, transcript or speaker, with an impossible age, two ages or an unknown marker, or whose audio is unfit
            (see `data.audio.inspect_audio`).
    """
    first_seen: dict[str, str] = {}
    utterances, stated = all_utterances(files, ledger)
    for utterance in utterances:
        try:
            pieces = table_records(utterance, stated, files.audio_root, dataset)
        except InputError as error:
            ledger.note_error(error, utterance.id)
            continue
        if len(pieces) > 1:
            ledger.count_change("cut_at_pauses")
        for number, record in enumerate(pieces):
            if number:  # the utterance itself is counted
                ledger.count_record()
            try:
                unwanted = table_drop_reason(record, dataset) or stated_drop_reason(record, dataset)
                if not unwanted:
                    record |= clip_facts(record, utterance.seconds)
                    unwanted = length_drop_reason(record["seconds"], dataset)
            except InputError as error:
                ledger.note_error(error, record["id"])
                continue
            if not unwanted and first_seen.setdefault(record["sha256"], record["id"]) != record["id"]:
                unwanted = "duplicate_audio", f"same samples as {first_seen[record['sha256']]}"
            if unwanted:
                file, _, place = utterance.where.rpartition(":")
                ledger.drop_record(file, place, record["id"], *unwanted)
            else:
                yield record


def all_utterances(files: Files, ledger: Ledger) -> tuple[list[Utterance], Stated]:
    """The utterances of all corpora in id order, and what is said of their speakers anywhere."""
    found: dict[str, Utterance] = {}
    for utterance in read_utterances(files, ledger):
        if utterance.id in found:
            ledger.note_error(duplicate_error(utterance.where, utterance.id), utterance.id)
        else:
            found[utterance.id] = utterance
    stated = add_speaker_facts(speaker_tables(files.folders, files.encoding, ledger), found.values())
    return [found[id] for id in sorted(found)], stated


def read_utterances(files: Files, ledger: Ledger) -> Iterator[Utterance]:
    """Each is counted by whoever reads it."""
    for folder in files.folders:
        yield from folder_utterances(folder, files.encoding, ledger)
    for name in CORPORA:
        for folder in getattr(files, name):
            yield from corpus_utterances(name, folder, files.encoding, ledger)
    if files.manifests:
        yield from manifest_utterances(files.manifests, files.transcript, ledger)
    for path in files.tables:
        yield from table_utterances(path, files.columns, files.encoding, ledger)


def table_records(utterance: Utterance, stated: Stated, audio_root: str, dataset: Dataset) -> list[dict]:
    """The columns of a record that come from the tables, with `unwanted` as `clean_transcript` gives it; several
    records of an utterance that is too long, where it can be cut.

    Raises:
        InputError: see `read`.
    """
    start, end = segment_times(utterance.place("times"), utterance.times)
    audio = recording_path(utterance.place("audio"), utterance.audio, audio_root)
    text, unwanted = clean_transcript(utterance.place("text"), utterance.text, dataset)
    if not utterance.speaker and not unwanted:
        what, expected = "no speaker for this utterance", "its speaker in the corpus's tables"
        raise InputError(utterance.place("speaker"), what, utterance.id, expected, reason="no_speaker")
    speaker = utterance.speaker
    age, gender = (stated.get(fact, {}).get(speaker, {}) for fact in FACTS)
    record = {
        "id": utterance.id,
        "audio": audio,
        "start": start,
        "end": end,
        "text": text,
        "unwanted": unwanted,
        "speaker": speaker,
        "age": speaker_age(speaker, age),
        "gender": speaker_gender(speaker, gender),
    }
    if unwanted or not utterance.words:
        return [record]
    last = end if end >= 0 else recording_seconds(audio)
    return cut_record(record, utterance.words, utterance.where, last, dataset.max_seconds)


def recording_path(where: str, entry: str, audio_root: str) -> str:
    """Raises:
    InputError: there is no entry in wav.scp, or it is no path.
    """
    if not entry:
        id = where.rpartition(":")[2]
        raise InputError(where, "no audio for this utterance", id, "the path of its recording", reason="no_audio")
    if "|" in entry:
        fix = "run it beforehand and list the file that it writes"
        raise InputError(where, "shell commands are not run", entry, "a path", fix, "shell_pipe")
    path = join(audio_root, entry)
    if "\0" in path:
        raise InputError(where, "a path with a zero byte", entry, "a path", reason="audio_missing")
    if len(os.fsencode(path)) > LONGEST_PATH or any(len(os.fsencode(name)) > LONGEST_NAME for name in path.split("/")):
        expected = f"names of at most {LONGEST_NAME} bytes"
        raise InputError(where, "a path too long for a file", entry, expected, "correct the path", "audio_missing")
    return path


def segment_times(where: str, times: tuple[float | str, ...]) -> tuple[float, float]:
    """Start and end in the recording, seconds; an end of -1 is that of the recording.

    Raises:
        InputError: these are no times, or the end is not after the start.
    """
    expected, fix = "recording, start and end in seconds, the end after the start", "correct the row"
    try:
        start, end = map(float, times)
    except ValueError:
        given = " ".join(map(str, times))
        raise InputError(where, "not a segment", given, expected, fix, "segment_times") from None
    if not 0 <= start < float("inf") or not (end == -1 or start < end < float("inf")):
        raise InputError(where, "times of a segment", f"{start:g} to {end:g} s", expected, fix, "segment_times")
    return start, end


def clean_transcript(where: str, text: str | None, dataset: Dataset) -> tuple[str, str]:
    """The transcript without the configured markers, and why the utterance is not wanted, "" if it is.

    Raises:
        InputError: there is none, nothing is said in it, or it holds a marker that the config does not list.
    """
    if text is None and dataset.untranscribed == "drop":
        return "", "untranscribed"
    if text is None:
        fix = "transcribe it, or set `untranscribed: drop`"
        raise InputError(
            where, "audio without a transcript", expected="what is said in it", fix=fix, reason="no_transcript"
        )
    spoken = remove_marks(text, dataset.tags)
    if find_mark(spoken, dataset.unintelligible):
        return "", "unintelligible"
    spoken = unwrap_marks(spoken, dataset.spoken)
    if unknown := find_unknown_mark(spoken):
        fix = "list it in `tags`, `spoken` or `unintelligible`, or remove it"
        raise InputError(where, "unknown tag in a transcript", unknown, "spoken words", fix, "tag")
    words = " ".join(spoken.split())
    if not any(map(str.isalnum, words)):
        if spoken != text:
            return "", "only_tags"
        raise InputError(where, "empty transcript", text, "what is said", "transcribe or remove it", "empty_text")
    return words, "long_text" if len(words) > dataset.max_letters else ""


def speaker_age(speaker: str, stated: Mapping[str, str]) -> int:
    """Age in completed years, -1 where none is given.

    Args:
        stated: {what is said: where}.

    Raises:
        InputError: an age is none, or two tables contradict each other.
    """
    ages = {where: completed_years(where, text) for text, where in stated.items()}
    return one_value(speaker, ages, "age") if ages else -1


def speaker_gender(speaker: str, stated: Mapping[str, str]) -> str:
    """In small letters, `f` and `m` by their first; "" where none is given.

    Raises:
        InputError: two tables contradict each other.
    """
    genders = {where: GENDERS.get(text.lower(), text.lower()) for text, where in stated.items()}
    return one_value(speaker, genders, "gender") if genders else ""


def one_value(speaker: str, stated: Mapping[str, Value], what: str) -> Value:
    """Raises:
    InputError: different things are said of one speaker.
    """
    (first, value), *others = stated.items()
    for where, other in others:
        if other != value:
            fix = "give speakers of different folders different ids, or correct it"
            expected = f"{value}, as of {speaker} in {first}"
            raise InputError(where, f"another {what} of the same speaker", other, expected, fix, what)
    return value


def completed_years(where: str, text: str) -> int:
    """An age as forms and CHAT write it: 6, 6.5, 6y, 6;3 or 6;03.14 (years;months.days), 6 years 3 months.

    Raises:
        InputError: it is none, or nobody's.
    """
    found = AGE.fullmatch(text.strip())
    years = int(next(filter(None, found.group("years", "completed", "y")))) if found else 0
    months = int(next(filter(None, found.group("months", "m")), 0)) if found else 0
    if years not in AGES or months > 11:
        expected = f"{AGES[0]} to {AGES[-1]} years, as 6, 6.5 or 6;3 (years;months)"
        raise InputError(where, "age", text, expected, "correct it, or remove the row if unknown", "age")
    return years


def table_drop_reason(record: dict, dataset: Dataset) -> tuple[str, str] | None:
    """`(reason, detail)` where the dataset's policy leaves the utterance out by what the tables say."""
    if unwanted := record.pop("unwanted"):
        return unwanted, f"{len(record['text'])} letters" if record["text"] else ""
    youngest, oldest, age = dataset.min_age, dataset.max_age, record["age"]
    if youngest is None and oldest is None:
        return None
    if age < 0:
        return "age_unknown", record["speaker"]
    wanted = (youngest is None or youngest <= age) and (oldest is None or age <= oldest)
    return None if wanted else ("other_age", f"{age} years")


def stated_drop_reason(record: dict, dataset: Dataset) -> tuple[str, str] | None:
    """As `length_drop_reason` by the header alone: an hour is not read to learn that it is too long.

    Segments about as long as they may be, or beyond the end of their recording, are left to whoever reads them.
    """
    whole = recording_seconds(record["audio"])
    last = record["end"] if record["end"] >= 0 else whole
    seconds = last - record["start"]
    far = dataset.max_seconds + OVERHANG < seconds and last <= whole
    return ("too_long", f"{seconds:.2f} s") if far else None


def length_drop_reason(seconds: float, dataset: Dataset) -> tuple[str, str] | None:
    if seconds < dataset.min_seconds:
        return "too_short", f"{seconds:.2f} s"
    return ("too_long", f"{seconds:.2f} s") if seconds > dataset.max_seconds else None


def clip_facts(record: dict, stated: float | str = "") -> dict:
    """Length, flaws and digests of an utterance's sound.

    Args:
        stated: how long the corpus says that the whole recording is, seconds; "" where it does not.

    Raises:
        InputError: as `inspect_audio`; or the recording is not as long as it is said to be.
    """
    path, end = record["audio"], record["end"]
    try:
        check_stated_length(path, stated)
        samples, flaws = inspect_audio(path, record["start"], None if end < 0 else end)
        return {
            "audio_sha256": recording_digest(path),
            "seconds": len(samples) / RATE,
            "sha256": sha256(samples.astype("<f4").tobytes()).hexdigest(),
            "flaws": " ".join(flaws),
        }
    except InputError as error:
        raise InputError(f"{path}:{record['id']}", error.detail, reason=error.reason) from None


def group(records: Records, dataset: Dataset) -> list[str]:
    """The speaker; of speakers who are heard in one recording, the first."""
    speakers = [*records.texts("speaker")]
    together = connected_components(len(records), links_by_key(speakers, [*records.texts("audio")]))
    return [speakers[first] for first in together]


def split(records: Records, dataset: Dataset, seed: int, ledger: Ledger) -> Records:
    """By a hash of the group; with a column `read_in_train`.

    Raises:
        InputError: the groups cannot fill every split, or no sentence of train is left once held-out ones are dropped.
    """
    records = random_split("speech", records, dataset, seed, ledger)
    homes, sentences = [*records.texts("split")], normalised_sentences(records)
    read = {home: {s for s, own in zip(sentences, homes) if own == home} for home in SPLITS}
    if dataset.held_out_sentences == "unseen" and read["train"] <= read["test"] | read["valid"] | read["gate"]:
        what, expected = "every sentence of train is also read in a held-out split", "sentences of its own"
        fix = "set `held_out_sentences: any`, and read `wer_unseen` and `wer_read_in_train` apart"
        raise InputError("speech", what, f"{len(read['train'])} sentences", expected, fix, "degenerate_split")
    learnt = [dataset.held_out_sentences == "any" or home == "train" for home in homes]
    known = [may and sentence in read["train"] for may, sentence in zip(learnt, sentences)]
    return records.with_column("read_in_train", known)


def find_leaks(held_out: Records, others: Records, dataset: Dataset) -> dict[str, str]:
    """Utterances of others whose sentence, as `metrics` compares it, is one of those held out."""
    if dataset.held_out_sentences == "any":
        return {}
    first: dict[str, str] = {}
    for sentence, id in zip(normalised_sentences(held_out), held_out.texts("id")):
        first.setdefault(sentence, id)
    pairs = zip(normalised_sentences(others), others.texts("id"))
    return {id: first[sentence] for sentence, id in pairs if sentence in first}


def count_overlaps(held_out: Records, others: Records, dataset: Dataset) -> dict[str, dict]:
    """Utterances held out whose sentence, as `metrics` compares it, is also read by the others."""
    return {"sentence": exact_overlap(normalised_sentences(held_out), normalised_sentences(others))}


def normalised_sentences(records: Records) -> list[str]:
    """Normalised transcripts without blanks, which Chinese may be written with or without; of one that is nothing but
    fillers, which the normaliser removes, the fillers."""
    from loratory.domains.speech.metrics import normalised_texts  # imports torch
    from loratory.domains.speech.task import plain_transcript

    texts = [*records.texts("text")]
    sentences = [words or plain_transcript(text) for words, text in zip(normalised_texts("english", texts), texts)]
    return ["".join(sentence.split()) for sentence in sentences]


def proof(parts: Mapping[str, Records], dataset: Dataset) -> dict[str, int]:
    learnt = set(normalised_sentences(parts["train"]))
    test = zip(parts["test"].column("read_in_train").to_pylist(), normalised_sentences(parts["test"]))
    return {
        "speakers_in_two_splits": count_shared(parts, "speaker"),
        "recordings_in_two_splits": count_shared(parts, "audio"),
        "audio_in_two_splits": count_shared(parts, "sha256"),
        "wrongly_marked_read_in_train": sum(marked != (words in learnt) for marked, words in test),
    }


def summary(records: Records) -> dict:
    """Hours, speakers by age, utterances with each flaw, and sentences of the test split that train has too."""
    ages = {record["speaker"]: record["age"] for record in records}
    read: dict[str, set[str]] = {split: set() for split in SPLITS}
    for split, sentence in zip(records.texts("split"), normalised_sentences(records)):
        read[split].add(sentence)
    flaws = Counter(flaw for record in records for flaw in record["flaws"].split())
    return {
        "hours": round(sum(record["seconds"] for record in records) / 3600, 4),
        "speakers_by_age": {str(age): n for age, n in sorted(Counter(ages.values()).items())},
        "flaws": {name: flaws[name] for name in FLAWS},
        "test_texts": len(read["test"]),
        "test_texts_also_in_train": len(read["test"] & read["train"]),
    }
