"""Answers that a listener would not believe, by the text and the clip's length alone, whatever the reference.

They are counted, and scores say what emptying them would change; nothing is left out of any other score.
"""

import re
from collections.abc import Sequence

from loratory.data.texts import compression_ratio
from loratory.domains.speech.task import plain_transcript

MOST_EVEN = 2.4  # compression ratio, of openai-whisper's fallback
LOOP, LONGEST_LOOP = 4, 8  # times in a row that up to so many words are written
FASTEST = 8  # words a second
LETTERS = 2  # that count as a word of a script without blanks, such as Chinese: 16 a second are twice a fast speaker's
STOCK_PHRASES = re.compile(  # what Whisper has learnt to write where nobody speaks (Koenecke et al. 2024)
    r"\b(thanks?( you)? for watching|subtitles by|amara org|(like and|please) subscribe)\b"
)


def answer_flags(text: str, seconds: float, letters: Sequence[str] | None = None) -> dict[str, bool]:
    """What is wrong with an answer to a clip of so many seconds.

    Args:
        letters: those of the text, where errors are counted in letters; None: in words.

    Returns:
        `hallucination`: it compresses like no speech, or holds a phrase of subtitles; `repetition`: up to eight words
        (or sixteen letters) stand four times in a row; `speed`: more of them a second than anybody says.
    """
    words = plain_transcript(text).split()
    units, share = (words, 1) if letters is None else (letters, LETTERS)
    return {
        "hallucination": compression_ratio(text) > MOST_EVEN or bool(STOCK_PHRASES.search(" ".join(words))),
        "repetition": has_loop(units, LONGEST_LOOP * share),
        "speed": len(units) > FASTEST * share * seconds,
    }


def has_loop(units: Sequence[str], longest: int) -> bool:
    """Whether the same units, at most `longest` of them, stand LOOP times in a row."""
    for width in range(1, min(longest, len(units) // LOOP) + 1):
        same = 0  # places in a row where a unit is that of `width` places before
        for before, unit in zip(units, units[width:]):
            same = same + 1 if unit == before else 0
            if same == width * (LOOP - 1):
                return True
    return False
