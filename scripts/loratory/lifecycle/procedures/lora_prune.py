"""LoRAPrune: heads and channels go while a LoRA trains, and its gradients say which (arXiv:2305.18403).

A step that takes A and B against their gradients changes B A by −ĝ, ĝ = g_B A + B g_A − g_B g_A, so ĝ stands for the
gradient of the frozen W, which nobody computes. A number's importance is (ĝ ⊙ (W + s B A))², a unit's the sum over its
rows and columns; it is normalised over the units of a layer, smoothed by 0.9, and ranked within the layer. Between the
first and the last tenth of the steps, the share that is cut rises as 1 − (1 − p)³. Masked units are scored as 0, and
come back only where what is remembered of them outweighs others. See `lifecycle/cutting.py` for what a unit is.

Project interpretation: gradients are the step's clipped ones, with A and B as they are after it; the paper's square is
taken, not the released code's absolute value; every layer is cut alike, as an ordinary `config.json` asks, and numbers
of heads that the model's class refuses are not made. Arms whose names say so are cut before the training instead, by
the magnitude of W (at that time B A = 0) or at random, and learn as the plain LoRA does.

Every cut model is sliced and its LoRA merged before it answers: what is measured is what is kept, never a mask. In
half precision the sum is rounded. Latency is that of reading a batch of test questions with their answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import Field, model_validator

from loratory.lifecycle import contract
from loratory.lifecycle.contract import Arm

if TYPE_CHECKING:
    from loratory.bases.core import Base
    from loratory.config import StageEntry
    from loratory.lifecycle.room import Room


class Procedure(contract.Procedure):
    """A smaller base with a merged LoRA: cut by LoRAPrune, by magnitude and at random, beside a LoRA of the whole."""

    shares: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = Field(
        (0.2, 0.5),
        min_length=1,
        description="of the heads and channels of every layer that are cut, as near as whole heads come; a model each",
    )
    interval: int = Field(10, ge=1, description="steps between two cuts while it trains")

    @model_validator(mode="after")
    def check_shares(self) -> Self:
        percents = [percent(share) for share in self.shares]
        if len({*percents}) < len(percents):
            raise ValueError(f"shares are {self.shares}, expected distinct whole percents, as arms are named by them")
        return self

    def iterate_arms(self, entry: StageEntry, room: Room) -> Iterator[Arm]:
        from loratory.lifecycle import cutting, pruning
        from loratory.lifecycle.sequence import JointTraining

        base, domains = room.base, entry.domains
        parts = cutting.find_parts(base.model, base.folder)
        pruning.check_targets(room, parts)
        size = cutting.model_size(base.model)
        yield Arm("base", base, base.model, kind="base", measures=size, timed=True)
        for arm in JointTraining("lora", room, domains).iterate_arms():
            yield replace(arm, measures={**size, **arm.measures}, timed=True)
        for share in self.shares:
            name = f"lora_prune_{percent(share)}"
            training = pruning.PruningTraining(name, room, domains, parts, share, self.interval)
            for arm in training.iterate_arms():
                yield whole_arm(arm, cutting.slice_base(base, parts, training.kept))
            for name, kept in (
                ("magnitude", cutting.largest_units(base.model, parts, share)),
                ("random", cutting.random_units(parts, share, room.seed)),
            ):
                small = cutting.slice_base(base, parts, kept)
                plain = JointTraining(f"{name}_{percent(share)}", replace(room, base=small), domains)
                for arm in plain.iterate_arms():
                    yield whole_arm(arm, small)


def percent(share: float) -> int:
    return round(100 * share)


def whole_arm(arm: Arm, small: Base) -> Arm:
    """The arm with the adapter merged into the weights of a cut base that it lies on."""
    from loratory.lifecycle import cutting

    merged = cutting.merge_base(small)
    measures = {**cutting.model_size(merged.model), **arm.measures}
    return Arm(arm.name, merged, merged.model, measures=measures, whole=True, timed=True)
