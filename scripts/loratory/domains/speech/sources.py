"""Options of the speech domain. Imported while the config is read: nothing heavy."""

import re
from collections.abc import Iterator, Mapping
from os import walk
from os.path import isfile, join
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from loratory.data.files import read_lines
from loratory.data.json_lines import read_objects
from loratory.domains.contract import (
    DatasetOptions,
    Encoding,
    FilesOptions,
    Locations,
    Options,
    SimulationOptions,
    TaskOptions,
    Text,
)
from loratory.domains.speech.markup import WILDCARD, check_patterns
from loratory.errors import InputError

AUDIO, FOLDED = True, False
FAMILIES = {"whisper": ("text",), "causal": ("text",)}
TABLES = ("wav.scp", "text", "utt2spk")
SPEAKER_TABLES = {"spk2age": "age", "spk2gender": "gender"}
SEGMENTS, WORD_TIMES = "segments", "ctm"
CORPORA = ("librispeech", "cslu_kids", "cmu_kids", "myst")  # fields of Files that name folders as they are published
UNSPACED = ("zh", "yue", "ja", "th", "lo", "my", "km", "bo")  # languages written without blanks between words
BLANKS = re.compile("[ \t]+")


class Columns(Options):
    """The columns of tables of utterances. Those from `start` on may be absent where they keep their names."""

    id: Text = Field("id", description="of an utterance")
    audio: Text = Field("audio", description="path of its recording")
    text: Text = Field("text", description="what is said; an empty cell: nobody transcribed it")
    speaker: Text = Field("speaker", description="who says it")
    start: Text = Field("start", description="where it begins in the recording, seconds")
    end: Text = Field("end", description="where it ends in the recording, seconds")
    duration: Text = Field("duration", description="seconds from `start` on; without a start, of the recording")
    age: Text = Field("age", description="of the speaker")
    gender: Text = Field("gender", description="of the speaker")

    def optional(self) -> tuple[str, ...]:
        """Those that a table may lack."""
        return tuple(key for key in ("start", "end", "duration", "age", "gender") if getattr(self, key) == key)


class Files(FilesOptions):
    """Corpora of speech, of any of these layouts, pooled: splits are made anew, by speaker."""

    LOCATIONS: ClassVar[tuple[str, ...]] = ("folders", *CORPORA, "manifests", "tables", "audio_root")
    PATTERNS: ClassVar[tuple[str, ...]] = ("manifests", "tables")

    folders: Locations = Field(
        [], description="Kaldi data folders: wav.scp, text, utt2spk; segments, spk2age, spk2gender, ctm if there are"
    )
    librispeech: Locations = Field([], description="folders as LibriSpeech is published (read by lhotse)")
    cslu_kids: Locations = Field([], description="folders of CSLU (OGI) Kids, LDC2007S18 (read by lhotse)")
    cmu_kids: Locations = Field([], description="folders of CMU Kids, LDC97S63")
    myst: Locations = Field([], description="folders of MyST, LDC2021S05")
    manifests: Locations = Field(
        [], description="lhotse's recordings, supervisions and cuts, `.jsonl` or `.jsonl.gz` (read by lhotse)"
    )
    tables: Locations = Field([], description="tables of utterances: CSV, TSV, parquet, or JSON objects on lines")
    columns: Columns = Field(Columns(), description="what is where in `tables`")
    transcript: Text = Field("text", description="of `manifests`: `text`, or the custom field with what was said")
    audio_root: str = Field("", description="folder that paths in Kaldi folders, manifests and tables start from")
    encoding: Encoding = Field("utf-8", description="text encoding of tables and transcripts")

    @model_validator(mode="after")
    def check_content(self) -> Self:
        if not any(getattr(self, name) for name in self.LOCATIONS if name != "audio_root"):
            raise ValueError(f"no corpus is named, expected one of {', '.join(self.LOCATIONS[:-1])}")
        return self

    def file_paths(self) -> list[str]:
        """The tables and manifests; in a Kaldi folder, optional tables where they are."""
        optional = [
            join(folder, table) for folder in self.folders for table in (SEGMENTS, WORD_TIMES, *SPEAKER_TABLES)
        ]
        tables = [join(folder, table) for folder in self.folders for table in TABLES]
        given = self.expand_patterns()
        return [*tables, *filter(isfile, optional), *given.manifests, *given.tables]

    def listed_files(self) -> list[str]:
        """The recordings that are there, and all files of published folders; of a table that cannot be read, those
        before its fault."""
        found: list[str] = []
        for listed in self.listed_paths():
            try:
                found += [path for entry in listed if isfile(path := join(self.audio_root, entry))]
            except InputError:
                continue  # the job that reads the table says it
        folders = [folder for name in CORPORA for folder in getattr(self, name)]
        return found + [path for folder in folders for path in folder_files(folder)]

    def listed_paths(self) -> Iterator[Iterator[str]]:
        """The paths that each table and each manifest names, as written."""
        given = self.expand_patterns()
        for folder in self.folders:
            lines = read_lines(join(folder, "wav.scp"), self.encoding)
            yield (split_row(line)[1] for _, line in lines)
        for path in given.manifests:
            yield (entry for _, item in read_objects(path) for entry in audio_entries(item))
        for path in given.tables:
            from loratory.data.ledger import Ledger
            from loratory.data.tables import read_table  # imports pyarrow

            rows = read_table(path, {"audio": self.columns.audio}, Ledger("skip"), self.encoding)
            yield (row["audio"] for _, row in rows)


def folder_files(folder: str) -> list[str]:
    """All files in a folder and below it."""
    return sorted(join(place, name) for place, _, names in walk(folder) for name in names)


def audio_entries(item: Mapping[str, Any]) -> list[str]:
    """The audio files that an object of a lhotse manifest names: of a recording, or of a cut with its own."""
    recording = item.get("recording", item)
    sources = recording.get("sources") if isinstance(recording, dict) else None
    entries = [source.get("source") for source in sources or () if isinstance(source, dict)]
    return [entry for entry in entries if isinstance(entry, str)]


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
    max_seconds: float = Field(
        30,
        gt=0,
        le=7200,
        description="longest utterance; 30 s is what Whisper reads at once and learns from",
    )
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

    @field_validator("spoken")
    @classmethod
    def check_words(cls, markers: tuple[str, ...]) -> tuple[str, ...]:
        if wordless := next((marker for marker in markers if WILDCARD not in marker), None):
            raise ValueError(f"`{wordless}` says of no words that they stay; expected `...` in it, or it under `tags`")
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

    def base_conflict(self, base: Any) -> str | None:
        language = base.whisper.language if base.whisper else "en"
        if self.normaliser == "english" and language != "en":
            other = "letters" if language in UNSPACED else "basic"
            return f"the base writes `{language}`, and `task.normaliser: english` is of English; expected `{other}`"
        return None
