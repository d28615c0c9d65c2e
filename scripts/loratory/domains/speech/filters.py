"""Answers that a listener would not believe, by the text and the clip's length alone, whatever the reference.

They are counted, and scores say what emptying them would change; nothing is left out of any other score.
"""

import re

from loratory.data.texts import compression_ratio
from loratory.domains.speech.task import plain_transcript

MOST_EVEN = 2.4  # compression ratio, of openai-whisper's fallback
LOOP, LONGEST_LOOP = 4, 8  # times in a row that up to so many words are written
FASTEST = 8  # words a second
STOCK_PHRASES = re.compile(  # what Whisper has learnt to write where nobody speaks (Koenecke et al. 2024)
    r"\b(thanks?( you)? for watching|subtitles by|amara org|(like and|please) subscribe)\b"
)


def answer_flags(text: str, seconds: float) -> dict[str, bool]:
    """What is wrong with an answer to a clip of so many seconds.

    Returns:
        `hallucination`: it compresses like no speech, or holds a phrase of subtitles; `repetition`: up to eight words
        stand four times in a row; `speed`: more words a second than anybody says.
    """
    words = plain_transcript(text).split()
    return {
        "hallucination": compression_ratio(text) > MOST_EVEN or bool(STOCK_PHRASES.search(" ".join(words))),
        "repetition": has_loop(words),
        "speed": len(words) > FASTEST * seconds,
    }


def has_loop(words: list[str]) -> bool:
    """Whether the same words stand LOOP times in a row."""
    for width in range(1, min(LONGEST_LOOP, len(words) // LOOP) + 1):
        same = 0  # places in a row where a word is that of `width` places before
        for before, word in zip(words, words[width:]):
            same = same + 1 if word == before else 0
            if same == width * (LOOP - 1):
                return True
    return False
