"""Transcripts as questions to a model, and what length, reading frames and composition answer without one."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from loratory.domains.contract import Example, prediction_row
from loratory.domains.lncrna.cpat import cpat_features, hexamer_ratios, nucleotide_codes
from loratory.domains.lncrna.frames import frame_with_stop, longest_orf
from loratory.domains.lncrna.sources import Task
from loratory.domains.regression import logistic_regression

CHOICES = (" coding", " noncoding")
SUFFIX = {"causal": "\n", "encoder": ""}


def examples(records: list[dict], task: Task, family: str) -> list[Example]:
    """One Example for each window of each record; an `encoder` base reads the sequence alone."""
    prefix = task.prompt if family == "causal" else ""
    return [
        Example(
            id=record["id"],
            group=record["group"],
            prompt=prefix + LAYOUTS[task.layout](sequence[start : start + task.window]) + SUFFIX[family],
            target=CHOICES[record["label"]],
            choices=CHOICES,
        )
        for record in records
        for sequence in [READINGS[task.reads](record["sequence"])]
        for start in window_starts(len(sequence), task.window, task.stride, task.max_windows)
    ]


def kmer_text(sequence: str) -> str:
    """Non-overlapping 3-mers, lower case, separated by blanks; one or two letters left over at the end are kept.

    They are kept because a transcript's 3′ end would otherwise go unread.
    """
    letters = sequence.lower()
    return " ".join(letters[at : at + 3] for at in range(0, len(letters), 3))


LAYOUTS: dict[str, Callable[[str], str]] = {
    "3-mers": kmer_text,
    "letters": lambda sequence: " ".join(sequence.lower()),  # most tokenizers make one token of a blank and a letter
    "sequence": str.upper,
}


def window_starts(length: int, window: int, stride: int | None = None, limit: int | None = None) -> list[int]:
    """Where windows start (nucleotides from 0), so that every nucleotide is in one.

    The last window is aligned to the 3′ end. If more than `limit` would be needed, `limit` are spread evenly from
    the 5′ to the 3′ end (a single one lies at the 5′ end) and nucleotides between them go unread.
    """
    stride = stride or max(1, window // 2)
    last = max(0, length - window)
    count = 1 + -(-last // stride)
    if limit and count > limit:
        return [index * last // max(1, limit - 1) for index in range(limit)]
    return [min(index * stride, last) for index in range(count)]


def baselines(train: Sequence[dict], held_out: list[dict], task: Task) -> dict[str, list[dict]]:
    """Prediction rows of logistic regressions on what a language model has to beat; `p` is P(lncRNA)."""
    label = [record["label"] for record in train]
    rows = {}
    readers = FEATURES | {"cpat_features": partial(cpat_features, ratios=hexamer_ratios(train))}
    for system, features in readers.items():
        x_train, x_test = (np.array([features(record["sequence"]) for record in part]) for part in (train, held_out))
        probabilities = logistic_regression(x_train, label, x_test)
        answers = zip(held_out, probabilities.tolist())
        rows[system] = [prediction_row(record, CHOICES[record["label"]], p=p) for record, p in answers]
    return rows


def kmer_shares(sequence: str) -> np.ndarray:
    """(64,) shares of the overlapping 3-mers; those with an N count nowhere."""
    code = nucleotide_codes(sequence)
    first, second, third = code[:-2], code[1:-1], code[2:]
    known = (first < 4) & (second < 4) & (third < 4)
    counts = np.bincount((16 * first + 4 * second + third)[known], minlength=64)
    return counts / max(1, counts.sum())


def length_orf_kmers(sequence: str) -> np.ndarray:
    """(67,) log of the length and of the longest reading frame, the frame's share of the transcript, 3-mer shares."""
    length, orf = len(sequence), longest_orf(sequence)
    return np.array([np.log(length), np.log1p(orf), orf / length, *kmer_shares(sequence)])


FEATURES: dict[str, Callable[[str], np.ndarray]] = {
    "length_only": lambda sequence: np.log([len(sequence)]),
    "orf_only": lambda sequence: np.log1p([longest_orf(sequence)]),
    "kmer_frequency": kmer_shares,
    "length_orf_kmer": length_orf_kmers,
}

READINGS: dict[str, Callable[[str], str]] = {"transcript": str, "frame": frame_with_stop}
