"""Which words are got wrong, with the utterances that show it."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jiwer

from loratory.domains.speech.metrics import normalised_texts
from loratory.domains.speech.sources import Task

NOTHING = "***"  # stands in an alignment where the other side has a word
EXAMPLES = 3
Pair = tuple[str, str]  # a word of the reference and what was written for it; "" where there is none


def worst_words(rows: Sequence[Mapping], records: Sequence[Mapping], task: Task, count: int) -> list[dict[str, Any]]:
    """The words with the most errors of one system, both sides normalised as for `wer`.

    Args:
        rows: predictions, of one seed or of several. count: how many words.

    Returns:
        One dict for each example of a word, the worst word first: the `word` (as said, or as inserted), how often it
        was `said`, `substituted`, `deleted` and `inserted`, what it was `heard_as` most often; of the example its
        `id`, `audio`, `start`, `end`, `speaker` and `age`, and `reference` and `answer` with words one below another.
    """
    known = {record["id"]: record for record in records}
    texts = [normalised_texts(task.normaliser, [row[side] for row in rows]) for side in ("reference", "text")]
    pairs = [aligned_words(*each) if each[0] else [] for each in zip(*texts)]
    said = Counter(word for text in texts[0] for word in text.split())
    errors: dict[str, Counter[Pair]] = defaultdict(Counter)
    shown: dict[str, dict[str, int]] = defaultdict(dict)  # {word: {utterance: place of its row}}
    for place, (row, aligned) in enumerate(zip(rows, pairs)):
        for wanted, written in aligned:
            if wanted != written:
                errors[wanted or written][wanted, written] += 1
                shown[wanted or written].setdefault(row["id"], place)
    ranked = sorted(errors, key=lambda word: (-errors[word].total(), word))[:count]
    return [
        word_facts(word, said[word], errors[word])
        | {name: known[id][name] for name in ("id", "audio", "start", "end", "speaker", "age")}
        | dict(zip(("reference", "answer"), aligned_lines(pairs[place])))
        for word in ranked
        for id, place in sorted(shown[word].items())[:EXAMPLES]
    ]


def word_facts(word: str, said: int, errors: Counter[Pair]) -> dict[str, Any]:
    substituted = Counter({written: n for (wanted, written), n in errors.items() if wanted and written})
    return {
        "word": word,
        "said": said,
        "substituted": substituted.total(),
        "deleted": sum(n for (wanted, written), n in errors.items() if wanted and not written),
        "inserted": sum(n for (wanted, written), n in errors.items() if not wanted),
        "heard_as": min(substituted, key=lambda other: (-substituted[other], other), default=""),
    }


def aligned_words(reference: str, text: str) -> list[Pair]:
    """The words of both sides, as jiwer aligns them."""
    return list(iterate_pairs(jiwer.process_words(reference, text)))


def iterate_pairs(aligned: jiwer.WordOutput) -> Iterator[Pair]:
    wanted, written = aligned.references[0], aligned.hypotheses[0]
    for chunk in aligned.alignments[0]:
        said, heard = (
            wanted[chunk.ref_start_idx : chunk.ref_end_idx],
            written[chunk.hyp_start_idx : chunk.hyp_end_idx],
        )
        length = max(len(said), len(heard))
        yield from zip([*said, *[""] * (length - len(said))], [*heard, *[""] * (length - len(heard))])


def aligned_lines(pairs: Sequence[Pair]) -> tuple[str, str]:
    """Two lines of equal width, words that belong together one below the other."""
    widths = [max(len(word or NOTHING) for word in pair) for pair in pairs]
    lines = (" ".join(f"{word or NOTHING:{width}}" for word, width in zip(side, widths)) for side in zip(*pairs))
    return tuple(lines) if pairs else ("", "")  # type: ignore[return-value]
