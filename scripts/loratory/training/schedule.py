"""How long and how fast something is trained: the config's `training` entries, as the loop reads them. Imported while
the config is read: nothing heavy."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from loratory.domains.contract import Options
from loratory.fields import Rates, renamed_keys
from loratory.training.augmentation import Augmentation

RATES = "grid; the one of the lowest loss on `valid` is kept, of a mixture the mean over its domains"


class Schedule(Options):
    """How long something is trained, and with what."""

    steps: int = Field(200, ge=1, description="optimizer steps")
    batch_tokens: int = Field(4096, ge=1, description="most positions of a batch, padding included")
    gradient_accumulation_steps: int = Field(1, ge=1, description="batches that make one optimizer step")
    warmup: float = Field(0.05, ge=0, le=1, description="share of the steps with a rising learning rate")
    decay: Literal["cosine", "constant"] = Field("cosine", description="learning rate after the warm-up")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay of AdamW")
    clip: float = Field(1.0, gt=0, description="largest norm of all gradients together")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="of the forward pass; bf16 is autocast")
    save_every: int = Field(200, ge=0, description="steps between checkpoints")
    threads: int = Field(1, ge=1, description="CPU threads; sums depend on it in the last digits, so it is set here")

    def batch_numbers(self, step: int) -> range:
        """Which batches, counted from the first of the training, make a step."""
        first = step * self.gradient_accumulation_steps
        return range(first, first + self.gradient_accumulation_steps)

    def at_rate(self, learning_rate: float) -> Training:
        """One training of this schedule."""
        return Training(learning_rate=learning_rate, **self.model_dump(include=set(Schedule.model_fields)))


class Training(Schedule):
    """One training of something."""

    learning_rate: float = Field(1e-3, gt=0, description="highest learning rate")

    def learning_rate_at(self, step: int) -> float:
        rising = max(1, round(self.warmup * self.steps))
        if step < rising:
            return self.learning_rate * (step + 1) / rising
        if self.decay == "constant":
            return self.learning_rate
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, self.steps - rising)))


class Sweep(Schedule):
    """A training for each learning rate."""

    model_config = renamed_keys(learning_rate="`learning_rates`, a list")

    learning_rates: Rates = Field((1e-3,), min_length=1, description=RATES)
    max_examples: int | None = Field(
        None, ge=1, description="learn from so many records of a split, by id hash (few-shot); none takes all"
    )


class AdapterSweep(Sweep):
    """A training of an adapter for each learning rate."""

    augmentation: Augmentation | None = Field(None, description="how sound is changed before it is learnt from")
    together: int = Field(
        1,
        ge=1,
        description="trainings of a low-rank method that a GPU runs in one pass (rates of the grid, then seeds)",
    )
