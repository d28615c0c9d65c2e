"""What a method file offers. A method is a frozen config with the few functions that make it different.

A file under `methods/` defines one class `Method(contract.Method)`; its fields are its hyper-parameters. The file is
imported while the config is read, so torch is imported inside the functions that make tensors.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from pydantic import Field

from loratory.domains.contract import Options

if TYPE_CHECKING:
    import torch

    from loratory.adapters.deltas import Dense, LowRank

Tensors = "dict[str, torch.Tensor]"


class Method(Options):
    """One adapter method. `tensors` maps names to trainable parameters of one adapted linear layer."""

    target_modules: tuple[str, ...] | None = Field(
        None, description="last names of the linear layers to adapt; none means every linear layer but the output head"
    )

    @abstractmethod
    def start(self, weight: torch.Tensor, generator: torch.Generator) -> Tensors:
        """Initial tensors for a frozen weight `[out, in]`, drawn from `generator` alone."""

    @abstractmethod
    def forward(self, x: torch.Tensor, tensors: Tensors, training: bool) -> torch.Tensor:
        """What is added to the frozen layer's output: `[..., in]` → `[..., out]`."""

    @abstractmethod
    def delta(self, tensors: Tensors) -> LowRank | Dense:
        """The trained change of the ORIGINAL weight, for storage and merging."""
