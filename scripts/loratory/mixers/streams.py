"""Which mixed layers compute at the same positions, and the base's own states at these positions.

Decoder-only models and encoders have one stream, `tokens`. Whisper has two: `frames` of its encoder, which its
cross-attention's keys and values read too, and `tokens` of its decoder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from loratory.bases.decoding import repeat_rows

TOKENS, FRAMES = "tokens", "frames"
READS_FRAMES = re.compile(r"(^|\.)encoder\.|\.encoder_attn\.[kv]_proj$")
OF_HEADS = ("logits_to_keep", "labels")  # inputs that only a model with its head takes


def module_streams(model: PreTrainedModel, modules: list[str], apart: bool) -> dict[str, tuple[str, ...]]:
    """{stream: its modules}; all modules are one stream unless the streams are to be kept `apart`."""
    if not (apart and model.config.is_encoder_decoder):
        return {TOKENS: tuple(modules)}
    frames = tuple(name for name in modules if READS_FRAMES.search(name))
    parts = {FRAMES: frames, TOKENS: tuple(name for name in modules if name not in frames)}
    return {stream: names for stream, names in parts.items() if names}


@dataclass
class EncodedAudio:
    """What an encoder made of audio, once for a whole transcript.

    Attributes:
        mixed, bare: its states with experts, and without them where a gate reads them.
        weights: those of streams that are known from the audio alone.
    """

    mixed: BaseModelOutput
    bare: BaseModelOutput | None
    weights: dict[str, torch.Tensor]

    def repeat_rows(self, times: int) -> EncodedAudio:
        """Each row so many times, one after another."""
        rows = len(self.mixed[0])
        weights = {
            stream: own.repeat_interleave(times, 0) if len(own) == rows else own  # one row may serve all
            for stream, own in self.weights.items()
        }
        bare = None if self.bare is None else repeat_rows(self.bare, times)
        return EncodedAudio(repeat_rows(self.mixed, times), bare, weights)


def bare_states(model: PreTrainedModel, inputs: Mapping[str, Any], cache: Cache | None) -> dict[str, torch.Tensor]:
    """The last hidden states `[batch, length, hidden]` of each stream, without the output head."""
    inputs = {name: value for name, value in inputs.items() if name not in OF_HEADS}
    if cache is not None:
        inputs["past_key_values"] = cache
    if isinstance(inputs.get("encoder_outputs"), EncodedAudio):
        inputs["encoder_outputs"] = inputs["encoder_outputs"].bare
    found = model.base_model(**inputs)
    if not model.config.is_encoder_decoder:
        return {TOKENS: found.last_hidden_state}
    return {TOKENS: found.last_hidden_state, FRAMES: found.encoder_last_hidden_state}


def mean_pool(
    states: dict[str, torch.Tensor], prompt: torch.Tensor | None, features: torch.Tensor | None = None
) -> torch.Tensor:
    """`[batch, 1, hidden]`: the mean over the frames of a clip, or over the tokens `[batch, length]` of the prompt.

    Args:
        features: log-mel `[batch, n_mels, frames]` of the clips; without them all frames count, silence behind too.
    """
    hidden = states[FRAMES if FRAMES in states else TOKENS]
    given = prompt
    if FRAMES in states:
        given = None if features is None else voiced_positions(features, hidden.shape[1])
    if given is None:
        return hidden.mean(1, keepdim=True)
    share = given / given.sum(1, keepdim=True).clamp(min=1)
    return (hidden.float() * share[..., None]).sum(1, keepdim=True).to(hidden.dtype)


def voiced_positions(features: torch.Tensor, positions: int) -> torch.Tensor:
    """`[batch, positions]`, true up to the last frame that is louder than the floor of its clip's log-mel.

    Whisper pads a clip with silence, most of whose states say nothing about it; where all is one level, all count.
    """
    floor = features.amin((1, 2), keepdim=True)
    loud = (features > floor).any(1)
    places = torch.arange(1, features.shape[-1] + 1, device=features.device)
    last = (loud * places).amax(1, keepdim=True)  # frames up to the last loud one
    last = last.where(last > 0, torch.full_like(last, features.shape[-1]))
    reach = torch.arange(positions, device=features.device) * (features.shape[-1] / positions)
    return reach[None] < last
