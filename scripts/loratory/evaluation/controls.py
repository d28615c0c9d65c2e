"""Controls that a mixture's claim must beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from loratory.mixers.contract import GateInput, GateShape, Mixer, Reads

if TYPE_CHECKING:
    import torch

    from loratory.domains.contract import Example

GATE_CONTROLS = ("shuffled", "other_user", "mean_user")  # of a mixture's own gate, as `{mixture}:{control}`


class WrappedMixer(Mixer):
    """Another mixer, `inner`, with other weights."""

    trained: ClassVar[bool] = False
    inner: Any

    @property
    def reads(self) -> Reads:
        return self.inner.reads

    @property
    def per_sequence(self) -> bool:
        return self.inner.per_sequence

    @property
    def mixes_factors(self) -> bool:
        return self.inner.mixes_factors

    @property
    def by_rank(self) -> bool:
        return self.inner.by_rank

    def select_weights(self, weights: torch.Tensor) -> torch.Tensor:
        return self.inner.select_weights(weights)


class ShuffledMixer(WrappedMixer):
    """Another mixer's weights, handed to the wrong experts (each expert's weight goes to the next one).

    A gate whose choice of expert matters must do worse so. Weights of ranks move on by an expert's mean rank.
    """

    def routing_weights(self, gate: Any, seen: GateInput, sizes: GateShape) -> torch.Tensor:
        found = self.inner.routing_weights(gate, seen, sizes)
        return found.roll(found.shape[-1] // sizes.experts, -1)


class MeanUserMixer(WrappedMixer):
    """The mean over many users of what another mixer gives to each: nobody's weights are his own.

    A mixer that weighs by user must do better than so, or it tells nothing of users.
    """

    contexts: Any  # `[users, 1 + events, 2]`

    def routing_weights(self, gate: Any, seen: GateInput, sizes: GateShape) -> torch.Tensor:
        found = self.inner.routing_weights(gate, replace(seen, context=self.contexts), sizes)
        return found.mean(0, keepdim=True)


def exchange_users(questions: Sequence[Example]) -> list[Example]:
    """The same questions about the same items, each with the past of a user of another group; of the next such one.

    A mixer that weighs by user must do worse so. Where there is one group, all stays as it is.
    """
    found, n = [], len(questions)
    for i, question in enumerate(questions):
        others = (questions[(i + step) % n] for step in range(1, n))
        other = next((each for each in others if each.group != question.group and each.context), question)
        found.append(replace(question, context=(*question.context[:1], *other.context[1:])))
    return found


def can_shuffle(mixer: Mixer, gate: torch.nn.Module | None) -> bool:
    """Whether shuffled weights say anything of a mixer: it has a gate, over experts that it did not make."""
    return gate is not None and type(mixer).prepare_experts is Mixer.prepare_experts
