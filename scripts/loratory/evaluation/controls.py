"""Controls that a mixture's claim must beat."""

from __future__ import annotations

from typing import Any, ClassVar

from loratory.mixers.contract import Mixer


class ShuffledMixer(Mixer):
    """Another mixer's weights, handed to the wrong experts (each expert's weight goes to the next one).

    A gate whose choice of expert matters must do worse so. Weights of ranks move on by an expert's mean rank.
    """

    trained: ClassVar[bool] = False
    inner: Any

    @property
    def reads(self):
        return self.inner.reads

    @property
    def per_sequence(self):
        return self.inner.per_sequence

    @property
    def by_rank(self):
        return self.inner.by_rank

    def routing_weights(self, gate, seen, sizes):
        found = self.inner.routing_weights(gate, seen, sizes)
        return found.roll(found.shape[-1] // sizes.experts, -1)

    def select_weights(self, weights):
        return self.inner.select_weights(weights)


def can_shuffle(mixer: Mixer, gate) -> bool:
    """Whether shuffling tells anything of a mixer: it has a gate over experts that were there before it."""
    return gate is not None and type(mixer).prepare_experts is Mixer.prepare_experts
