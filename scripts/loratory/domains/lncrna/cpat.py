"""What CPAT looks at in a transcript: its longest reading frame's length, share, Fickett score and hexamers.

Source: CPAT, Wang et al. 2013, doi:10.1093/nar/gkt006. Unlike its program, hexamers are counted with one added to each
instead of ±1 where a class has none, in the longest frames of mRNAs instead of their annotated coding sequences, which
no model is shown; and Fickett's table has its threshold 0.19, which the program leaves out.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from loratory.domains.lncrna.frames import longest_frame

DIGITS = np.full(256, 4)
DIGITS[np.frombuffer(b"ACGT", np.uint8)] = range(4)
WORD, CODON = 6, 3  # nucleotides of a hexamer, and from one to the next
WORDS = 4**WORD

# TESTCODE, Fickett 1982, doi:10.1093/nar/10.17.5303: for A, C, G and T the probability that a sequence codes, given by
# how unevenly the nucleotide is spread over the three places of codons, and by its share; and what either is worth.
UNEVENNESS = (1.9, 1.8, 1.7, 1.6, 1.5, 1.4, 1.3, 1.2, 1.1, 0.0)  # the first that is reached says the column
SHARES = (0.33, 0.31, 0.29, 0.27, 0.25, 0.23, 0.21, 0.19, 0.17, 0.0)
BY_UNEVENNESS = np.array(
    [
        [0.94, 0.68, 0.84, 0.93, 0.58, 0.68, 0.45, 0.34, 0.20, 0.22],
        [0.80, 0.70, 0.70, 0.81, 0.66, 0.48, 0.51, 0.33, 0.30, 0.23],
        [0.90, 0.88, 0.74, 0.64, 0.53, 0.48, 0.27, 0.16, 0.08, 0.08],
        [0.97, 0.97, 0.91, 0.68, 0.69, 0.44, 0.54, 0.20, 0.09, 0.09],
    ]
)
BY_SHARE = np.array(
    [
        [0.28, 0.49, 0.44, 0.55, 0.62, 0.49, 0.67, 0.65, 0.81, 0.21],
        [0.82, 0.64, 0.51, 0.64, 0.59, 0.59, 0.43, 0.44, 0.39, 0.31],
        [0.40, 0.54, 0.47, 0.64, 0.64, 0.73, 0.41, 0.41, 0.33, 0.29],
        [0.28, 0.24, 0.39, 0.40, 0.55, 0.75, 0.56, 0.69, 0.51, 0.58],
    ]
)
UNEVENNESS_WEIGHTS, SHARE_WEIGHTS = np.array([0.26, 0.18, 0.31, 0.33]), np.array([0.11, 0.12, 0.15, 0.14])


def cpat_features(sequence: str, ratios: np.ndarray) -> np.ndarray:
    """(4,) of the longest reading frame: nucleotides, share of the transcript, Fickett score, hexamer score.

    A transcript without a frame has length and share 0; its scores are those of the whole transcript.

    Args:
        ratios: see `hexamer_ratios`.
    """
    start, length = longest_frame(sequence)
    read = sequence[start : start + length] or sequence
    return np.array([length, length / len(sequence), fickett_score(read), hexamer_score(read, ratios)])


def fickett_score(sequence: str) -> float:
    """Weighted sum of the eight probabilities of TESTCODE; the larger, the more like a coding sequence."""
    codes = nucleotide_codes(sequence)
    counts = np.stack([np.bincount(codes[place::CODON], minlength=5)[:4] for place in range(CODON)])
    unevenness = counts.max(axis=0) / (counts.min(axis=0) + 1)
    shares = counts.sum(axis=0) / max(1, len(codes))
    return float(
        table_entries(BY_UNEVENNESS, UNEVENNESS, unevenness) @ UNEVENNESS_WEIGHTS
        + table_entries(BY_SHARE, SHARES, shares) @ SHARE_WEIGHTS
    )


def table_entries(table: np.ndarray, thresholds: Sequence[float], values: np.ndarray) -> np.ndarray:
    """(4,) the entry of each row whose threshold is the first that its value reaches; the last is 0."""
    columns = np.argmax(values[:, None] >= np.array(thresholds), axis=1)
    return table[np.arange(len(values)), columns]


def hexamer_ratios(train: Iterable[dict]) -> np.ndarray:
    """(4096,) ln of how much more often each hexamer is read in mRNAs' longest frames than along lncRNAs, codon by
    codon; one is added to every count."""
    counts = np.ones((2, WORDS))
    for record in train:
        sequence, label = record["sequence"], record["label"]
        start, length = (0, len(sequence)) if label else longest_frame(sequence)
        counts[label] += np.bincount(frame_hexamers(sequence[start : start + length]), minlength=WORDS)
    coding, noncoding = np.log(counts / counts.sum(axis=1, keepdims=True))
    return coding - noncoding


def hexamer_score(sequence: str, ratios: np.ndarray) -> float:
    """Mean log ratio of a sequence's hexamers, nats; 0 where it has none."""
    words = frame_hexamers(sequence)
    return float(ratios[words].mean()) if len(words) else 0.0


def frame_hexamers(sequence: str) -> np.ndarray:
    """Numbers (0 to 4095) of the hexamers that start at every codon, without those that hold an N."""
    codes = nucleotide_codes(sequence)
    if len(codes) < WORD:
        return np.empty(0, int)
    windows = np.lib.stride_tricks.sliding_window_view(codes, WORD)[::CODON]
    return (windows @ 4 ** np.arange(WORD)[::-1])[(windows < 4).all(axis=1)]


def nucleotide_codes(sequence: str) -> np.ndarray:
    """0 to 3 for A, C, G and T; 4 for N."""
    return DIGITS[np.frombuffer(sequence.encode("ascii"), np.uint8)]
