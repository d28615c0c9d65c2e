"""An utterance as its corpus has it, before anything is checked: what every reader of a layout gives."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from loratory.errors import InputError

FACTS = ("age", "gender")
Stated = dict[str, dict[str, dict[str, str]]]  # {fact: {speaker: {what is said: where}}}


@dataclass(frozen=True)
class Word:
    """A word and where it is in the recording, seconds."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Utterance:
    """Texts as they stand in the corpus.

    Attributes:
        where: `file:record` of the utterance; places: the same of what stands elsewhere (`audio`, `text`, `speaker`,
            `times`).
        audio: the path as written, "" where there is none. text: None where nobody transcribed it.
        speaker, age, gender: "" where they are unknown.
        times: start and end in the recording, seconds, as written; an end of -1: as far as it goes.
        seconds: how long the corpus says that the whole recording is, as written; "" where it does not.
        words: with their times, where the corpus has them.
    """

    id: str
    where: str
    audio: str
    text: str | None
    speaker: str
    times: tuple[float | str, ...] = (0.0, -1.0)
    seconds: float | str = ""
    age: str = ""
    gender: str = ""
    words: tuple[Word, ...] = ()
    places: Mapping[str, str] = field(default_factory=dict)

    def place(self, what: str) -> str:
        return self.places.get(what, self.where)


def add_speaker_facts(stated: Stated, utterances: Iterable[Utterance]) -> Stated:
    """`stated`, with what utterances say of their speakers."""
    for utterance in utterances:
        for fact in FACTS:
            if value := getattr(utterance, fact):
                said = stated.setdefault(fact, {}).setdefault(utterance.speaker, {})
                said.setdefault(value, utterance.where)
    return stated


def duplicate_error(where: str, id: str) -> InputError:
    return InputError(where, "duplicate id", id, "unique ids", "rename or remove one", "duplicate_id")
