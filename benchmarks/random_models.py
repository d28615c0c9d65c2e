"""Bases and adapters of random weights that benchmarks share."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from loratory.adapters import core, deltas


def random_base(sizes: dict, vocabulary: int, device: str, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """A Llama shape; it writes no end."""
    torch.manual_seed(0)
    config = LlamaConfig(**sizes, vocab_size=vocabulary, max_position_embeddings=1024)
    config.eos_token_id, config.dtype = None, dtype
    with torch.device(device):
        return LlamaForCausalLM(config).to(dtype).eval().requires_grad_(False)


def random_adapter(
    model: LlamaForCausalLM,
    rank: int,
    number: int,
    targets: tuple[str, ...] = (),
    dtype: torch.dtype = torch.float32,
) -> deltas.Adapter:
    """A LoRA on all linear layers, or on those whose names end so."""
    random = torch.Generator().manual_seed(number)
    found = deltas.Adapter()
    for name, layer in core.linear_layers(model).items():
        if not targets or name.endswith(targets):
            a = torch.randn(rank, layer.in_features, generator=random) / layer.in_features**0.5
            b = torch.randn(layer.out_features, rank, generator=random) * 0.05
            found.deltas[name] = deltas.LowRank(a.to(dtype), b.to(dtype), 2.0)
    return found
