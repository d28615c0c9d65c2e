"""Writing token after token: one loop for every model that reads a cache."""

from dataclasses import dataclass

import torch
from transformers import Cache, DynamicCache, EncoderDecoderCache


@dataclass(frozen=True)
class Sampling:
    """How to draw the next token; its own generator keeps the draw independent of everything else.

    Attributes:
        temperature: logits are divided by it; top_p: smallest set of tokens with this mass stays.
    """

    seed: int
    temperature: float = 1.0
    top_p: float = 1.0

    def generator(self, device) -> torch.Generator:
        return torch.Generator(device).manual_seed(self.seed)


def new_cache(model):
    """The cache a model wants: its own kind (two caches for a mixture) or the usual one."""
    return model.new_cache() if hasattr(model, "new_cache") else empty_cache(model)


def empty_cache(model) -> Cache:
    """A growing cache of a Hugging Face model."""
    if model.config.is_encoder_decoder:
        return EncoderDecoderCache(DynamicCache(), DynamicCache())
    return DynamicCache()


@torch.no_grad()
def decode(forward, inputs: dict, cache, end: int, limit: int, sampling: Sampling | None = None) -> list[list[int]]:
    """Continues a left-padded batch until every row wrote `end` or `limit` tokens.

    Args:
        forward: (inputs, cache) -> output with `.logits [batch, length, vocabulary]`; appends to the cache.
        inputs: first inputs: `attention_mask`, `position_ids`, and `input_ids` or `inputs_embeds`.

    Returns:
        The written ids of each row, without `end`.
    """
    mask, positions = inputs["attention_mask"], inputs["position_ids"][:, -1:]
    generator = sampling.generator(mask.device) if sampling else None
    written: list[list[int]] = [[] for _ in mask]
    open_rows = set(range(len(written)))
    for _ in range(limit):
        logits = forward(inputs, cache).logits[:, -1].float()
        token = draw(logits, sampling, generator) if sampling else logits.argmax(-1)
        for row, id in enumerate(token.tolist()):
            if row in open_rows:
                open_rows.discard(row) if id == end else written[row].append(id)
        if not open_rows:
            break
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        positions = positions + 1
        inputs = {"input_ids": token[:, None], "attention_mask": mask, "position_ids": positions}
    return written


def draw(logits: torch.Tensor, sampling: Sampling, generator) -> torch.Tensor:
    """One token a row `[batch]` by temperature and nucleus sampling (Holtzman et al. 2020, arXiv:1904.09751)."""
    probabilities = (logits / sampling.temperature).softmax(-1)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(-1, descending=True)
        outside = ordered.cumsum(-1) - ordered >= sampling.top_p
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, ordered.masked_fill(outside, 0.0))
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]
