"""The audio prefix of a causal model: frozen Whisper encoder → stack frames → projector → prefix embeddings.

The recipe of SLAM-ASR (Ma et al. 2024, arXiv:2402.08846): the language model reads speech as embeddings that stand
before the text.
"""

import json
from functools import lru_cache
from math import ceil
from pathlib import Path
from typing import Self, cast

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from loratory.data.audio import SAMPLES_PER_POSITION, clip_features, clip_samples
from loratory.data.clips import Clip, is_changed

CACHE_BYTES = 2**30  # bytes of encoder states at most


class AudioPrefix(nn.Module):
    """Stacked encoder states `[tokens, stack · d_model]` → prefix embeddings `[tokens, width]`.

    The encoder is frozen, so each clip is encoded once: `audio_states(clip)` caches what `encode_clip(clip)` computes;
    only what is changed for the occasion is not kept.

    Args:
        stack: encoder states that make one prefix position. width: of the language model's embeddings.
        hidden: width of the projector's hidden layer.
    """

    def __init__(self, config: WhisperConfig, stack: int, width: int, hidden: int):
        super().__init__()
        self.config, self.stack = config, stack
        self.encoder = WhisperEncoder(config)
        size = config.d_model * stack
        self.projector = nn.Sequential(nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, width))
        longest = 4 * config.max_source_positions * config.d_model  # bytes
        self.audio_states = lru_cache(maxsize=max(1, CACHE_BYTES // longest))(self.encode_clip)

    def clip_states(self, clip: Clip | str) -> torch.Tensor:
        """As `encode_clip`; of a clip that is not changed, from memory."""
        return self.encode_clip(clip) if is_changed(clip) else self.audio_states(clip)

    @property
    def frames(self) -> int:
        """Most feature frames of a clip (10 ms each): two for each of the encoder's positions."""
        return 2 * self.config.max_source_positions

    def prefix_length(self, samples: int) -> int:
        """Prefix positions of a clip of so many samples at 16 kHz."""
        return min(ceil(ceil(samples / SAMPLES_PER_POSITION) / self.stack), self.frames // 2 // self.stack)

    @torch.no_grad()
    def encode_clip(self, clip: Clip | str) -> torch.Tensor:
        """Stacked encoder states of a clip `[tokens, stack · d_model]`; computed alone, so no batch changes them."""
        features = torch.from_numpy(clip_features(clip, self.config.num_mel_bins, self.frames))
        states = self.encoder(features[None].to(self.encoder.device)).last_hidden_state[0]
        tokens = self.prefix_length(clip_samples(clip))
        return states[: tokens * self.stack].reshape(tokens, -1).clone()  # a view would keep the whole window

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.projector(states)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.config.save_pretrained(folder)
        hidden, width = (cast(nn.Linear, self.projector[at]).out_features for at in (0, 2))
        sizes = {"stack": self.stack, "hidden": hidden, "width": width}
        metadata = {"sizes": json.dumps(sizes)}  # one key: safetensors writes several in random order
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, folder / "audio_prefix.safetensors", metadata=metadata)

    @classmethod
    def load(cls, folder: Path) -> Self:
        from safetensors import safe_open

        path = folder / "audio_prefix.safetensors"
        with safe_open(path, framework="pt") as file:
            sizes = json.loads(file.metadata()["sizes"])
        config = WhisperConfig.from_pretrained(folder)
        config._attn_implementation = None  # the library's own, whatever config.json says
        prefix = cls(config, **sizes)
        prefix.load_state_dict(load_file(path))
        return prefix
