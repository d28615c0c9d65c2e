"""Utterances longer than a model reads, cut where their speakers pause."""

from collections.abc import Iterable, Sequence
from itertools import pairwise

from loratory.domains.speech.task import plain_transcript
from loratory.domains.speech.utterances import Word
from loratory.errors import InputError

PAUSE = 0.2  # seconds without a word in which nothing that is said can be cut in two
MARGIN = 0.5  # seconds of a pause that are kept on either side


def cut_record(record: dict, words: Sequence[Word], where: str, end: float, longest: float) -> list[dict]:
    """The record, or as many as it takes for each to be no longer than `longest` seconds, without silence at its ends.

    It stays whole where nobody pauses, or where the words with times are not those of the transcript: it is then
    dropped by its length, and listed.

    Args:
        words: of the recording, with their times. end: of the record in the recording, seconds.

    Raises:
        InputError: the words' times run backwards.
    """
    start = record["start"]
    own = [word for word in words if start <= (word.start + word.end) / 2 <= end and joined_letters([word.text])]
    if end - start <= longest or joined_letters(word.text for word in own) != joined_letters([record["text"]]):
        return [record]
    check_times(where, own)
    pieces = cut_at_pauses(own, longest)
    if len(pieces) == 1 and spoken_seconds(pieces[0]) > longest:
        return [record]
    blank, found = " " if " " in record["text"] else "", []
    for number, (piece, before, after) in enumerate(zip(pieces, [None, *pieces], [*pieces[1:], None]), 1):
        first = max(start, piece[0].start - margin_between(before, piece))
        last = min(end, piece[-1].end + margin_between(piece, after))
        text = blank.join(word.text for word in piece)
        found.append(record | {"id": f"{record['id']}.part{number}", "start": first, "end": last, "text": text})
    return found if len(found) > 1 else [found[0] | {"id": record["id"]}]


def spoken_seconds(words: Sequence[Word]) -> float:
    """How long a piece with these words is at most."""
    return words[-1].end - words[0].start + 2 * MARGIN


def margin_between(piece: Sequence[Word] | None, following: Sequence[Word] | None) -> float:
    """Seconds of the pause between two pieces that each of them keeps; None: what is beyond all words."""
    return MARGIN if piece is None or following is None else min(MARGIN, (following[0].start - piece[-1].end) / 2)


def cut_at_pauses(words: Sequence[Word], longest: float) -> list[Sequence[Word]]:
    """Pieces that are no longer than so many seconds with their margins, cut at the widest pauses first; a piece in
    which nobody pauses stays longer."""
    pauses = [after.start - before.end for before, after in pairwise(words)]
    if spoken_seconds(words) <= longest or max(pauses, default=0) < PAUSE:
        return [words]
    place = pauses.index(max(pauses)) + 1
    return [*cut_at_pauses(words[:place], longest), *cut_at_pauses(words[place:], longest)]


def joined_letters(texts: Iterable[str]) -> str:
    """What is compared of transcript and timed words: letters without blanks."""
    return "".join(plain_transcript(" ".join(texts)).split())


def check_times(where: str, words: Sequence[Word]) -> None:
    """Raises:
    InputError: a word ends before it begins, or begins before the one before it.
    """
    times = [time for word in words for time in (word.start, word.end)]
    starts = pairwise(word.start for word in words)
    if not all(0 <= time < float("inf") for time in times) or any(later < earlier for earlier, later in starts):
        what, expected = "times of words run backwards", "each word after the one before it"
        raise InputError(where, what, expected=expected, fix="align it again", reason="word_times")
    for word in words:
        if word.end < word.start:
            given, expected = f"{word.text} {word.start:g} to {word.end:g} s", "a start before its end"
            raise InputError(where, "times of a word", given, expected, "align it again", "word_times")
