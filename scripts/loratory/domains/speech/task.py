"""Transcription as a question: the audio, a line that says what is wanted, and the words as the answer."""

import re
import unicodedata
from collections.abc import Sequence

from loratory.data.clips import Clip
from loratory.data.splits import hash_position
from loratory.domains.contract import Example, prediction_row
from loratory.domains.speech.sources import Task

BRACKETED = re.compile(r"<[^<>]*>|\([^()]*\)|\[[^\[\]]*\]|\{[^{}]*\}")
APOSTROPHES = str.maketrans(dict.fromkeys("’‘ʼ´`", "'"))  # as they are typed; NFKC would part words at some
# signs that only set type: a soft hyphen, changes of direction, joiners of lines; what a script spells with stays
INVISIBLE = re.compile("[\u00ad\u061c\u180e\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]")
BRACKETS = str.maketrans(dict.fromkeys("<>()[]{}", " "))


def examples(records: list[dict], task: Task, family: str) -> list[Example]:
    """One Example a record. A `whisper` base has its own prompt tokens, so its text prompt is empty."""
    prompt = task.prompt if family == "causal" else ""
    return [Example(r["id"], r["group"], prompt, plain_transcript(r["text"]), audio=record_clip(r)) for r in records]


def record_clip(record: dict) -> Clip:
    end = None if record["end"] < 0 else record["end"]
    return Clip(record["audio"], record["audio_sha256"], record["seconds"], record["start"], end)


def plain_transcript(text: str) -> str:
    """NFKC, lower case, one blank between words; punctuation only inside a word (it's, 3.5, 20%).

    What stands in brackets was not said: readers refuse it or take it away, but a model may write it.
    """
    text = unicodedata.normalize("NFKC", INVISIBLE.sub("", text).translate(APOSTROPHES)).lower()
    text = BRACKETED.sub(" ", text).translate(BRACKETS)
    letters = zip(f" {text}", text, f"{text[1:]} ")
    kept = "".join(mark if belongs_in_word(before, mark, after) else " " for before, mark, after in letters)
    return " ".join(kept.split())


def belongs_in_word(before: str, letter: str, after: str) -> bool:
    if not unicodedata.category(letter).startswith("P"):
        return True
    if letter == "'":
        return before.isalnum() and after.isalnum()
    if letter in ".,:":
        return before.isdigit() and after.isdigit()
    return letter == "%" and before.isdigit()


def baselines(train: Sequence[dict], held_out: list[dict], task: Task) -> dict[str, list[dict]]:
    """`silent` writes nothing. `deaf` answers with some transcript of train: the error rate of knowing the language
    without listening."""
    texts = [plain_transcript(record["text"]) for record in sorted(train, key=lambda record: record["id"])]
    guesses = [texts[int(hash_position(record["id"], 0) * len(texts))] for record in held_out]
    return {"deaf": text_predictions(held_out, guesses), "silent": text_predictions(held_out, [""] * len(held_out))}


def text_predictions(records: list[dict], texts: list[str]) -> list[dict]:
    """Prediction rows."""
    return [
        prediction_row(record, plain_transcript(record["text"]), text=text) for record, text in zip(records, texts)
    ]
