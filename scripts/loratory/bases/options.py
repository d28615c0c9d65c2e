"""The config's sections on bases. Imported while the config is read: nothing heavy."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from loratory import registry
from loratory.domains.contract import Options
from loratory.errors import short_value
from loratory.fields import DomainName, DomainNames, Name
from loratory.training.schedule import Training

COMMIT = re.compile("[0-9a-f]{40}")
REPOSITORY = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*", re.ASCII)  # a few old ones have no owner
CHECKPOINTS = {"masked": "fair-esm's ESM-2", "whisper": "openai-whisper's"}  # families: whose `.pt` files are read
PACKED = ("int8", "nf4")  # precisions in which linear layers hold no numbers of torch's
if TYPE_CHECKING:
    Family = str
else:
    Family = Literal[*registry.claimed_names("family")]


class WhisperOptions(Options):
    """How a Whisper base is asked; the first three as in openai-whisper's decoding."""

    language: str = Field("en", description="language spoken, as `en`; English-only checkpoints know no other")
    task: Literal["transcribe", "translate"] = Field("transcribe", description="write what is said, or it in English")
    suppress: bool | tuple[Annotated[int, Field(ge=0)], ...] = Field(
        False,
        description="true: no symbols that nobody speaks, no blank or end at first; or ids that are never written",
    )
    window: Literal["full", "clip"] = Field(
        "full", description="what the encoder reads: 30 s whatever the clip, or as much as the batch's longest clip"
    )
    silence: float = Field(0, ge=0, le=30, description="seconds of silence that a `clip` window has after the clip")

    @model_validator(mode="after")
    def check_silence(self) -> Self:
        if self.silence and self.window == "full":
            raise ValueError("`silence` needs `window: clip`: a full window ends in silence anyway")
        return self


class Decoding(Options):
    """How a base of family whisper writes transcripts; thresholds and fallback as in openai-whisper's `transcribe`."""

    beams: int = Field(1, ge=1, le=20, description="candidates that are kept of each transcript; 1: greedy")
    temperatures: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (), description="fallback: sampled at these, in turn, while a threshold fails (0.2, 0.4, … 1.0); none: never"
    )
    compression_ratio: float | None = Field(
        2.4, gt=0, description="a transcript that compresses better repeats itself: fall back; none: not looked at"
    )
    log_prob: float | None = Field(
        -1.0, le=0, description="a transcript with a lower mean log-probability is a guess: fall back; none: likewise"
    )
    no_speech: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="flags a transcript where silence is likelier than this (0.6) and `log_prob` fails; none: nothing",
    )
    long_form: Literal["refuse", "chunks"] = Field(
        "refuse", description="of a recording longer than the window: `chunks` writes window after window"
    )

    @property
    def is_greedy(self) -> bool:
        return self == Decoding()


class Pretrain(Options):
    """Train a small base of the family from nothing, on the general data."""

    domains: DomainNames = Field(min_length=1, description="which corpora of `general` it reads")
    architecture: dict[str, Any] = Field(description="fields of the Hugging Face config of the family")
    vocabulary: int = Field(1024, ge=64, description="tokens of the tokenizer that is trained first")
    training: Training = Field(Training(), description="of all its weights")
    seed: int = Field(0, ge=0, description="of its initial weights and of its batches")
    dtype: Literal["float32", "float16"] = Field("float32", description="of the stored weights; trained in float32")


class Audio(Options):
    """Audio prefix of a causal base: frozen Whisper encoder, stacked frames, trained projector."""

    encoder: Name = Field(description="a base of family whisper")
    stack: int = Field(5, ge=1, description="encoder frames that make one prefix embedding")
    hidden: int = Field(256, ge=1, description="width of the projector's hidden layer")
    corpus: DomainName | None = Field(
        None, description="corpus of `general` that a given base's projector learns from"
    )
    training: Training = Field(Training(), description="of the projector of a given base, which itself stays frozen")


class Continued(Options):
    """Another base of the study that learns on, on general data, by an adapter that is added to its weights."""

    base: Name = Field(description="the base that it begins as, of the same family")
    corpus: DomainName = Field(description="which corpus of `general` it reads")
    adapter: Name = Field(description="of `adapters`; of its learning rates, the best on the corpus's valid records")
    seed: int = Field(0, ge=0, description="of the training")


class BaseEntry(Options):
    """A frozen base, from exactly one of `path`, `hub`, `pretrain` and `continued`."""

    family: Family = Field(description="how it reads and what it can be asked")
    path: str | None = Field(
        None,
        min_length=1,
        description="folder with safetensors, config and tokenizer; or a `.pt` of openai-whisper or fair-esm",
    )
    hub: str | None = Field(None, description="Hugging Face hub id, with `revision`; see also `bases_root`")
    revision: str | None = Field(None, description="commit of the hub repository, 40 hexadecimal digits")
    pretrain: Pretrain | None = Field(None, description="train it in the workflow")
    continued: Continued | None = Field(None, description="train another base on, in the workflow")
    precision: Literal["fp32", "bf16", "int8", "nf4"] = Field(
        "fp32", description="in which its frozen weights are held in memory; int8 and nf4: on a GPU with CUDA alone"
    )
    audio: Audio | None = Field(None, description="audio prefix of a causal base")
    whisper: WhisperOptions | None = Field(None, description="how a base of family whisper is asked")
    parameters: int | None = Field(
        None, ge=1, description="numbers in its weights, for a forecast before it is on disk"
    )
    licence: str | None = Field(None, description="licence of the weights")
    note: str = Field("", description="one line for the tables: what this base is and is not")

    @model_validator(mode="after")
    def one_origin(self) -> Self:
        origins = ("path", "hub", "pretrain", "continued")
        given = [origin for origin in origins if getattr(self, origin) is not None]
        if len(given) != 1:
            expected = "one of `path`, `hub`, `pretrain` and `continued`"
            raise ValueError(f"given: {', '.join(given) or 'none'}; expected {expected}")
        if self.continued and (self.family not in ("causal", "masked") or self.audio):
            raise ValueError("`continued` is for bases of family causal or masked without `audio`")
        if self.pretrain and self.family not in registry.registered_names("pretraining"):
            raise ValueError(f"a base of family {self.family} cannot be pretrained here; give `path` or `hub`")
        if self.hub is not None and not REPOSITORY.fullmatch(self.hub):
            raise ValueError(f"`hub` is no repository ({short_value(self.hub)}); expected `owner/name`")
        if self.revision and not self.hub:
            raise ValueError("`revision` is for a base with `hub`; leave it out")
        if self.hub and not self.revision:
            raise ValueError("`hub` needs `revision` (a commit): a moving branch cannot be reproduced")
        if self.revision and not COMMIT.fullmatch(self.revision):
            raise ValueError(
                f"`revision` is no whole commit ({short_value(self.revision)}); expected 40 hexadecimal digits"
            )
        if self.precision != "fp32" and self.family == "folding":
            raise ValueError("a folding base has its own precision; leave `precision` out")
        if self.precision in PACKED and self.family != "causal":
            raise ValueError(f"only a base of family causal is held in {self.precision}; expected fp32 or bf16")
        if self.audio and self.family != "causal":
            raise ValueError("only a causal base takes `audio`")
        if self.whisper and self.family != "whisper":
            raise ValueError("only a base of family whisper takes `whisper`")
        if self.path and self.path.endswith(".pt") and self.family not in CHECKPOINTS:
            known = ", ".join(f"{family} ({of})" for family, of in CHECKPOINTS.items())
            raise ValueError(
                f"no `.pt` file is read as a base of family {self.family}; expected one of family {known}"
            )
        return self

    @property
    def corpora(self) -> tuple[str | None, ...]:
        """The corpora of `general` that it learns from here, if any."""
        return self.pretrain.domains if self.pretrain else (self.audio.corpus,) if self.audio else ()

    @property
    def has_audio(self) -> bool:
        """Whether an audio prefix is made here, or comes with the folder."""
        return self.audio is not None or bool(self.path and Path(self.path, "audio").is_dir())

    @property
    def training(self) -> Training | None:
        """Its own training here, if any: of all its weights, or of its projector."""
        learnt = self.pretrain or self.audio
        return learnt.training if learnt else None
