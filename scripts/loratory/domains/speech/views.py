"""Utterances that systems get wrong: their sound, and what was written below what was said."""

import base64
import io
from collections.abc import Sequence
from html import escape

from loratory.domains.speech.errors import Pair, aligned_words, worst_words
from loratory.domains.speech.metrics import normalised_texts
from loratory.domains.speech.sources import Task
from loratory.domains.speech.task import record_clip
from loratory.domains.views import Answers, View, card, small_table

WORST = 4  # utterances of each system
WORDS = 10  # words of the best system
LONGEST = 60  # pairs of words of an utterance
SOUND = 1_500_000  # bytes of sound that a view holds; in the page they take a third more
COUNTS = ("said", "substituted", "deleted", "inserted")
KINDS = {"S": "another word", "D": "not written", "I": "not said"}
NOTE = "What was said stands above what was written, both normalised."


def show_records(answers: Answers, task: Task) -> list[View]:
    """The worst words of the best system, and the utterances that show them, with the worst ones of every system."""
    aligned = {system: aligned_answers([*rows.values()], task) for system, rows in answers.learnt.items()}
    aligned = {system: pairs for system, pairs in aligned.items() if pairs}
    if answers.best not in aligned:
        return []
    rows = [row for row in answers.rows[answers.best].values() if row["id"] in aligned[answers.best]]
    words = worst_words(rows, answers.records, task, WORDS)
    shown = {row["id"] for row in words}.union(*map(worst_utterances, aligned.values()))
    records = [record for record in answers.records if record["id"] in shown]
    anchors = {record["id"]: f"utterance-{answers.base}-{number}" for number, record in enumerate(records, start=1)}
    players = audio_players(records)
    cards = [
        utterance_card(record, anchors[record["id"]], player, aligned) for record, player in zip(records, players)
    ]
    systems = escape(", ".join(aligned))
    note = f"<p>Those above, and the {WORST} with the most errors of each of: {systems}. {NOTE} {legend()}</p>\n"
    return [
        View(f"Words that {answers.best} gets wrong most", word_table(words, anchors)),
        View("Utterances with errors", note + "".join(cards)),
    ]


def aligned_answers(rows: Sequence[dict], task: Task) -> dict[str, list[Pair]]:
    """{id: the words said and written, side by side} of the utterances with words that have an answer."""
    rows = [row for row in rows if row["text"] is not None]
    texts = [normalised_texts(task.normaliser, [row[side] for row in rows]) for side in ("reference", "text")]
    return {row["id"]: aligned_words(*each) for row, *each in zip(rows, *texts) if each[0]}


def worst_utterances(aligned: dict[str, list[Pair]]) -> list[str]:
    wrong = {id: count_errors(pairs) for id, pairs in aligned.items()}
    return sorted((id for id in wrong if wrong[id]), key=lambda id: (-wrong[id], id))[:WORST]


def count_errors(pairs: Sequence[Pair]) -> int:
    return sum(said != written for said, written in pairs)


def word_table(words: Sequence[dict], anchors: dict[str, str]) -> str:
    """A line for each word, with links to the utterances that show it."""
    examples: dict[str, list[str]] = {}
    for row in words:
        link = f'<a href="#{escape(anchors[row["id"]], quote=True)}">{escape(row["id"])}</a>'
        examples.setdefault(row["word"], []).append(link)
    facts = {row["word"]: row for row in words}
    lines = [
        [escape(word), *(str(facts[word][name]) for name in COUNTS), escape(facts[word]["heard_as"]), ", ".join(links)]
        for word, links in examples.items()
    ]
    kinds = [f'<abbr title="{text}">{kind}</abbr>' for kind, text in KINDS.items()]
    return small_table(["word", "said", *kinds, "heard as", "utterances"], lines)


def utterance_card(record: dict, anchor: str, player: str, aligned: dict[str, dict[str, list[Pair]]]) -> str:
    age = f", {record['age']} years" if record["age"] >= 0 else ""
    facts = f"<p>speaker {escape(record['speaker'])}{age}, {record['seconds']:.1f} s {player}</p>\n"
    parts = [answer_part(system, pairs[record["id"]]) for system, pairs in aligned.items() if record["id"] in pairs]
    return card(record["id"], facts, *parts, anchor=anchor)


def answer_part(system: str, pairs: Sequence[Pair]) -> str:
    """One system's words below those that were said."""
    said, wrong = sum(bool(word) for word, _ in pairs), count_errors(pairs)
    words = "\n".join(pair_part(*pair) for pair in pairs[:LONGEST])
    words += f"\n… {len(pairs) - LONGEST} more" if len(pairs) > LONGEST else ""
    return f'<p>{escape(system)}: errors {wrong}, words {said}</p>\n<div class="aligned">{words}</div>\n'


def pair_part(said: str, written: str) -> str:
    kind = "" if said == written else "S" if said and written else "D" if said else "I"
    mark = f' class="{kind}" title="{KINDS[kind]}"' if kind else ""
    return f"<span{mark}>{escape(said) or '–'}<br>{escape(written) or '–'}<small>{kind}</small></span>"


def legend() -> str:
    signs = " ".join(f'<span class="{kind}">{kind}: {text}</span>' for kind, text in KINDS.items())
    return f'<span class="aligned">{signs}</span>'


def audio_players(records: Sequence[dict]) -> list[str]:
    """A player for each record, as long as SOUND lasts."""
    players, room = [], SOUND
    for record in records:
        sound = flac_bytes(record)
        if len(sound) > room:
            players.append(f"(no sound: a page holds {SOUND / 1e6:g} MB of it)")
            continue
        room -= len(sound)
        url = f"data:audio/flac;base64,{base64.b64encode(sound).decode()}"
        players.append(f'<audio controls preload="metadata" src="{url}"></audio>')
    return players


def flac_bytes(record: dict) -> bytes:
    """The clip at 16 kHz. FLAC, as Ogg files differ each time that they are written.

    Raises:
        InputError: as `read_clip`.
    """
    import soundfile

    from loratory.data.audio import RATE, read_clip

    out = io.BytesIO()
    soundfile.write(out, read_clip(record_clip(record)), RATE, format="FLAC", subtype="PCM_16")
    return out.getvalue()
