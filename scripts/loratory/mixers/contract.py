"""What a mixer file offers. A file under `methods/` defines one class `Mixer(contract.Mixer)`; its fields are options.

As with methods, the file is imported while the config is read: torch is imported inside functions.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from loratory.domains.contract import Example, Options

if TYPE_CHECKING:
    import torch

    from loratory.adapters.deltas import Adapter


Reads = Literal["hidden", "input", "context", "nothing"]


@dataclass(frozen=True)
class GateShape:
    """What a gate must fit.

    Attributes:
        experts: how many. hidden: width of the base's hidden states.
        modules: names of the mixed linear layers, in the order of the gate's outputs.
        widths: numbers of inputs of these layers. ranks: numbers of ranks stacked in them.
    """

    experts: int
    hidden: int
    modules: tuple[str, ...]
    widths: tuple[int, ...]
    ranks: tuple[int, ...]


@dataclass
class GateInput:
    """What a mixer may look at.

    Attributes:
        hidden: states of the base without experts `[batch, length, hidden]`, if the mixer reads `hidden`; one state
            for each sequence (length 1, the mean over its prompt) if the mixer is `per_sequence`.
        input: what comes into a layer `[batch, length, width]`, and layer: which of `GateShape.modules` that is, if
            the mixer reads `input`.
        is_audio: `[batch, length]`, true where a position is of a clip and not of text; None where all are text.
        context: `[batch, 1 + events, 2]`, what is known of who is asked about what (`Example.context`), zeros behind
            each row's end, if the mixer reads `context`; None where nothing is known of any.
        domain: which of the given experts' domains the batch is from; for mixers that are `needs_domain` alone.
        pass_state: empty at the start of each pass; a mixer that reads `input` may leave there what later layers need.
    """

    hidden: torch.Tensor | None = None
    input: torch.Tensor | None = None
    layer: int | None = None
    is_audio: torch.Tensor | None = None
    context: torch.Tensor | None = None
    domain: int | None = None
    pass_state: dict = field(default_factory=dict)


class Mixer(Options):
    """One way of weighing experts.

    Attributes:
        trained: something is learnt: a gate, experts, or both.
        reads: what weights depend on: the base's last hidden states (a pass without experts comes first), the input
            of each layer, what is known of a record besides its text, or nothing.
        per_sequence: a mixer that reads `hidden` weighs each sequence as a whole, not each token.
        by_rank: weights are of ranks, not of experts.
        mixes_factors: factors are mixed, and not their products: (Σ λₖ Bₖ)(Σ λₖ Aₖ) in place of Σ λₖ Bₖ Aₖ. All
            experts have the same layers, ranks and scales.
        fewest_experts: how many it must be given.
        needs_domain: must know the domain of its input, so it is a control, or for inputs whose domain is known.
        families: of bases whose experts it mixes; an encoder's heads belong to one domain each.
        splits: what is learnt from. Experts that were trained on `train` are weighed by what they have not seen.
        trains_experts: experts move too.
        needs_whole_batch: a token's weights depend on all tokens of the batch, later ones too: no cache can be right.
        learns_labels: training tells it the domains, so that their own experts get the tokens. Of any other mixer, the
            share of tokens that go to their domain's own expert is no measure: another mixture may answer as well.
        replayable: weighing reads nothing that changes but tensors and makes no host wait for their numbers, and there
            is no `routing_penalty`: a step may be replayed as a CUDA graph.
        balances: `routing_penalty` is of the tokens of all domains of a step together, and not domain by domain.
    """

    trained: ClassVar[bool] = True
    families: ClassVar[tuple[str, ...]] = ("causal", "whisper")
    splits: ClassVar[tuple[str, ...]] = ("gate",)
    fewest_experts: ClassVar[int] = 2

    @property
    def reads(self) -> Reads:
        return "hidden"

    @property
    def by_rank(self) -> bool:
        return False

    @property
    def mixes_factors(self) -> bool:
        return False

    @property
    def needs_domain(self) -> bool:
        return False

    @property
    def per_sequence(self) -> bool:
        return False

    @property
    def trains_experts(self) -> bool:
        return False

    @property
    def needs_whole_batch(self) -> bool:
        return False

    @property
    def learns_labels(self) -> bool:
        return False

    @property
    def balances(self) -> bool:
        return False

    @property
    def replayable(self) -> bool:
        return False

    def prepare_experts(self, given: dict[str, Adapter], seed: int) -> dict[str, Adapter]:
        """What is stacked, made once before training: the trained experts as they are, unless a mixer merges them or
        starts its own in their place."""
        return given

    def build_gate(self, sizes: GateShape) -> torch.nn.Module | None:
        """The trainable part, or None. It starts as PyTorch starts its layers, a linear one with weights and biases in
        U(±1/√inputs), as the gates of the authors' own code do; the caller sets the seed."""
        return None

    def prepare_gate(self, gate: torch.nn.Module, sizes: GateShape, experts: dict[str, Adapter]) -> None:
        """Writes into a new gate what it takes from the experts and not from training."""

    def pretrain_gate(self, examples: Iterable[Example], seed: int) -> dict[str, torch.Tensor]:
        """{name in the gate: tensor} of what a gate learns of examples alone, once for a seed, before the base has any
        part in it.

        Args:
            examples: all of the splits that are learnt from, domain by domain in the order of these splits.
        """
        return {}

    @abstractmethod
    def routing_weights(self, gate: Any, seen: GateInput, sizes: GateShape) -> torch.Tensor:
        """The weight that the mixer gives to each expert, before `select_weights`.

        Args:
            gate: what `build_gate` made.

        Returns:
            Of a mixer that reads `input`: `[batch, length, experts]` for that layer, or as many as it has ranks.
            Of any other: what broadcasts to `[batch, length, modules, experts]`.
        """

    def select_weights(self, weights: torch.Tensor) -> torch.Tensor:
        """The weights that are applied, of those that `routing_weights` gave: all, the largest alone, …"""
        return weights

    def routing_penalty(self, weights: torch.Tensor, domain: int) -> torch.Tensor | float:
        """What training adds to the loss of each target.

        Args:
            weights: of `routing_weights`, `[tokens, modules | 1, experts]`: of one domain's tokens or, where the mixer
                `balances`, of those of all domains of a step.
            domain: which of the given experts' domains is learnt from; in training every mixer may look at it.
        """
        return 0.0
