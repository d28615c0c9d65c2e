"""Controls that a mixture's claim must beat."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from loratory.mixers.contract import GateInput, GateShape, Mixer, Reads

if TYPE_CHECKING:
    import torch


class ShuffledMixer(Mixer):
    """Another mixer's weights, handed to the wrong experts (each expert's weight goes to the next one).

    A gate whose choice of expert matters must do worse so. Weights of ranks move on by an expert's mean rank.
    """

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

    def routing_weights(self, gate: Any, seen: GateInput, sizes: GateShape) -> torch.Tensor:
        found = self.inner.routing_weights(gate, seen, sizes)
        return found.roll(found.shape[-1] // sizes.experts, -1)

    def select_weights(self, weights: torch.Tensor) -> torch.Tensor:
        return self.inner.select_weights(weights)


def can_shuffle(mixer: Mixer, gate: torch.nn.Module | None) -> bool:
    """Whether shuffled weights say anything of a mixer: it has a gate, over experts that it did not make."""
    return gate is not None and type(mixer).prepare_experts is Mixer.prepare_experts
