"""Controls that a mixture's claim must beat."""

from __future__ import annotations

from typing import Any, ClassVar

from loratory.mixers.contract import Mixer


class Shuffled(Mixer):
    """Another mixer's weights, handed to the wrong experts (each expert's weight goes to the next one).

    A gate whose choice of expert matters must do worse so.
    """

    trained: ClassVar[bool] = False
    inner: Any

    @property
    def reads(self):
        return self.inner.reads

    @property
    def pooled(self):
        return self.inner.pooled

    @property
    def by_rank(self):
        return self.inner.by_rank

    def weights(self, gate, seen, sizes):
        return self.inner.weights(gate, seen, sizes)

    def keep(self, weights):
        return self.inner.keep(weights).roll(1, -1)
