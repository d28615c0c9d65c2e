"""What a method file offers. A method is a frozen config with the few functions that make it different.

A file under `methods/` defines one class `Method(contract.Method)`; its fields are its hyper-parameters. The file is
imported while the config is read, so torch is imported inside the functions that make tensors.

Three sorts of methods fit: most put a few tensors beside every linear layer (`initial_tensors`, `forward`,
`weight_delta`); some need more than gradients (`prepare_training` and the hooks of a step); some train the base's own
weights (`trained_weights`).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from pydantic import Field

from loratory.domains.contract import Options
from loratory.fields import Modules

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from loratory.adapters.core import AdaptedLinear
    from loratory.adapters.deltas import Dense, InputDependent, LowRank
    from loratory.training.session import AdapterSession

# By name. In quotes, as torch is not imported while a config is read.
Tensors: TypeAlias = "dict[str, torch.Tensor]"
Parameters: TypeAlias = "dict[str, torch.nn.Parameter]"


class Method(Options):
    """One adapter method. `tensors` maps names to the tensors of one adapted linear layer.

    Attributes:
        learns_ranks: layers end with ranks of their own, which a figure shows.
        fixed: names of tensors that no optimizer moves (projections, masks, scores). A checkpoint has them too.
        needs_plain_weights: it moves, differentiates or quantises the base's weights: none packed in int8 or nf4.
        replayable: its forward pass reads nothing that changes but tensors, which stay in place once training is
            prepared, and makes no host wait for their numbers: a step may be replayed as a CUDA graph. Hooks of a step
            run as ever.
        summed: those of them that a step's micro-batches add to, and that are 0 when it begins; of processes that
            share a training each has added its part.
    """

    learns_ranks: ClassVar[bool] = False
    needs_plain_weights: ClassVar[bool] = False
    replayable: ClassVar[bool] = False
    fixed: ClassVar[frozenset[str]] = frozenset()
    summed: ClassVar[frozenset[str]] = frozenset()

    target_modules: Modules | None = Field(
        None,
        description="layers to adapt, by their names or those of modules around them: `q_proj`, `encoder`, "
        "`decoder.self_attn`, `cross_attention`, `conv`; none means every linear layer but the output head",
    )

    # One linear layer.

    def layer_methods(self, weights: Mapping[str, torch.Tensor]) -> dict[str, Method]:
        """{layer: method in force there}, from the frozen weights `[out, in]` of all target layers, which are made one
        by one as they are asked for.

        A layer that is left out stays bare; another rank for each layer is a copy of the method for each.
        """
        return dict.fromkeys(weights, self)

    @abstractmethod
    def initial_tensors(self, weight: torch.Tensor, generator: torch.Generator) -> Tensors:
        """Initial tensors for a frozen weight `[out, in]` (float32, on the CPU), drawn from `generator` alone.

        Raises:
            InputError: the method cannot adapt a layer of this shape.
        """

    def forward(self, x: torch.Tensor, tensors: Tensors, training: bool) -> torch.Tensor:
        """What is added to the frozen layer's output: `[..., in]` → `[..., out]`."""
        raise NotImplementedError

    def layer_output(self, layer: AdaptedLinear, x: torch.Tensor) -> torch.Tensor:
        """The adapted layer's whole output; to be overridden where it is more than base(x) + forward(x)."""
        added = self.forward(x.to(layer.dtype), layer.tensors, layer.training)
        return layer.base(x) + added.to(x.dtype)

    def check_library_options(self, at: str) -> None:
        """Asks the library, if any, that options are handed on to. It may be imported here, as nowhere else before a
        job.

        Args:
            at: the place in the config, for the error.

        Raises:
            InputError: it does not know one of them.
        """

    @abstractmethod
    def weight_delta(self, tensors: Tensors, weight: torch.Tensor) -> LowRank | Dense | InputDependent:
        """The trained change of the ORIGINAL weight `[out, in]`, for storage and merging."""

    # A trained adapter at a lower rank.

    @property
    def lower_ranks(self) -> tuple[int, ...]:
        """Ranks below its own that one training serves too, and that tables of methods show."""
        return ()

    def cut_to_rank(self, delta: LowRank, rank: int) -> LowRank:
        """A stored change of one layer at a lower rank: the nearest of that rank, by SVD."""
        return delta.truncate(rank)

    # The base's own weights.

    def trained_weights(self, model: torch.nn.Module) -> list[str]:
        """Names of the base's parameters that are themselves trained; they are put back afterwards."""
        return []

    # One training. Hooks change tensors in place, under `torch.no_grad()` where they need no gradient.

    def prepare_training(self, session: AdapterSession) -> None:
        """Before the first step: passes over training data that the initial tensors depend on."""

    def create_optimizer(self, session: AdapterSession, parameters: Parameters) -> torch.optim.Optimizer:
        """Of all trained parameters {name: parameter}; its learning rates are set at every step."""
        return session.adamw_optimizer(parameters)

    def before_step(self, session: AdapterSession, step: int) -> None:
        """Before the forward pass of an optimizer step."""

    def step_penalty(self, session: AdapterSession) -> torch.Tensor | None:
        """Added once to the loss of an optimizer step."""
        return None

    def after_step(self, session: AdapterSession, step: int) -> None:
        """After the optimizer moved, while the (clipped) gradients are still there."""

    def state_tensors(self, session: AdapterSession) -> Tensors:
        """Tensors besides those of the layers that a resumed training must find again; they are filled in place."""
        return {}


class DenseMethod(Method):
    """A method whose change has no low rank."""

    export_rank: int | None = Field(
        None, ge=1, description="store the change of each linear layer cut to this rank (run.json says what is lost)"
    )


class BaseWeightsMethod(DenseMethod):
    """A method that trains the base's own weights; no tensor stands beside a layer."""

    needs_plain_weights: ClassVar[bool] = True

    target_modules: None = Field(None, description="has no meaning here: no linear layer is adapted")

    def layer_methods(self, weights: Mapping[str, torch.Tensor]) -> dict[str, Method]:
        return {}

    def initial_tensors(self, weight: torch.Tensor, generator: torch.Generator) -> Tensors:
        raise NotImplementedError("no layer is adapted")

    def weight_delta(self, tensors: Tensors, weight: torch.Tensor) -> Dense:
        raise NotImplementedError("no layer is adapted")

    @abstractmethod
    def trained_weights(self, model: torch.nn.Module) -> list[str]:
        """Names of the parameters that are trained; they are put back afterwards."""
