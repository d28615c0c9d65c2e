"""Word and character errors, pooled: Σ(S + D + I) / ΣN, never a mean of utterances and never clipped.

VERSION is raised when a metric changes its meaning: every file of metrics carries it, and tables print it above 1.
"""

from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import jiwer
import numpy as np

from loratory.domains.bins import rows_between, rows_of_both
from loratory.domains.contract import Columns, Metric
from loratory.domains.speech.filters import answer_flags
from loratory.domains.speech.sources import Task
from loratory.domains.speech.task import plain_transcript

EDITS = ("substitute", "delete", "insert")
AGE_BINS = {  # metric: (youngest, oldest) in years; -1 stands for an unknown age
    "wer_age_to_6": (0, 6),
    "wer_age_7_8": (7, 8),
    "wer_age_9_10": (9, 10),
    "wer_age_11_12": (11, 12),
    "wer_age_13_15": (13, 15),
    "wer_adult": (16, 200),
    "wer_age_unknown": (-1, -1),
}
GENDERS = {"wer_female": "f", "wer_male": "m"}
FLAGS = {
    "hallucination": "answers that repeat what compresses (ratio above 2.4), or hold a phrase of subtitles",
    "repetition": "answers with the same words four times in a row, or letters where these are the words",
    "speed": "answers of more than eight words a second, or sixteen letters",
    "no_speech": "answers to what the model takes for silence (`evaluation.decoding.no_speech`)",
}
POOLED = "errors of all utterances over words of all references, both normalised"


def error_ratio(columns: Columns, errors: tuple[str, ...], length: str) -> float:
    """Summed errors over summed length; NaN without any reference."""
    total = columns[length].sum()
    return float(sum(columns[name].sum() for name in errors) / total) if total else float("nan")


def error_rate_metric(name: str, errors: tuple[str, ...], length: str = "N", **more: Any) -> Metric:
    more = {"where": lambda columns: columns[length] > 0} | more
    return Metric(name, "ratio", "down", "text", lambda columns: error_ratio(columns, errors, length), **more)


def age_rate_metric(name: str, youngest: int, oldest: int) -> Metric:
    where = rows_of_both(rows_between("age", youngest, oldest + 1), lambda columns: columns["N"] > 0)
    return error_rate_metric(name, ("S", "D", "I"), where=where, note="wer of speakers of this age")


def sentence_rate_metric(name: str, read: bool, note: str) -> Metric:
    def counts(columns: Columns) -> np.ndarray:
        return (columns["read_in_train"] == read) & (columns["N"] > 0)

    return error_rate_metric(name, ("S", "D", "I"), where=counts, note=note)


def gender_rate_metric(name: str, gender: str) -> Metric:
    def is_of_gender(columns: Columns) -> np.ndarray:
        return (columns["gender"] == gender) & (columns["N"] > 0)

    return error_rate_metric(name, ("S", "D", "I"), where=is_of_gender, note="wer of speakers of this gender")


def speaker_median(columns: Columns) -> float:
    """The median over speakers of each one's pooled rate; a speaker who was drawn twice counts twice."""
    _, codes = np.unique(columns["speaker"], return_inverse=True)
    errors, words, times = (np.bincount(codes, columns[name]) for name in ("word_errors", "N", "speaker_share"))
    rates = np.repeat(errors / words, np.rint(times).astype(int)) if len(codes) else np.empty(0)
    return float(np.median(rates)) if len(rates) else float("nan")


def count_metric(name: str, note: str) -> Metric:
    return Metric(name, "utterances", "down", "text", lambda columns: float(columns[name].sum()), note=note)


TRAIN_KEYS = ()
# 2: both sides go through `plain_transcript` first; blanks between letters that are words do not count
# 3: filters count letters where these are the words; signs that nobody sees are no part of a word
VERSION = 3
METRICS = (
    error_rate_metric("wer", ("S", "D", "I"), primary=True, note=POOLED),
    sentence_rate_metric("wer_unseen", False, "wer of sentences that train does not hold"),
    sentence_rate_metric("wer_read_in_train", True, "wer of sentences that train holds too, said by others"),
    error_rate_metric("cer", ("char_errors",), "chars", note="as wer, over characters; blanks between words count"),
    error_rate_metric("substitutions", ("S",), note="share of wer"),
    error_rate_metric("deletions", ("D",), note="share of wer"),
    error_rate_metric("insertions", ("I",), note="share of wer"),
    error_rate_metric(
        "wer_verbatim",
        ("basic_errors",),
        "basic_words",
        note="as wer, but without what is made for English: fillers stay",
    ),
    Metric(
        "wer_speaker_median",
        "ratio",
        "down",
        "text",
        speaker_median,
        where=lambda columns: columns["N"] > 0,
        note="median over speakers of each one's wer",
    ),
    error_rate_metric("wer_filtered", ("filtered_errors",), note="as wer, if all flagged answers were empty"),
    count_metric("flagged", "answers that one of the filters would empty; they count in every other rate"),
    *(count_metric(f"flagged_{name}", note) for name, note in FLAGS.items()),
    count_metric(
        "references_emptied", "nothing is left of the reference after normalisation: left out of wer and cer"
    ),
    *(gender_rate_metric(name, gender) for name, gender in GENDERS.items()),
    *(age_rate_metric(name, *ages) for name, ages in AGE_BINS.items()),
)


def columns(rows: list[dict], records: list[dict], task: Task) -> dict[str, np.ndarray]:
    """Counts of each utterance, so that a resampled rate is a ratio of sums.

    Returns:
        (n,) integer arrays: S, D, I errors, their sum `word_errors`, and N reference words; `filtered_errors`, those
        if flagged answers were empty; `char_errors` and `chars`; `basic_errors` and `basic_words` of what was said
        word by word; `age` (-1 if unknown); `flagged`, `flagged_{flag}`, 1 where a filter flags the answer (of
        silence NaN, where it was not asked for);
        `references_emptied`, 1 where the normalised reference is empty, and then all other counts but the `basic_` are
        0 whatever the system wrote. Also `gender` and `speaker` (text), `speaker_share` (1 over the speaker's
        utterances with words) and `read_in_train`, whether train holds the sentence.
    """
    known = {record["id"]: record for record in records}
    own = [known[row["id"]] for row in rows]
    sides = [[row[name] for row in rows] for name in ("reference", "text")]
    words = [normalised_texts(task.normaliser, side) for side in sides]
    letters = [[text.replace(" ", "") for text in side] for side in words] if task.normaliser == "letters" else words
    verbatim = "basic" if task.normaliser == "english" else task.normaliser
    basic = [normalised_texts(verbatim, side) for side in sides]
    length = word_counts(words[0])
    edits = edit_counts(jiwer.process_words, *words)
    units = [text.split() if task.normaliser == "letters" else None for text in words[1]]
    silence = [row.get("no_speech") for row in rows]
    flags = flag_columns(sides[1], [record["seconds"] for record in own], units, silence)
    return {
        **dict(zip("SDI", edits.T)),
        "N": length,
        "word_errors": edits.sum(axis=1),
        "filtered_errors": np.where(flags["flagged"], length, edits.sum(axis=1)),
        "char_errors": edit_counts(jiwer.process_characters, *letters).sum(axis=1),
        "chars": np.array([len(text) for text in letters[0]], int),
        "basic_errors": edit_counts(jiwer.process_words, *basic).sum(axis=1),
        "basic_words": word_counts(basic[0]),
        "age": np.array([record["age"] for record in own], int),
        "gender": np.array([record["gender"] for record in own], str),
        "speaker": np.array([record["speaker"] for record in own], str),
        "speaker_share": speaker_shares([record["speaker"] for record in own], length),
        "read_in_train": np.array([record["read_in_train"] for record in own], bool),
        "references_emptied": (length == 0).astype(int),
        **flags,
    }


def flag_columns(
    texts: list[str], seconds: list[float], units: list[list[str] | None], silence: list[bool | None]
) -> dict[str, np.ndarray]:
    """1 where an answer is flagged: by each filter, and by any of them; NaN where silence was not asked for."""
    flags = [answer_flags(*each) for each in zip(texts, seconds, units)]
    found = [{**own, "no_speech": is_one} for own, is_one in zip(flags, silence)]
    columns = {f"flagged_{flag}": np.array([own[flag] for own in found], float) for flag in FLAGS}
    return columns | {"flagged": np.array([any(own.values()) for own in found], int)}


def speaker_shares(speakers: list[str], words: np.ndarray) -> np.ndarray:
    """1 over how many utterances with words a speaker has, 0 for those without: summed, 1 for each speaker."""
    counts = Counter(speaker for speaker, length in zip(speakers, words) if length)
    return np.array([1 / counts[speaker] if length else 0.0 for speaker, length in zip(speakers, words)], float)


def word_counts(texts: list[str]) -> np.ndarray:
    return np.array([len(text.split()) for text in texts], int)


def edit_counts(align: Callable[[list[str], list[str]], Any], references: list[str], texts: list[str]) -> np.ndarray:
    """(n, 3) substitutions, deletions and insertions; 0 where the reference is empty."""
    counts = np.zeros((len(references), len(EDITS)), int)
    spoken = [i for i, reference in enumerate(references) if reference]
    if spoken:
        aligned = align([references[i] for i in spoken], [texts[i] for i in spoken])
        for i, chunks in zip(spoken, aligned.alignments):
            for chunk in chunks:
                if chunk.type in EDITS:
                    reach = chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx
                    counts[i, EDITS.index(chunk.type)] += max(reach)
    return counts


def normalised_texts(name: str, texts: list[str]) -> list[str]:
    """What of a transcript, or of an answer, is compared: the one way for both, and for what is counted as shared."""
    normalise = text_normaliser(name)
    return [" ".join(normalise(plain_transcript(text)).split()) for text in texts]


@cache
def text_normaliser(name: str) -> Callable[[str], str]:
    """A task's `normaliser`; Whisper's are imported late, because their package imports torch."""
    if name == "plain":
        return str
    from whisper.normalizers import BasicTextNormalizer, EnglishTextNormalizer

    return EnglishTextNormalizer() if name == "english" else BasicTextNormalizer(split_letters=name == "letters")
