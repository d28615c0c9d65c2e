"""What a dataset knows of an utterance's sound. Imported while the config is read: nothing heavy."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Masks:
    """SpecAugment: how many stretches of features are hidden, and the widest of them.

    Attributes:
        bands, widest_band: stretches of mel bands. times, longest_time: stretches of frames of 10 ms. longest_share:
            of the clip that one of these may hide.
    """

    bands: int
    widest_band: int
    times: int
    longest_time: int
    longest_share: float


@dataclass(frozen=True)
class Change:
    """What is done to a clip before a model learns from it. All of it is decided: equal changes give equal sounds.

    Attributes:
        speed: factor of tempo and pitch together. semitones: of pitch alone.
        noise: white noise is so many dB below the clip; None: there is none.
        warp: factor of the frequencies of formants.
        masks: what is hidden of the features, if anything.
        seed: of the noise, and of where masks lie.
    """

    speed: float = 1.0
    semitones: float = 0.0
    noise: float | None = None
    warp: float = 1.0
    masks: Masks | None = None
    seed: int = 0


@dataclass(frozen=True)
class Clip:
    """A recording or a part of it.

    Attributes:
        path: of the audio file. sha256: of its bytes when the dataset was built; "" where nobody noted it.
        seconds: how long the clip is, before any change; None where nobody measured it.
        start, end: seconds in the recording; `end` None: as far as it goes.
        change: what is done to it once it is read; None: nothing.
    """

    path: str
    sha256: str = ""
    seconds: float | None = None
    start: float = 0.0
    end: float | None = None
    change: Change | None = None


def is_changed(clip: Clip | str) -> bool:
    """Whether a clip is changed for the occasion, and nothing that is made of it will be asked for again."""
    return isinstance(clip, Clip) and clip.change is not None


def as_clip(audio: Clip | str) -> Clip:
    return Clip(audio) if isinstance(audio, str) else audio


@dataclass(frozen=True)
class Piece(Clip):
    """A part of a clip that is read on its own.

    Attributes:
        first, last: samples of the clip at 16 kHz, from `first` up to `last`.
    """

    first: int = 0
    last: int = 0

    @property
    def whole(self) -> Clip:
        return Clip(self.path, self.sha256, self.seconds, self.start, self.end, self.change)
