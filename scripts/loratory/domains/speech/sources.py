"""Options of the speech domain. Imported while the config is read: nothing heavy."""

from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from loratory.domains.contract import DatasetOptions, Encoding, FilesOptions, SimulationOptions, TaskOptions

AUDIO, FOLDED = True, False
FAMILIES = {"causal": ("text",), "whisper": ("text",)}
TABLES = ("wav.scp", "text", "utt2spk")
SPEAKER_TABLES = ("spk2age", "spk2gender")


class Files(FilesOptions):
    """Kaldi data folders: wav.scp, text, utt2spk and, if known, spk2age and spk2gender."""

    LOCATIONS: ClassVar[tuple[str, ...]] = ("folders", "audio_root")

    folders: list[str] = Field(min_length=1, description="data folders, pooled: splits are made anew, by speaker")
    audio_root: str = Field("", description="folder that the paths of wav.scp start from")
    encoding: Encoding = Field("utf-8", description="text encoding of the tables")

    def file_paths(self) -> list[str]:
        """The tables; speakers' tables where they are."""
        known = [str(Path(folder, table)) for folder in self.folders for table in SPEAKER_TABLES]
        tables = [str(Path(folder, table)) for folder in self.folders for table in TABLES]
        return tables + [path for path in known if Path(path).is_file()]


class Simulation(SimulationOptions):
    """Voices of espeak-ng: adults for `general`, child-like for `domain`."""

    speakers: int = Field(60, ge=4, description="voices")
    utterances_per_speaker: int = Field(40, ge=1, description="sentences that each voice says")
    disfluency: float = Field(0.2, ge=0, le=1, description="share of child-like sentences with a slip of the tongue")


class Dataset(DatasetOptions):
    """Which utterances are kept; the group is the speaker."""

    min_age: int | None = Field(None, ge=1, description="youngest speaker in years; drops speakers of unknown age")
    max_age: int | None = Field(None, ge=1, description="oldest speaker in years; drops speakers of unknown age")
    min_seconds: float = Field(0.1, ge=0.1, description="shortest utterance")
    max_seconds: float = Field(30, gt=0, le=30, description="longest utterance; 30 s is what Whisper reads at once")
    untranscribed: Literal["error", "drop"] = Field("error", description="audio that has no transcript")
    held_out_sentences: Literal["any", "unseen"] = Field(
        "any", description="`unseen` drops utterances whose sentence is also read in a more protected split"
    )
    tags: tuple[str, ...] = Field((), description="markers removed from transcripts, as <NOISE>; others are errors")

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
    normaliser: Literal["english", "basic", "letters"] = Field(
        "english", description="Whisper normaliser before errors are counted; `letters` makes each letter a word"
    )
