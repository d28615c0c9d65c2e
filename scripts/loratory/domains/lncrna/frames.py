"""Open reading frames of a transcript's sense strand."""

from collections.abc import Iterator

import numpy as np


def longest_orf(sequence: str) -> int:
    """Nucleotides of the longest open reading frame, its stop codon not counted."""
    return longest_frame(sequence)[1]


def frame_with_stop(sequence: str) -> str:
    """The longest open reading frame with the codon that stops it, if it is not open-ended; "" if there is none."""
    start, length = longest_frame(sequence)
    stop = sequence[start + length : start + length + 3]
    return sequence[start : start + length] + (stop if length and len(stop) == 3 else "")


def longest_frame(sequence: str) -> tuple[int, int]:
    """Where the longest open reading frame of the sense strand starts, and its nucleotides without the stop codon.

    (0, 0) where no codon starts one.
    """
    return max(open_frames(sequence), key=lambda found: found[1], default=(0, 0))


def open_frames(sequence: str) -> Iterator[tuple[int, int]]:
    """Where each open reading frame of the sense strand starts, and its nucleotides without the stop codon.

    It starts with ATG and runs to a stop codon or, open-ended, to the last whole codon. Transcripts are stranded:
    frames of the reverse complement would only blur the feature.
    """
    marks = codon_marks(sequence)
    for at in range(3):
        for stretch in marks[at::3].split(b"*"):
            start = stretch.find(b"M")
            if start >= 0:
                yield at + 3 * start, 3 * (len(stretch) - start)
            at += 3 * (len(stretch) + 1)


def codon_marks(sequence: str) -> bytes:
    """One byte for the codon at each position: `M` starts, `*` stops, `.` is any other."""
    letters = np.frombuffer(sequence.encode("ascii"), np.uint8)
    first, second, third = letters[:-2], letters[1:-1], letters[2:]
    a, g, t = b"AGT"
    stops = (first == t) & (((second == a) & ((third == a) | (third == g))) | ((second == g) & (third == a)))
    starts = (first == a) & (second == t) & (third == g)
    return np.select([stops, starts], [np.uint8(b"*"[0]), np.uint8(b"M"[0])], np.uint8(b"."[0])).tobytes()
