"""Kaldi data folders → validated utterances; a speaker is a group."""

import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from hashlib import sha256
from os.path import join
from pathlib import Path

from loratory.data.audio import RATE, read_audio
from loratory.data.files import read_lines
from loratory.data.ledger import Ledger
from loratory.data.splits import count_shared
from loratory.domains.contract import exact_overlap, random_split
from loratory.domains.speech.sources import SPEAKER_TABLES, TABLES, Dataset, Files
from loratory.errors import InputError

DISTINCT = ""
COLUMNS = {
    "audio": "string",  # path, relative to where the workflow runs unless the tables hold absolute ones
    "text": "string",  # as transcribed, without tags
    "speaker": "string",
    "age": "int32",  # years; -1 if unknown
    "gender": "string",  # "" if unknown
    "seconds": "double",
    "sha256": "string",  # of the samples at 16 kHz
}
AGES = range(1, 101)  # 0 and 120 are what forms hold where the age is unknown
TAG = re.compile(r"<[^<>]*>|\(\(.*?\)\)|\[[^\[\]]*\]|\+\w+\+")
split = partial(random_split, "speech")


def read(files: Files, dataset: Dataset, ledger: Ledger) -> Iterator[dict]:
    """Yields utterances in id order; of clips with equal samples the first one.

    Raises:
        InputError: a table is missing, or has another encoding; a folder has segments. With `on_error: fail` also
            the first utterance without path, transcript or speaker, with an impossible age or an unknown tag, or
            whose audio file is unfit (see `data.audio.read_audio`).
    """
    first_seen: dict[str, str] = {}
    for row in all_utterances(files, ledger):
        where, id = join(row["folder"], "wav.scp"), row["id"]
        ledger.count_record()
        try:
            record = table_record(row, files.audio_root, dataset)
            unwanted = table_drop_reason(record, dataset)
            if not unwanted:
                record |= clip_facts(record)
                unwanted = length_drop_reason(record["seconds"], dataset)
        except InputError as error:
            ledger.note_error(error, id)
            continue
        if not unwanted and first_seen.setdefault(record["sha256"], id) != id:
            unwanted = "duplicate_audio", f"same samples as {first_seen[record['sha256']]}"
        if unwanted:
            ledger.drop_record(where, id, id, *unwanted)
        else:
            yield record


def all_utterances(files: Files, ledger: Ledger) -> list[dict]:
    """Rows of all folders joined by utterance, in id order; what a table does not hold is ""."""
    rows: dict[str, dict] = {}
    for folder in files.folders:
        for row in folder_utterances(folder, files.encoding, ledger):
            if row["id"] in rows:
                ledger.count_record()
                ledger.note_error(duplicate_error(f"{join(folder, 'wav.scp')}:{row['id']}", row["id"]), row["id"])
            else:
                rows[row["id"]] = row
    return [rows[id] for id in sorted(rows)]


def folder_utterances(folder: str, encoding: str, ledger: Ledger) -> Iterator[dict]:
    if Path(folder, "segments").exists():
        fix = "cut the recordings into utterances, and list these in wav.scp"
        raise InputError(join(folder, "segments"), "segments of recordings", fix=fix, reason="segments")
    audio, text, speaker = (read_table(join(folder, name), encoding, ledger) for name in TABLES)
    age, gender = (
        read_table(path, encoding, ledger) if Path(path).is_file() else {}
        for path in (join(folder, name) for name in SPEAKER_TABLES)
    )
    for id in dict.fromkeys([*audio, *text, *speaker]):
        who = speaker.get(id, "")
        yield {
            "folder": folder,
            "id": id,
            "audio": audio.get(id, ""),
            "text": text.get(id),
            "speaker": who,
            "age": age.get(who, ""),
            "gender": gender.get(who, ""),
        }


def read_table(path: str, encoding: str, ledger: Ledger) -> dict[str, str]:
    """{first word of a line: the rest}; a repeated key is a malformed record of its own."""
    table: dict[str, str] = {}
    for number, line in read_lines(path, encoding):
        key, _, value = " ".join(line.split()).partition(" ")
        if key in table:
            ledger.count_record()
            ledger.note_error(duplicate_error(f"{path}:{number}", key), key)
        elif key:
            table[key] = value
    return table


def duplicate_error(where: str, id: str) -> InputError:
    return InputError(where, "duplicate id", id, "unique ids", "rename or remove one", "duplicate_id")


def table_record(row: dict, audio_root: str, dataset: Dataset) -> dict:
    """The columns of a record that come from the tables.

    Raises:
        InputError: see `read`.
    """
    folder, id, entry = row["folder"], row["id"], row["audio"]
    where = f"{join(folder, 'wav.scp')}:{id}"
    if not entry:
        raise InputError(where, "no audio for this utterance", id, "its path in wav.scp", reason="no_audio")
    if "|" in entry:
        fix = "run it beforehand and list the file that it writes"
        raise InputError(where, "shell commands are not run", entry, "a path", fix, "shell_pipe")
    if not row["speaker"]:
        what, expected = "no speaker for this utterance", "its speaker in utt2spk"
        raise InputError(f"{join(folder, 'utt2spk')}:{id}", what, id, expected, reason="no_speaker")
    return {
        "id": id,
        "audio": join(audio_root, entry),
        "text": clean_transcript(f"{join(folder, 'text')}:{id}", row["text"], dataset),
        "speaker": row["speaker"],
        "age": age_years(f"{join(folder, 'spk2age')}:{row['speaker']}", row["age"]),
        "gender": row["gender"].lower(),
    }


def clean_transcript(where: str, text: str | None, dataset: Dataset) -> str | None:
    """The transcript without the configured tags: None where there is none, "" where it was nothing but tags."""
    if text is None and dataset.untranscribed == "drop":
        return None
    if text is None:
        fix = "transcribe it, or set `untranscribed: drop`"
        raise InputError(
            where, "audio without a transcript", expected="a row in text", fix=fix, reason="no_transcript"
        )
    spoken = text
    for tag in dataset.tags:
        spoken = spoken.replace(tag, " ")
    if unknown := TAG.search(spoken):
        fix = "list it in `tags`, or remove it"
        raise InputError(where, "unknown tag in a transcript", unknown[0], "spoken words", fix, "tag")
    words = " ".join(spoken.split())
    if not any(map(str.isalnum, words)):
        if spoken != text:
            return ""
        raise InputError(where, "empty transcript", text, "what is said", "transcribe or remove it", "empty_text")
    return words


def age_years(where: str, text: str) -> int:
    """Age in years, -1 where none is given."""
    if not text:
        return -1
    if not text.isdecimal() or int(text) not in AGES:
        expected = f"{AGES[0]} to {AGES[-1]} whole years"
        raise InputError(where, "age", text, expected, "correct it, or remove the row if unknown", "age")
    return int(text)


def table_drop_reason(record: dict, dataset: Dataset) -> tuple[str, str] | None:
    """`(reason, detail)` where the dataset's policy leaves the utterance out by what the tables say."""
    if not record["text"]:
        return ("untranscribed", "") if record["text"] is None else ("only_tags", "")
    youngest, oldest, age = dataset.min_age, dataset.max_age, record["age"]
    if youngest is None and oldest is None:
        return None
    if age < 0:
        return "age_unknown", record["speaker"]
    wanted = (youngest is None or youngest <= age) and (oldest is None or age <= oldest)
    return None if wanted else ("other_age", f"{age} years")


def length_drop_reason(seconds: float, dataset: Dataset) -> tuple[str, str] | None:
    if seconds < dataset.min_seconds:
        return "too_short", f"{seconds:.2f} s"
    return ("too_long", f"{seconds:.2f} s") if seconds > dataset.max_seconds else None


def clip_facts(record: dict) -> dict:
    """Length and digest of the samples."""
    try:
        samples = read_audio(record["audio"])
    except InputError as error:
        raise InputError(f"{record['audio']}:{record['id']}", error.detail, reason=error.reason) from None
    return {"seconds": len(samples) / RATE, "sha256": sha256(samples.astype("<f4").tobytes()).hexdigest()}


def group(records: list[dict], dataset: Dataset) -> list[str]:
    return [record["speaker"] for record in records]


def find_leaks(held_out: list[dict], others: list[dict], dataset: Dataset) -> dict[str, str]:
    """Utterances of others whose sentence, as `metrics` compares it, is one of those held out."""
    if dataset.held_out_sentences == "any":
        return {}
    first: dict[str, str] = {}
    for sentence, record in zip(normalised_sentences(held_out), held_out):
        first.setdefault(sentence, record["id"])
    pairs = zip(normalised_sentences(others), others)
    return {record["id"]: first[sentence] for sentence, record in pairs if sentence in first}


def count_overlaps(held_out: list[dict], others: list[dict], dataset: Dataset) -> dict[str, dict]:
    """Utterances held out whose sentence, as `metrics` compares it, is also read by the others."""
    return {"sentence": exact_overlap(normalised_sentences(held_out), normalised_sentences(others))}


def normalised_sentences(records: list[dict]) -> list[str]:
    """Normalised transcripts; of one that is nothing but fillers, which the normaliser removes, the fillers."""
    from loratory.domains.speech.metrics import normalised_texts  # imports torch
    from loratory.domains.speech.task import plain_transcript

    spoken = [plain_transcript(record["text"]) for record in records]
    return [words or fillers for words, fillers in zip(normalised_texts("english", spoken), spoken)]


def proof(parts: dict[str, list[dict]], dataset: Dataset) -> dict[str, int]:
    return {
        "speakers_in_two_splits": count_shared(parts, "speaker"),
        "audio_in_two_splits": count_shared(parts, "sha256"),
    }


def summary(records: list[dict]) -> dict:
    """Hours, speakers by age, and how many prompts of the test split were also read in train (no leak, but a help)."""
    ages = {record["speaker"]: record["age"] for record in records}
    texts = {s: {r["text"].lower() for r in records if r["split"] == s} for s in ("train", "test")}
    return {
        "hours": round(sum(record["seconds"] for record in records) / 3600, 4),
        "speakers_by_age": {str(age): n for age, n in sorted(Counter(ages.values()).items())},
        "test_texts": len(texts["test"]),
        "test_texts_also_in_train": len(texts["test"] & texts["train"]),
    }
