"""Gradient checkpointing under a mixture: a block's second pass must find the weights that the first one had."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from loratory.bases.blocks import transformer_blocks
from loratory.mixers.layers import GateContext, LayerWeights


def checkpoint_blocks(model: nn.Module, context: GateContext) -> None:
    """From now on a block that trains keeps no activations."""
    for block in transformer_blocks(model):
        block.gradient_checkpointing = True
        block._gradient_checkpointing_func = partial(run_block, block, context)  # type: ignore[assignment]


def run_block(block: GradientCheckpointingLayer, context: GateContext, forward: Callable, *args: Any) -> Any:
    """A block's pass, now and, where there is something to learn, once more in the backward pass."""
    weights = context.weights
    first, again = (
        block_context(block, context, weights),
        block_context(block, context, weights and weights.recompute_copy()),
    )
    if torch.is_grad_enabled():
        return checkpoint(forward, *args, use_reentrant=False, context_fn=lambda: (first, again))
    with first:
        return forward(*args)


@contextmanager
def block_context(
    block: GradientCheckpointingLayer, context: GateContext, weights: LayerWeights | None
) -> Iterator[None]:
    """A block is in training mode for no other reason than to be repeated: its own dropout stays off."""
    with context.use_weights(weights):
        block.training = False
        try:
            yield
        finally:
            block.training = True
