"""Head-only training (linear probing): the body of the base stays as it is. The lower reference arm, no adapter.

    y = H f(x) with f frozen and H trained

H is the base's heads (a classifier, drawn anew for every method); where there are none, it is the output embeddings.
Caution: where these are tied to the input embeddings (GPT-2, Whisper) the two are one parameter, so that the input
embeddings move along and f(x) is not frozen in the strict sense (project interpretation: untying them would make
another model, with more parameters than the base).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from loratory.adapters import contract

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class Method(contract.BaseWeightsMethod):
    """y = H f(x) with H alone trained."""

    def trained_weights(self, model: torch.nn.Module) -> list[str]:
        head = cast("PreTrainedModel", model).get_output_embeddings()
        trained = set() if head is None else set(head.parameters())
        return [name for name, parameter in model.named_parameters() if parameter in trained]
