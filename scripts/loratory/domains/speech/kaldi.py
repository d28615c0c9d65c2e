"""Kaldi data folders: `wav.scp`, `text`, `utt2spk`, and what else is there.

lhotse reads them too, but it runs what `wav.scp` pipes, knows no ages, and only logs what it leaves out.
"""

import os
from collections.abc import Iterator
from os.path import isfile, join

from loratory.data.files import read_lines
from loratory.data.ledger import Ledger
from loratory.domains.speech.sources import SEGMENTS, SPEAKER_TABLES, TABLES, WORD_TIMES, split_row
from loratory.domains.speech.utterances import Stated, Utterance, Word, duplicate_error
from loratory.errors import InputError


def folder_utterances(folder: str, encoding: str, ledger: Ledger) -> Iterator[Utterance]:
    """The utterances of a folder, joined from its tables; what a table does not hold is ""."""
    recordings, text, speaker = (read_table(join(folder, name), encoding, ledger) for name in TABLES)
    segments: dict[str, str] = {}
    if is_cut := isfile(join(folder, SEGMENTS)):
        segments = read_table(join(folder, SEGMENTS), encoding, ledger)
        for id in sorted(recordings.keys() - {split_row(cut)[0] for cut in segments.values()}):
            ledger.count_record()
            ledger.drop_record(join(folder, "wav.scp"), id, id, "no_segment")
    timed = recording_words(join(folder, WORD_TIMES), encoding)
    for id in dict.fromkeys([*(segments if is_cut else recordings), *text, *speaker]):
        recording, *times = segments.get(id, "").split()[:3] or [""] if is_cut else (id, 0.0, -1.0)
        tables = {"audio": "wav.scp", "text": "text", "speaker": "utt2spk", "times": SEGMENTS}
        ledger.count_record()
        yield Utterance(
            id=id,
            where=f"{join(folder, 'wav.scp')}:{id}",
            audio=recordings.get(str(recording), ""),
            text=text.get(id),
            speaker=speaker.get(id, ""),
            times=tuple(times),
            words=timed.get(str(recording), ()),
            places={what: f"{join(folder, table)}:{id}" for what, table in tables.items()},
        )


def read_table(path: str, encoding: str, ledger: Ledger) -> dict[str, str]:
    """{first word of a line: the rest}; a repeated key is a malformed record of its own."""
    table: dict[str, str] = {}
    for number, line in read_lines(path, encoding):
        key, value = split_row(line)
        if key in table:
            ledger.count_record()
            ledger.note_error(duplicate_error(f"{path}:{number}", key), key)
        elif key:
            table[key] = value
    return table


def speaker_tables(folders: list[str], encoding: str, ledger: Ledger) -> Stated:
    """What the speakers' tables of all folders say; an empty table says nothing."""
    stated: Stated = {}
    for name, fact in SPEAKER_TABLES.items():
        for path in (join(folder, name) for folder in folders):
            if isfile(path) and os.stat(path).st_size:
                for speaker, value in read_table(path, encoding, ledger).items():
                    if value:
                        said = stated.setdefault(fact, {}).setdefault(speaker, {})
                        said.setdefault(value, f"{path}:{speaker}")
    return stated


def recording_words(path: str, encoding: str) -> dict[str, tuple[Word, ...]]:
    """{recording: its words} of a table of words and their times, one a line; nothing where there is none.

    Raises:
        InputError: a line is not recording, channel, start, length and word.
    """
    found: dict[str, list[Word]] = {}
    for number, line in read_lines(path, encoding) if isfile(path) else ():
        try:
            recording, _, start, length, word = line.split()[:5]
            found.setdefault(recording, []).append(Word(word, float(start), float(start) + float(length)))
        except ValueError:
            expected = "recording, channel, start, length (seconds) and word"
            raise InputError(
                f"{path}:{number}", "not a word with its time", line, expected, reason="word_times"
            ) from None
    return {recording: tuple(words) for recording, words in found.items()}
