"""How long and how fast something is trained: the config's `training` entries, as the loop reads them. Imported while
the config is read: nothing heavy."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from loratory.domains.contract import Options
from loratory.fields import Rates, renamed_keys
from loratory.training.augmentation import Augmentation

RECOMPUTING = "compute activations anew in the backward pass: less memory, more time"
RATES = "grid; the one of the lowest loss on `valid` is kept, of a mixture the mean over its domains"


class Schedule(Options):
    """How long something is trained, and with what."""

    steps: int = Field(200, ge=1, description="optimizer steps")
    batch_tokens: int = Field(4096, ge=1, description="most positions of a batch, padding included")
    gradient_accumulation_steps: int = Field(1, ge=1, description="batches that make one optimizer step")
    micro_batch_tokens: int | None = Field(
        None,
        ge=1,
        description="most positions of one pass: a batch is learnt from in parts, which costs less memory and changes "
        "no result; none: in one",
    )
    warmup: float = Field(0.05, ge=0, le=1, description="share of the steps with a rising learning rate")
    decay: Literal["cosine", "constant"] = Field("cosine", description="learning rate after the warm-up")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay of AdamW")
    clip: float = Field(1.0, gt=0, description="largest norm of all gradients together")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="of the forward pass; bf16 is autocast")
    save_every: int = Field(200, ge=0, description="steps between checkpoints")
    threads: int = Field(1, ge=1, description="CPU threads; sums depend on it in the last digits, so it is set here")

    @property
    def pass_tokens(self) -> int:
        """Most positions of one pass."""
        return self.micro_batch_tokens or self.batch_tokens

    def batch_numbers(self, step: int) -> range:
        """Which batches, counted from the first of the training, make a step."""
        first = step * self.gradient_accumulation_steps
        return range(first, first + self.gradient_accumulation_steps)


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


class Validated(Options):
    """When `valid` is looked at; its records are learnt from by none."""

    validate_every: int = Field(
        0, ge=0, description="steps between looks at `valid`, of which the best is kept; 0 looks after the last alone"
    )
    patience: int | None = Field(
        None, ge=1, description="looks at `valid` without a lower loss after which a training ends; none: never"
    )

    @model_validator(mode="after")
    def check_patience(self) -> Self:
        if self.patience is not None and not self.validate_every:
            raise ValueError("patience counts looks at `valid`, expected `validate_every` above 0")
        return self


class Trial(Validated, Training):
    """One training of a sweep."""


class Sweep(Validated, Schedule):
    """A training for each learning rate."""

    model_config = renamed_keys(learning_rate="`learning_rates`, a list")

    learning_rates: Rates = Field((1e-3,), min_length=1, description=RATES)
    max_examples: int | None = Field(
        None, ge=1, description="learn from so many records of a split, by id hash (few-shot); none takes all"
    )

    def at_rate(self, learning_rate: float) -> Trial:
        """One training of this sweep."""
        shared = {*Schedule.model_fields, *Validated.model_fields}
        return Trial(learning_rate=learning_rate, **self.model_dump(include=shared))


class AdapterSweep(Sweep):
    """A training of an adapter for each learning rate."""

    augmentation: Augmentation | None = Field(None, description="how sound is changed before it is learnt from")
    gradient_checkpointing: bool = Field(False, description=RECOMPUTING)
    processes: int = Field(
        1,
        ge=1,
        description="processes of one host that share a step's batches, with a GPU each (data parallel)",
    )
    sharding: Literal["none", "fsdp"] = Field(
        "none", description="what each process holds of the base: all (`none`), or of every layer a part (`fsdp`)"
    )
    together: int = Field(
        1,
        ge=1,
        description="trainings of a low-rank method that a GPU runs in one pass (rates of the grid, then seeds)",
    )

    @model_validator(mode="after")
    def check_processes(self) -> Self:
        if self.gradient_accumulation_steps % self.processes:
            what = f"{self.gradient_accumulation_steps} batches a step cannot be shared by {self.processes} processes"
            raise ValueError(f"{what}, expected `gradient_accumulation_steps` to be a multiple of `processes`")
        if self.sharding == "fsdp" and self.processes == 1:
            raise ValueError("one process has nobody to share a base with, expected `processes` with `sharding: fsdp`")
        if self.sharding == "fsdp" and self.micro_batch_tokens is not None:
            what = "processes that share a base pass equally often, and batches have unequally many parts"
            raise ValueError(f"{what}, expected no `micro_batch_tokens` with `sharding: fsdp`")
        return self
