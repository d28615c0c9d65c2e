"""Options of the speech domain. Imported while the config is read: nothing heavy."""

import re
from os.path import isfile, join
from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from loratory.data.files import read_lines
from loratory.domains.contract import DatasetOptions, Encoding, FilesOptions, SimulationOptions, TaskOptions
from loratory.domains.speech.markup import check_patterns
from loratory.errors import InputError

AUDIO, FOLDED = True, False
FAMILIES = {"causal": ("text",), "whisper": ("text",)}
TABLES = ("wav.scp", "text", "utt2spk")
SPEAKER_TABLES = ("spk2age", "spk2gender")
SEGMENTS = "segments"
BLANKS = re.compile("[ \t]+")


class Files(FilesOptions):
    """Kaldi data folders: wav.scp, text, utt2spk and, if there are, segments, spk2age and spk2gender."""

    LOCATIONS: ClassVar[tuple[str, ...]] = ("folders", "audio_root")

    folders: list[str] = Field(min_length=1, description="data folders, pooled: splits are made anew, by speaker")
    audio_root: str = Field("", description="folder that the paths of wav.scp start from")
    encoding: Encoding = Field("utf-8", description="text encoding of the tables")

    def file_paths(self) -> list[str]:
        """The tables; segments and speakers' tables where they are."""
        optional = [join(folder, table) for folder in self.folders for table in (SEGMENTS, *SPEAKER_TABLES)]
        tables = [join(folder, table) for folder in self.folders for table in TABLES]
        return tables + [path for path in optional if isfile(path)]

    def listed_files(self) -> list[str]:
        """The recordings that are there; of a table that cannot be read, those before its fault."""
        found: list[str] = []
        for folder in self.folders:
            try:
                rows = (split_row(line) for _, line in read_lines(join(folder, "wav.scp"), self.encoding))
                found += [path for _, entry in rows if isfile(path := join(self.audio_root, entry))]
            except InputError:
                continue  # the job that reads the table says it
        return found


def split_row(line: str) -> tuple[str, str]:
    """Key and value of a row of a Kaldi table: what stands before the first blanks, and the rest as it is."""
    key, *value = BLANKS.split(line.strip(" \t\r"), maxsplit=1)
    return key, value[0] if value else ""


class Simulation(SimulationOptions):
    """Voices of espeak-ng: adults for `general`, child-like for `domain`."""

    speakers: int = Field(60, ge=4, description="voices")
    utterances_per_speaker: int = Field(40, ge=1, description="sentences that each voice says")
    disfluency: float = Field(0.2, ge=0, le=1, description="share of child-like sentences with a slip of the tongue")


class Dataset(DatasetOptions):
    """Which utterances are kept; the group is the speaker."""

    min_age: int | None = Field(
        None, ge=1, description="youngest speaker, completed years; drops speakers of unknown age"
    )
    max_age: int | None = Field(
        None, ge=1, description="oldest speaker, completed years; drops speakers of unknown age"
    )
    min_seconds: float = Field(0.1, ge=0.1, description="shortest utterance")
    max_seconds: float = Field(30, gt=0, le=30, description="longest utterance; 30 s is what Whisper reads at once")
    untranscribed: Literal["error", "drop"] = Field("error", description="audio that has no transcript")
    held_out_sentences: Literal["any", "unseen"] = Field(
        "unseen", description="`unseen` drops utterances whose sentence is also read in a more protected split"
    )
    max_letters: int = Field(600, ge=1, description="longest transcript, letters and blanks: nobody says more in 30 s")
    tags: tuple[str, ...] = Field(
        (), description="markers removed, as `<NOISE>`, `[...]` or `&=...`; any that no list names is an error"
    )
    spoken: tuple[str, ...] = Field((), description="markers of which the words at `...` stay, as `(...)` or `&-...`")
    unintelligible: tuple[str, ...] = Field((), description="markers, as `xxx`, whose utterances are dropped")

    @field_validator("tags", "spoken", "unintelligible")
    @classmethod
    def check_markers(cls, markers: tuple[str, ...]) -> tuple[str, ...]:
        check_patterns(markers)
        return markers

    @model_validator(mode="after")
    def check_bounds(self) -> Self:
        if self.min_age is not None and self.max_age is not None and self.min_age > self.max_age:
            raise ValueError(f"min_age {self.min_age} is above max_age {self.max_age}")
        if self.min_seconds > self.max_seconds:
            raise ValueError(f"min_seconds {self.min_seconds} is above max_seconds {self.max_seconds}")
        return self


class Task(TaskOptions):
    """Transcription."""

    prompt: str = Field("Transcribe speech to text.\n", description="what a causal base reads after the audio")
    normaliser: Literal["english", "basic", "letters", "plain"] = Field(
        "english",
        description="Whisper normaliser before errors are counted: of English; of any language; of any language, with "
        "each letter a word; or `plain`, which removes case and punctuation alone",
    )
