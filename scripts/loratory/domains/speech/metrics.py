"""Word and character errors, pooled: Σ(S + D + I) / ΣN, never a mean of utterances and never clipped.

VERSION is raised when a metric changes its meaning: every file of metrics carries it, and tables print it above 1.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import jiwer
import numpy as np

from loratory.domains.contract import Columns, Metric
from loratory.domains.speech.sources import Task

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
POOLED = "errors of all utterances over words of all references, both normalised"


def error_ratio(columns: Columns, errors: tuple[str, ...], length: str) -> float:
    """Summed errors over summed length; NaN without any reference."""
    total = columns[length].sum()
    return float(sum(columns[name].sum() for name in errors) / total) if total else float("nan")


def error_rate_metric(name: str, errors: tuple[str, ...], length: str = "N", **more: Any) -> Metric:
    more = {"where": lambda columns: columns[length] > 0} | more
    return Metric(name, "ratio", "down", "text", lambda columns: error_ratio(columns, errors, length), **more)


def age_rate_metric(name: str, youngest: int, oldest: int) -> Metric:
    def is_of_age(columns: Columns) -> np.ndarray:
        return (youngest <= columns["age"]) & (columns["age"] <= oldest) & (columns["N"] > 0)

    return error_rate_metric(name, ("S", "D", "I"), where=is_of_age, note="wer of speakers of this age")


VERSION = 1
METRICS = (
    error_rate_metric("wer", ("S", "D", "I"), primary=True, note=POOLED),
    error_rate_metric("cer", ("char_errors",), "chars", note="as wer, over characters; blanks count"),
    error_rate_metric("substitutions", ("S",), note="share of wer"),
    error_rate_metric("deletions", ("D",), note="share of wer"),
    error_rate_metric("insertions", ("I",), note="share of wer"),
    error_rate_metric(
        "wer_verbatim",
        ("basic_errors",),
        "basic_words",
        note="as wer, but with Whisper's basic normaliser: fillers stay",
    ),
    Metric(
        "references_emptied",
        "utterances",
        "down",
        "text",
        lambda columns: float(columns["emptied"].sum()),
        note="nothing is left of the reference after normalisation: left out of wer and cer",
    ),
    *(age_rate_metric(name, *ages) for name, ages in AGE_BINS.items()),
)


def columns(rows: list[dict], records: list[dict], task: Task) -> dict[str, np.ndarray]:
    """Counts of each utterance, so that a resampled rate is a ratio of sums.

    Returns:
        (n,) integer arrays: S, D, I errors and N reference words; `char_errors` and `chars`; `basic_errors` and
        `basic_words` after the basic normaliser; `age` (-1 if unknown); `emptied`, 1 where the normalised reference is
        empty, and then S, D, I, N, `char_errors` and `chars` are 0 whatever the system wrote.
    """
    ages = {record["id"]: record["age"] for record in records}
    references, texts = ([row[name] for row in rows] for name in ("reference", "text"))
    words = normalised_texts(task.normaliser, references), normalised_texts(task.normaliser, texts)
    word_edits, length = (
        edit_counts(jiwer.process_words, *words),
        np.array([len(text.split()) for text in words[0]], int),
    )
    basic = normalised_texts("basic", references), normalised_texts("basic", texts)
    return {
        **dict(zip("SDI", word_edits.T)),
        "N": length,
        "char_errors": edit_counts(jiwer.process_characters, *words).sum(axis=1),
        "chars": np.array([len(text) for text in words[0]], int),
        "basic_errors": edit_counts(jiwer.process_words, *basic).sum(axis=1),
        "basic_words": np.array([len(text.split()) for text in basic[0]], int),
        "age": np.array([ages[row["id"]] for row in rows], int),
        "emptied": (length == 0).astype(int),
    }


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
    normalise = text_normaliser(name)
    return [" ".join(normalise(text).split()) for text in texts]


@cache
def text_normaliser(name: str) -> Callable[[str], str]:
    """Whisper's normaliser; imported late, because its package imports torch."""
    from whisper.normalizers import BasicTextNormalizer, EnglishTextNormalizer

    return EnglishTextNormalizer() if name == "english" else BasicTextNormalizer(split_letters=name == "letters")
