"""The blocks of a transformer that can compute their activations anew."""

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


def transformer_blocks(model: nn.Module) -> list[GradientCheckpointingLayer]:
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
