"""What transcribers write beside the words: noises, pauses, corrections, which each corpus marks in its own way.

Nothing of it may be learnt as if it had been said, so whatever looks like a mark is refused until the config lists it.
"""

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

WILDCARD = "..."
DEGREE = "°"
MARKS = re.compile(
    r"\S*[()\[\]{}<>【】〔〕⟨⟩*@|~^\\♪♫]\S*"  # (laughs), [noise], {cough}, <unk>, *house, baby@b
    r"|(?<!\S)[&+/](?!\d)\S+"  # &um, +um+, +..., /HH IH S/
    r"|\S+/(?!\S)"
    r"|(?<!\S)#+(?!\S)"  # a pause
    r"|(?<!\S)[%=$#!][^\W\d]\S*"  # %hesitation, =laughs=, $noise, #um, !SIL
    r"|(?<!\S)(?:_\S*_|-+[^\W\d]\S*-)(?!\S)"  # _laugh_, -noise-
    r"|\S*[^\W\d]:[^\W\d]\S*"  # CHAT: a sound that is drawn out
    r"|\S*[\u2190-\u21ff]\S*"  # arrows of pitch
    r"|\S*[\u200b\ufeff\ufffd]\S*"  # a blank without width, a byte-order mark, what could not be decoded
    r"|(?<!\S)0[A-Za-z]\S*"  # CHAT: a word that was left out
    r"|(?<!\w)(?:SIL|SPN|NSN|UNK|sil|spn|nsn|unk|xxx|yyy|XXX|YYY)(?!\w)"
    r"|(?<!\S)www(?!\S)"
)


def remove_marks(text: str, patterns: tuple[str, ...]) -> str:
    """`text` with a blank in place of each mark."""
    return mark_pattern(patterns).sub(" ", text) if patterns else text


def unwrap_marks(text: str, patterns: tuple[str, ...]) -> str:
    """`text` with what stands at `...` in place of each mark."""
    if not patterns:
        return text
    return mark_pattern(patterns).sub(lambda found: "".join(filter(None, found.groups())), text)


def find_mark(text: str, patterns: tuple[str, ...]) -> str | None:
    """The first mark of these patterns in `text`."""
    found = mark_pattern(patterns).search(text) if patterns else None
    return found[0] if found else None


def find_unknown_mark(text: str) -> str | None:
    """The first word of a transcript that is no word, or has a mark in it."""
    plain = unicodedata.normalize("NFKC", text)  # brackets of any width
    found = MARKS.search(plain)
    strange = (letter if letter.isprintable() else f"U+{ord(letter):04X}" for letter in plain if is_strange(letter))
    return found[0] if found else next(strange, None)


def is_strange(letter: str) -> bool:
    """Whether it is a picture, or what a damaged or wrongly decoded text holds; nobody says it."""
    kind = unicodedata.category(letter)
    return (kind == "So" and letter != DEGREE) or (kind in ("Cc", "Cn", "Co") and not letter.isspace())


@lru_cache(maxsize=64)
def mark_pattern(patterns: tuple[str, ...]) -> re.Pattern[str]:
    """One expression for marks as the config writes them.

    `...` stands for whatever is between its neighbours, or for the rest of a word at a pattern's end; a pattern that
    begins or ends in a letter is a whole word there. The longest pattern is looked for first.
    """
    return re.compile("|".join(map(mark_expression, sorted(patterns, key=len, reverse=True))))


def mark_expression(pattern: str) -> str:
    before, wildcard, after = pattern.partition(WILDCARD)
    begins = r"(?<!\w)" if pattern[0].isalnum() else ""
    if not wildcard:
        return begins + re.escape(pattern) + (r"(?!\w)" if pattern[-1].isalnum() else "")
    inside = f"([^{''.join(map(re.escape, dict.fromkeys(before[-1:] + after[0])))}]*)" if after else r"(\S+)"
    return begins + re.escape(before) + inside + re.escape(after)


def check_patterns(patterns: Iterable[str]) -> None:
    """Raises:
    ValueError: a pattern is empty, nothing but `...`, or holds it twice.
    """
    for pattern in patterns:
        if not pattern.strip() or pattern.startswith(WILDCARD) or pattern.count(WILDCARD) > 1:
            expected = "a marker such as <NOISE>, [...] or &..., with `...` once at most and not at its beginning"
            raise ValueError(f"`{pattern}` is no marker; expected {expected}")
