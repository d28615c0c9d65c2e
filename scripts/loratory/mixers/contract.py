"""What a mixer file offers. A file under `kinds/` defines one class `Mixer(contract.Mixer)`; its fields are options.

As with methods, the file is imported while the config is read: torch is imported inside functions.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from loratory.domains.contract import Options

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Sizes:
    """What a gate must fit: experts, adapted linear layers (modules) and the base's hidden width."""

    experts: int
    modules: int
    hidden: int


class Mixer(Options):
    """One way of weighing experts. Weights broadcast to `[batch, length, modules, experts]`."""

    trained: ClassVar[bool] = True  # a gate is learnt on the `gate` split
    reads_hidden: ClassVar[bool] = True  # weights depend on the base's last hidden state

    def gate(self, sizes: Sizes) -> torch.nn.Module | None:
        """The trainable part, or None. The caller initialises the random numbers."""
        return None

    @abstractmethod
    def weights(self, gate, hidden: torch.Tensor | None, sizes: Sizes, domain: int | None) -> torch.Tensor:
        """Weights of the experts.

        Args:
            gate: what `gate` made. hidden: `[batch, length, hidden]` of the base without experts, if `reads_hidden`.
            domain: index of the expert of the domain the batch is from; only the oracle may look at it.
        """

    def penalty(self, weights: torch.Tensor, domain: int) -> torch.Tensor | float:
        """What training adds to the loss of each target.

        Args:
            weights: `[tokens, modules | 1, experts]` of the batch's tokens. domain: as of `weights`; here every mixer
                may look at it, since in training each example's domain is known.
        """
        return 0.0
