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
    def reads_hidden(self):
        return self.inner.reads_hidden

    def weights(self, gate, hidden, sizes, domain):
        return self.inner.weights(gate, hidden, sizes, domain).roll(1, -1)
