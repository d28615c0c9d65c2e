"""Ears for a causal model: frozen Whisper encoder → stack frames → projector → prefix embeddings.

The recipe of SLAM-ASR (Ma et al. 2024, arXiv:2402.08846): the language model reads speech as embeddings that stand
before the text.
"""

import json
from math import ceil

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

SAMPLES_PER_POSITION = 320  # 10 ms frames, halved by the encoder's second convolution


class AudioPrefix(nn.Module):
    """Log-mel `[clips, mels, frames]` → prefix embeddings `[clips, frames / (2 · stack), width]`."""

    def __init__(self, config: WhisperConfig, stack: int, width: int, hidden: int):
        super().__init__()
        self.config, self.stack = config, stack
        self.encoder = WhisperEncoder(config)
        size = config.d_model * stack
        self.projector = nn.Sequential(nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, width))

    @property
    def frames(self) -> int:
        return 2 * self.config.max_source_positions

    def tokens(self, samples: int) -> int:
        """Prefix positions of a clip of so many samples at 16 kHz."""
        return ceil(ceil(samples / SAMPLES_PER_POSITION) / self.stack)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        states = self.encoder(features).last_hidden_state
        usable = states.shape[1] // self.stack * self.stack
        return self.projector(states[:, :usable].reshape(len(states), -1, self.stack * states.shape[2]))

    def save(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        self.config.save_pretrained(folder)
        hidden, width = self.projector[0].out_features, self.projector[2].out_features
        sizes = {"stack": self.stack, "hidden": hidden, "width": width}
        metadata = {"sizes": json.dumps(sizes)}  # one key: safetensors writes several in random order
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, folder / "audio_prefix.safetensors", metadata=metadata)

    @classmethod
    def load(cls, folder):
        from safetensors import safe_open

        path = folder / "audio_prefix.safetensors"
        with safe_open(path, framework="pt") as file:
            sizes = json.loads(file.metadata()["sizes"])
        prefix = cls(WhisperConfig.from_pretrained(folder), **sizes)
        prefix.load_state_dict(load_file(path))
        return prefix
