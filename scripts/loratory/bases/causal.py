"""Decoder-only language models (Llama, Qwen, GPT-2, Phi, …), with an optional audio prefix."""

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from loratory.bases.audio import AudioPrefix
from loratory.bases.core import IGNORED, Base, Encoded, check_clip, open_model, open_tokenizer, pad, too_long
from loratory.bases.decoding import decode, new_cache
from loratory.data.audio import read_audio
from loratory.errors import InputError


class Causal(Base):
    """Sequence = [begin] [audio] prompt | target [end]; only what stands behind the bar is scored."""

    family = "causal"

    def __init__(self, folder, manifest, model, tokenizer, audio: AudioPrefix | None = None):
        super().__init__(folder, manifest, model, tokenizer)
        self.audio = audio
        self.context = getattr(model.config, "max_position_embeddings", None) or 1 << 30

    @classmethod
    def open(cls, folder, manifest, dtype):
        model = open_model(AutoModelForCausalLM, folder, dtype=dtype)
        tokenizer = open_tokenizer(folder)
        ears = folder / "audio"
        audio = AudioPrefix.load(ears) if ears.is_dir() else None
        return cls(folder, manifest, model, tokenizer, audio)

    @property
    def end(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def filler(self) -> int:
        return self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.end

    def tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def encode(self, example) -> Encoded:
        begin = [self.tokenizer.bos_token_id] if self.tokenizer.bos_token_id is not None else []
        heard = self.audio_tokens(example) if example.audio else 0
        prompt = begin + [self.filler] * heard + self.tokens(example.prompt)
        target = [*self.tokens(example.target), self.end] if example.target else []
        if len(prompt) + len(target) > self.context:
            raise too_long(self.folder, example.id, len(prompt) + len(target), self.context)
        label = example.choices.index(example.target) if example.choices and example.target else -1
        labels = [IGNORED] * len(prompt) + target
        return Encoded(prompt + target, labels, len(labels), example.audio, heard, label)

    def audio_tokens(self, example) -> int:
        """Raises:
        InputError: the base has no audio prefix, or the clip is longer than its window.
        """
        where = f"{self.folder}:{example.id}"
        if self.audio is None:
            raise InputError(where, "this base cannot hear", example.audio, "a causal base with `audio:`")
        samples = len(read_audio(example.audio))
        check_clip(where, samples, self.audio.frames)
        return self.audio.tokens(samples)

    def collate(self, items):
        return self.assemble(items, [item.ids for item in items], [item.labels for item in items])

    def collate_prompts(self, items, left: bool = False):
        """The prompts alone: to be continued (padded on the left) or answered by a choice."""
        prompts = [[id for id, label in zip(item.ids, item.labels) if label == IGNORED] for item in items]
        return self.assemble(items, prompts, None, left)

    def assemble(self, items, rows, labels, left: bool = False) -> dict:
        lengths = [len(row) for row in rows]
        batch = {
            "ids": pad(rows, self.filler, self.device, left),
            "mask": pad([[1] * n for n in lengths], 0, self.device, left),
        }
        if left:
            batch["positions"] = (batch["mask"].cumsum(-1) - 1).clamp(min=0)
        batch["prompt"] = batch["mask"].bool()
        if labels is not None:
            batch["labels"] = pad(labels, IGNORED, self.device, left)
            batch["prompt"] = batch["prompt"] & (batch["labels"] == IGNORED)
        heard = [item for item in items if item.audio]
        if heard:
            begin = int(self.tokenizer.bos_token_id is not None)
            is_audio = [
                [begin <= at < begin + item.audio_tokens for at in range(n)] for item, n in zip(items, lengths)
            ]
            batch["is_audio"] = pad(is_audio, False, self.device, left)
            batch["heard"] = torch.cat([self.audio.heard(item.audio) for item in heard])
        return batch

    def inputs(self, batch) -> dict:
        """Model inputs; embeddings in place of ids where a clip is heard.

        Padding on the right needs no mask, as nothing that counts comes after it; without one, attention is faster.
        """
        inputs = {}
        if "positions" in batch:
            inputs = {"attention_mask": batch["mask"], "position_ids": batch["positions"]}
        if "heard" not in batch:
            return inputs | {"input_ids": batch["ids"]}
        embeddings = self.model.get_input_embeddings()(batch["ids"])
        prefix = self.audio(batch["heard"]).to(embeddings.dtype)
        return inputs | {"inputs_embeds": embeddings.masked_scatter(batch["is_audio"][..., None], prefix)}

    def token_nll(self, model, batch) -> torch.Tensor:
        """`[batch, positions]` nats, 0 where nothing is scored; positions that no row is scored at are left out."""
        labels = batch["labels"][:, 1:]
        scored = (labels != IGNORED).any(0).nonzero()[:, 0]
        logits, labels = self.logits(model, batch, scored), labels[:, scored]
        nll = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
        return nll.view(labels.shape)

    def logits(self, model, batch, positions: torch.Tensor) -> torch.Tensor:
        """`[batch, positions, vocabulary]` at these positions alone: the head costs as much as layers do."""
        inputs = self.inputs(batch) | self.facts(model, batch)
        return model(**inputs, use_cache=False, logits_to_keep=positions).logits.float()

    def loss(self, model, batch):
        return self.token_nll(model, batch).sum(), int((batch["labels"][:, 1:] != IGNORED).sum())

    def nll(self, model, items) -> list[tuple[float, int]]:
        """Summed nats and number of scored tokens of each item."""
        batch = self.collate(items)
        counts = (batch["labels"][:, 1:] != IGNORED).sum(1)
        return list(zip(self.token_nll(model, batch).double().sum(1).tolist(), counts.tolist()))

    def choice(self, model, items, choices: tuple[str, ...]) -> torch.Tensor:
        """Log probability of each choice `[items, choices]`, renormalised over the choices' first tokens.

        Raises:
            InputError: the tokenizer gives two choices the same first token.
        """
        first = [self.tokens(choice)[0] for choice in choices]
        if len(set(first)) < len(first):
            raise InputError(self.folder, "choices share their first token", str(choices), "distinct first tokens")
        batch = self.collate_prompts(items)
        last, place = (batch["mask"].sum(1) - 1).unique(return_inverse=True)
        return self.logits(model, batch, last)[torch.arange(len(items)), place][:, first].log_softmax(-1)

    def text(self, model, items, limit: int, sampling=None) -> list[str]:
        """Continuations of the prompts without end-of-sequence; greedy unless `sampling` is given."""
        batch = self.collate_prompts(items, left=True)
        written = decode(
            lambda inputs, cache: model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1),
            self.inputs(batch) | self.facts(model, batch),
            new_cache(model),
            self.end,
            limit,
            sampling,
        )
        return [self.tokenizer.decode(row, clean_up_tokenization_spaces=False) for row in written]
