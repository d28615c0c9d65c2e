"""EVA: A starts from what varies most in each layer's inputs, and ranks go where more of it is explained (Paischer et
al. 2024, arXiv:2410.07170).

The rows of A are the leading principal components of the layer's inputs, B = 0. Component i of a layer explains the
share λ_i / Σ λ of its inputs' variance; of all layers' shares, the largest Σ rank are kept, at most rank · rho in one
layer, and a layer's rank is how many of its own are among them. A layer without any stays bare. The scale is
alpha / rank of the config in every layer. Components are those of an incremental SVD (Ross et al. 2008), one example
at a time, so that no position is padding.

Project interpretation: a fixed number of examples, where the released code goes on until components no longer turn;
all positions count, prompts too, where PEFT's default takes those of the target alone.
"""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from loratory.adapters.methods import lora
from loratory.errors import InputError

if TYPE_CHECKING:
    import torch

    from loratory.adapters.contract import Tensors
    from loratory.training.session import AdapterSession


class Method(lora.Method):
    """y = W x + s · B A x with A the leading components of the layer's inputs, B = 0 and s = alpha / rank; ranks
    differ between layers."""

    learns_ranks: ClassVar[bool] = True

    rank: int = Field(8, ge=1, description="mean rank of the layers")
    rho: float = Field(2.0, ge=1, description="most ranks of one layer, as a multiple of `rank`; 1: all the same")
    examples: int = Field(64, ge=1, description="training examples whose activations are measured")

    def initial_tensors(self, weight: torch.Tensor, generator: torch.Generator) -> Tensors:
        if self.rank > weight.shape[1]:
            raise InputError("rank", "the rank exceeds the layer's inputs", self.rank, f"at most {weight.shape[1]}")
        return super().initial_tensors(weight, generator)

    def prepare_training(self, session: AdapterSession) -> None:
        from loratory.adapters.core import bare_layer

        found = self.input_components(session)
        ranks = allocate_ranks({name: part.explained_shares() for name, part in found.items()}, self.rank)
        for name, rank in ranks.items():
            if rank:
                self.start_layer(session, name, found[name].directions[:, :rank])
            else:
                session.model.set_submodule(name, bare_layer(session.layers.pop(name)))

    def input_components(self, session: AdapterSession) -> dict[str, InputComponents]:
        """{layer: principal components of its inputs}.

        Raises:
            InputError: the examples have fewer positions than a layer may get ranks.
        """
        most = {name: self.most_ranks(layer.shape) for name, layer in session.layers.items()}
        found = {name: InputComponents(count) for name, count in most.items()}
        session.visit_inputs(self.examples, lambda name, x: found[name].add_inputs(x))
        for name, part in found.items():
            if part.positions < most[name]:
                what, fix = "the layer reads too few positions for its components", "raise `examples` or lower `rank`"
                where = f"{type(session.model).__name__}: {name}"
                raise InputError(where, what, part.positions, f"at least {most[name]}", fix)
        return found

    def most_ranks(self, shape: torch.Size) -> int:
        return min(round(self.rank * self.rho), shape[1])

    def start_layer(self, session: AdapterSession, name: str, directions: torch.Tensor) -> None:
        """Gives a layer its components `[in, rank]` as A, and the scale that all layers have."""
        import torch

        layer, rank = session.layers[name], directions.shape[1]
        layer.method = self.model_copy(update={"rank": rank, "alpha": self.scale * rank})
        layer.adapter["A"] = torch.nn.Parameter(directions.T.contiguous())
        layer.adapter["B"] = torch.nn.Parameter(directions.new_zeros(layer.shape[0], rank))


class InputComponents:
    """The leading principal components of rows that come in parts.

    Attributes:
        positions: rows so far. mean: theirs, `[in]`. total: sum of their squared distances from it.
        directions: unit vectors `[in, components]`; values: the singular values of the centred rows along them.
    """

    mean: torch.Tensor
    directions: torch.Tensor
    values: torch.Tensor

    def __init__(self, count: int):
        self.count, self.positions, self.total = count, 0, 0.0

    def add_inputs(self, x: torch.Tensor) -> None:
        """`[positions, in]` more."""
        import torch

        from loratory.adapters.spectrum import leading_singular_vectors

        mean, number = x.mean(0), len(x)
        rows = x - mean
        if self.positions:
            # Centring both parts by their own means hides how far apart these are: one more row holds it.
            weight = sqrt(self.positions * number / (self.positions + number))
            apart = weight * (mean - self.mean)
            self.mean = self.mean + (mean - self.mean) * (number / (self.positions + number))
            rows = torch.cat([(self.directions * self.values).T, rows, apart[None]])
            self.total += float(apart.square().sum())
        else:
            self.mean = mean
        self.total += float((x - mean).square().sum())
        self.positions += number
        self.directions, self.values, _ = leading_singular_vectors(rows.T, self.count)

    def explained_shares(self) -> list[float]:
        """The share (0 to 1) of the variance along each component, the largest first."""
        return (self.values.square() / self.total).tolist() if self.total else [0.0] * len(self.values)


def allocate_ranks(shares: dict[str, list[float]], mean: int) -> dict[str, int]:
    """{layer: how many of its shares are among the largest `mean` · layers of all}; at a tie earlier layers first."""
    ordered = sorted(((share, name) for name, own in shares.items() for share in own), key=lambda pair: -pair[0])
    chosen = [name for _, name in ordered[: mean * len(shares)]]
    return {name: chosen.count(name) for name in shares}
