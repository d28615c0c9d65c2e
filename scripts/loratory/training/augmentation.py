"""What a training does to sound before it learns from it. Imported while the config is read: nothing heavy."""

from hashlib import sha256
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from loratory.data.clips import Change, Clip, Masks
from loratory.domains.contract import Options

Factor = Annotated[float, Field(ge=0.5, le=2)]


def check_range(ends: tuple[float, ...]) -> tuple[float, ...]:
    if ends[0] > ends[1]:
        raise ValueError(f"{ends[0]:g} is above {ends[1]:g}, expected the lower end first")
    return ends


Factors = Annotated[tuple[Factor, ...], Field(min_length=2, max_length=2), AfterValidator(check_range)]
Decibels = Annotated[tuple[float, ...], Field(min_length=2, max_length=2), AfterValidator(check_range)]


class SpecAugment(Options):
    """Stretches of the features that are hidden."""

    bands: int = Field(2, ge=0, description="stretches of mel bands")
    widest_band: int = Field(27, ge=1, description="mel bands that one hides at most")
    times: int = Field(2, ge=0, description="stretches of time")
    longest_time: int = Field(100, ge=1, description="frames of 10 ms that one hides at most")
    longest_share: float = Field(0.1, gt=0, le=1, description="share of the clip that one hides at most")


class Augmentation(Options):
    """How clips of `train` are changed, anew each time that one is learnt from; what is not given is not done.

    Which change a clip goes through is a function of the training's seed, the batch's number and the clip: a training
    that is resumed sees what it would have seen.
    """

    speed: tuple[Factor, ...] = Field((), description="factors of tempo and pitch, one of which is drawn")
    pitch: float = Field(0, ge=0, le=12, description="most semitones up or down")
    vtlp: Factors | None = Field(None, description="lowest and highest factor of the frequencies of formants")
    noise: Decibels | None = Field(None, description="lowest and highest ratio of the clip to added white noise, dB")
    spec_augment: SpecAugment | None = Field(None, description="parts of the features that are hidden")
    share: float = Field(1, gt=0, le=1, description="share of clips that each kind is applied to, drawn apart")

    @model_validator(mode="after")
    def check_content(self) -> Self:
        if not (self.speed or self.pitch or self.vtlp or self.noise or self.spec_augment):
            raise ValueError("nothing is changed, expected one of speed, pitch, vtlp, noise and spec_augment")
        return self

    def draw_change(self, clip: Clip, longest: float, seed: int, number: int) -> Change:
        """What is done to a clip in a batch.

        All is drawn whether it is applied or not, so that one kind more leaves the others as they are.

        Args:
            longest: seconds that the base reads at most: no speed makes the clip longer. number: of the batch.
        """
        import numpy as np

        random = np.random.default_rng([seed, number, clip_key(clip)])
        applied = random.random(5) < self.share
        speed, pitch, vtlp, noise = random.random(4).tolist()
        speeds = self.fitting_speeds(clip, longest)
        return Change(
            speed=speeds[int(speed * len(speeds))] if speeds and applied[0] else 1.0,
            semitones=self.pitch * (2 * pitch - 1) if applied[1] else 0.0,
            warp=point_between(self.vtlp, vtlp) if self.vtlp and applied[2] else 1.0,
            noise=point_between(self.noise, noise) if self.noise and applied[3] else None,
            masks=Masks(**self.spec_augment.model_dump()) if self.spec_augment and applied[4] else None,
            seed=int(random.integers(2**62)),
        )

    def slowest_change(self, clip: Clip, longest: float) -> Change:
        """The change that makes the clip as long as any of them can."""
        return Change(speed=min([*self.fitting_speeds(clip, longest), 1.0]))

    def fitting_speeds(self, clip: Clip, longest: float) -> list[float]:
        return [factor for factor in self.speed if clip.seconds is None or clip.seconds / factor <= longest]


def clip_key(clip: Clip) -> int:
    """A number of the clip's own, wherever its recording lies."""
    name = f"{clip.sha256 or clip.path} {clip.start} {clip.end}"
    return int.from_bytes(sha256(name.encode()).digest()[:8])


def point_between(ends: tuple[float, ...], share: float) -> float:
    return ends[0] + (ends[1] - ends[0]) * share
