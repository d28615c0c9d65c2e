"""Whisper and models of its class: log-mel features in, transcript out (Radford et al. 2022, arXiv:2212.04356)."""

import torch
import torch.nn.functional as F
from transformers import WhisperForConditionalGeneration

from loratory.bases.core import IGNORED, Base, Encoded, check_clip, open_model, open_tokenizer, pad, too_long
from loratory.bases.decoding import decode, new_cache
from loratory.data.audio import read_audio

PROMPT = ("<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>")


class Whisper(Base):
    """Language and task are fixed by the decoder prompt: children's speech is easily taken for another language."""

    family = "whisper"

    @classmethod
    def open(cls, folder, manifest, dtype):
        model = open_model(WhisperForConditionalGeneration, folder, dtype=dtype)
        return cls(folder, manifest, model, open_tokenizer(folder))

    @property
    def frames(self) -> int:
        return 2 * self.model.config.max_source_positions

    def prompt(self) -> list[int]:
        """The decoder's first tokens; models for English alone know neither language nor task tokens."""
        known = self.tokenizer.get_vocab()
        return [known[token] for token in PROMPT if token in known]

    def encode(self, example) -> Encoded:
        check_clip(f"{self.folder}:{example.id}", len(read_audio(example.audio)), self.frames)
        text = self.tokenizer(example.target, add_special_tokens=False)["input_ids"] if example.target else []
        prompt, target = self.prompt(), [*text, self.tokenizer.eos_token_id]
        if len(prompt) + len(target) > self.model.config.max_target_positions:
            raise too_long(self.folder, example.id, len(prompt) + len(target), self.model.config.max_target_positions)
        labels = [IGNORED] * len(prompt) + target
        return Encoded(prompt + target, labels, self.frames // 2 + len(labels), example.audio)

    def collate(self, items):
        return {
            "features": self.features(items, self.model.config.num_mel_bins, self.frames).to(self.model.dtype),
            "ids": pad([item.ids for item in items], self.tokenizer.eos_token_id, self.device),
            "mask": pad([[1] * (len(item.ids) - 1) for item in items], 0, self.device),  # of what the decoder reads
            "labels": pad([item.labels for item in items], IGNORED, self.device),
        }

    @staticmethod
    def inputs(batch) -> dict:
        """Model inputs without the last token, which nothing follows; padding on the right needs no mask."""
        return {"input_features": batch["features"], "decoder_input_ids": batch["ids"][:, :-1], "use_cache": False}

    def loss(self, model, batch):
        logits = model(**self.inputs(batch), **self.facts(model, batch)).logits
        labels = batch["labels"][:, 1:]
        nll = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="sum")
        return nll, int((labels != IGNORED).sum())

    def text(self, model, items, limit: int, sampling=None) -> list[str]:
        """Transcripts; greedy, without fallback or suppression unless `sampling` is given."""
        batch = self.collate(items)
        heard = model.get_encoder()(batch["features"])
        prompt = torch.tensor([self.prompt()] * len(items), device=self.device)
        limit = min(limit, self.model.config.max_target_positions - prompt.shape[1])
        positions = torch.arange(prompt.shape[1], device=self.device).expand(len(items), -1)
        inputs = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt), "position_ids": positions}

        def forward(inputs, cache):
            return model(
                encoder_outputs=heard,
                decoder_input_ids=inputs["input_ids"],
                past_key_values=cache,
                use_cache=True,
            )

        written = decode(forward, inputs, new_cache(model), self.tokenizer.eos_token_id, limit, sampling)
        return [self.tokenizer.decode(row, skip_special_tokens=True).strip() for row in written]
