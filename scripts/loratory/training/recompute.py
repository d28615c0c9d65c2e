"""Gradient checkpointing while an adapter is trained; `mixers.recompute` has that of mixtures."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from loratory.bases.blocks import transformer_blocks
from loratory.errors import InputError


@contextmanager
def recompute_activations(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Inside, if it is wanted, blocks in training mode keep no activations: the backward pass computes them anew, with
    the same dropout.

    Raises:
        InputError: the model has no blocks that can be computed anew.
    """
    blocks = transformer_blocks(model) if wanted else []
    if wanted and not blocks:
        what, fix = "this model has no blocks whose activations can be computed anew", "leave the option out"
        raise InputError("training.gradient_checkpointing", what, type(model).__name__, fix=fix)
    for block in blocks:
        block.gradient_checkpointing = True
        block._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)  # type: ignore[assignment]
    try:
        yield
    finally:
        for block in blocks:
            block.gradient_checkpointing = False
