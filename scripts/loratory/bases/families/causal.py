"""Decoder-only language models (Llama, Qwen, GPT-2, Phi, …), with an optional audio prefix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch.nn import Module
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto import modeling_auto as auto

from loratory.bases.audio import AudioPrefix
from loratory.bases.core import (
    IGNORED,
    Base,
    Batch,
    Encoded,
    InPlace,
    check_clip,
    class_names,
    is_bidirectional,
    pad_rows,
    too_long_error,
)
from loratory.bases.decoding import Sampling, decode_batch, new_cache
from loratory.bases.options import Decoding
from loratory.data.audio import HOP, RATE, SAMPLES_PER_POSITION, clip_samples
from loratory.data.batching import fixed_shape, pad_contexts, round_up
from loratory.data.clips import Clip
from loratory.domains.contract import Example
from loratory.errors import InputError, one_error

LONGEST_FRAME = 100_000  # letters that a chat template may write around a prompt: beyond, it fills memory


class Family(Base):
    """Sequence = [begin] [audio] prompt | target [end]; only what stands behind the bar is scored.

    Where the target has an alphabet, each of its letters is one token, its last letter is the end, and probabilities
    are those among the letters alone: a distribution over sequences, whatever the tokenizer would make of them.
    """

    family = "causal"
    model_class = AutoModelForCausalLM
    needed_token = "eos_token"

    def __init__(
        self,
        folder: Path | str,
        manifest: dict[str, Any],
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        audio: AudioPrefix | None = None,
    ):
        super().__init__(folder, manifest, model, tokenizer)
        self.audio = audio

    @staticmethod
    def architectures(model_type: str) -> set[str]:
        if model_type == "whisper" or is_bidirectional(model_type):
            return set()
        return class_names(model_type, auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)

    @classmethod
    def open(cls, folder: Path, manifest: dict[str, Any], **options: Any) -> Self:
        base = super().open(folder, manifest, **options)
        if (folder / "audio").is_dir():
            base.audio = AudioPrefix.load(folder / "audio")
        return base

    @property
    def context(self) -> int:
        """Practically without end where the config names no limit."""
        return getattr(self.model.config, "max_position_embeddings", None) or 1 << 30

    @property
    def end_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def pad_id(self) -> int:
        return self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.end_id

    @cached_property
    def begin_ids(self) -> list[int]:
        """What the tokenizer puts before a text, as in the model's pretraining."""
        encoded = self.tokenizer("a", return_special_tokens_mask=True)
        marked = zip(encoded["input_ids"], encoded["special_tokens_mask"])
        return [id for id, _ in takewhile(lambda pair: pair[1], marked)]

    def encode(self, example: Example) -> Encoded:
        begin = [] if example.chat else self.begin_ids  # a chat template brings its own
        audio_tokens = self.audio_tokens(example) if example.audio else 0
        prompt = begin + [self.pad_id] * audio_tokens + self.prompt_tokens(example)
        if not prompt:  # the first token of a target is scored too, so something must come before it
            prompt = [self.end_id if self.tokenizer.bos_token_id is None else self.tokenizer.bos_token_id]
        target = self.target_tokens(example)
        if target and not example.alphabet:
            target = [*target, self.end_id]
        if len(prompt) + len(target) > self.context:
            raise too_long_error(self.folder, example.id, len(prompt) + len(target), self.context)
        label = example.choices.index(example.target) if example.choices and example.target else -1
        labels = [IGNORED] * len(prompt) + target
        known = (example.audio, audio_tokens, label, example.alphabet, example.context)
        return Encoded(prompt + target, labels, len(labels), *known)

    def check_choices(self, choices: tuple[str, ...]) -> None:
        ids = {tuple(self.tokens(choice)) for choice in choices}
        if len(ids) < len(choices) or () in ids:
            raise InputError(self.folder, "choices are the same tokens, or none", str(choices), "distinct choices")

    def prompt_tokens(self, example: Example) -> list[int]:
        """Raises:
        InputError: `example.chat`, and the base has no chat template that works or the example has audio.
        """
        if not example.chat:
            return self.tokens(example.prompt)
        where, fix = f"{self.folder}:{example.id}", "set `task.chat: false` of the domain"
        if self.tokenizer.chat_template is None:
            raise InputError(where, "this base has no chat template", expected="an instructed base", fix=fix)
        if example.audio:
            raise InputError(where, "a chat template has no place for audio", example.audio, "text alone", fix)
        turn = [{"role": "user", "content": example.prompt}]
        # a template is a program of the folder's, in a sandbox
        with one_error(where, "the chat template does not take one turn", fix=fix, of=Exception):
            text = cast(str, self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
        if len(text) > len(example.prompt) + LONGEST_FRAME:
            what, expected = "the chat template writes too much around a prompt", f"at most {LONGEST_FRAME} letters"
            raise InputError(where, what, len(text), expected, fix)
        return self.tokens(text)

    def audio_tokens(self, example: Example) -> int:
        """Raises:
        InputError: the base has no audio prefix, or the clip is longer than its window.
        """
        where = f"{self.folder}:{example.id}"
        if self.audio is None:
            raise InputError(where, "this base has no audio encoder", example.audio, "a causal base with `audio:`")
        samples = clip_samples(example.audio)
        check_clip(where, samples, self.audio.frames)
        return self.audio.prefix_length(samples)

    def replace_clip(self, item: Encoded, clip: Clip) -> Encoded:
        assert self.audio is not None  # `encode` refuses clips without
        tokens, begin = self.audio.prefix_length(clip_samples(clip)), len(self.begin_ids)
        rest = begin + item.audio_tokens
        ids = item.ids[:begin] + [self.pad_id] * tokens + item.ids[rest:]
        labels = [IGNORED] * (begin + tokens) + item.labels[rest:]
        return replace(item, ids=ids, labels=labels, length=len(labels), audio=clip, audio_tokens=tokens)

    def longest_clip(self, item: Encoded) -> float:
        assert self.audio is not None
        room = self.context - len(item.ids) + item.audio_tokens
        return min(self.audio.frames * HOP, room * self.audio.stack * SAMPLES_PER_POSITION) / RATE

    def keeps_rows(self, decoding: Decoding) -> bool:
        return True

    def collate(self, items: Sequence[Encoded]) -> Batch:
        return self.assemble_batch(items, [item.ids for item in items], [item.labels for item in items])

    def collate_prompts(self, items: Sequence[Encoded], left: bool = False) -> Batch:
        return self.assemble_batch(items, list(map(prompt_ids, items)), None, left)

    def assemble_batch(
        self,
        items: Sequence[Encoded],
        rows: Sequence[list[int]],
        labels: Sequence[list[int]] | None,
        left: bool = False,
    ) -> Batch:
        lengths = [len(row) for row in rows]
        batch = {
            "ids": pad_rows(rows, self.pad_id, self.device, left),
            "mask": pad_rows([[1] * n for n in lengths], 0, self.device, left),
        }
        if left:
            batch["positions"] = (batch["mask"].cumsum(-1) - 1).clamp(min=0)
        batch["prompt"] = batch["mask"].bool()
        alphabets = {item.alphabet for item in items}
        if len(alphabets) > 1:
            raise ValueError(f"examples of different alphabets in one batch: {sorted(alphabets)}")
        if alphabet := alphabets.pop():
            batch["alphabet"] = torch.tensor(self.letter_ids(alphabet), device=self.device)
        if labels is not None:
            batch["labels"] = pad_rows(labels, IGNORED, self.device, left)
            batch["prompt"] = batch["prompt"] & (batch["labels"] == IGNORED)
        if any(item.context for item in items):
            contexts = pad_contexts([item.context for item in items])
            batch["context"] = torch.from_numpy(contexts).to(self.device)
        with_audio = [item for item in items if item.audio]
        if with_audio:
            assert self.audio is not None  # `encode` refuses clips without
            begin = len(self.begin_ids)
            is_audio: list[list[int]] = [
                [begin <= at < begin + item.audio_tokens for at in range(n)] for item, n in zip(items, lengths)
            ]
            batch["is_audio"] = pad_rows(is_audio, False, self.device, left)
            batch["audio_states"] = torch.cat([self.audio.clip_states(item.audio) for item in with_audio])
        return batch

    def fixed_batch(self, batch: Batch, budget: int) -> Batch | None:
        """More rows and positions that are padding, and `scored`: where any row is scored, the last position, which
        none is, again and again behind. None of a batch with audio, whose clips have lengths of their own."""
        fill = {"ids": self.pad_id, "mask": 0, "labels": IGNORED, "prompt": False, "context": 0, "hidden": 0.0}
        if not batch.keys() <= fill.keys() | {"alphabet"}:
            return None
        rows, length = fixed_shape(*batch["ids"].shape, budget, self.context)
        sizes = {"context": round_up(batch["context"].shape[1], 1)} if "context" in batch else {}
        padded = {
            name: pad_tensor(tensor, rows, sizes.get(name, length), fill[name]) if name in fill else tensor
            for name, tensor in batch.items()
        }
        scored = scored_positions(F.pad(padded["labels"][:, 1:], (0, 1), value=IGNORED))
        count = min(round_up(len(scored), 4), length)
        return padded | {"scored": F.pad(scored, (0, count - len(scored)), value=length - 1)}

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """Model inputs; embeddings in place of ids where a batch has audio.

        Padding on the right needs no mask, as nothing that counts comes after it; without one, attention is faster.
        """
        inputs: dict[str, Any] = {}
        if "positions" in batch:
            inputs = {"attention_mask": batch["mask"], "position_ids": batch["positions"]}
        if "audio_states" not in batch:
            return inputs | {"input_ids": batch["ids"]}
        embeddings = self.model.get_input_embeddings()(batch["ids"])
        assert self.audio is not None
        prefix = self.audio(batch["audio_states"]).to(embeddings.dtype)
        return inputs | {"inputs_embeds": embeddings.masked_scatter(batch["is_audio"][..., None], prefix)}

    def token_nll(self, model: Module, batch: Batch) -> torch.Tensor:
        """`[batch, positions]` nats, 0 where nothing is scored; positions that no row is scored at are left out."""
        logits, labels = self.scored_logits(model, batch)
        nll = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
        return nll.view(labels.shape)

    def target_logits(self, model: Module, batch: Batch) -> torch.Tensor:
        logits, labels = self.scored_logits(model, batch)
        return logits[labels != IGNORED]

    def scored_logits(self, model: Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits `[batch, positions, tokens]` and labels `[batch, positions]` of positions that a row is scored at."""
        labels = F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)  # of what follows each position
        scored = batch["scored"] if "scored" in batch else scored_positions(labels)
        labels = labels[:, scored]
        if "alphabet" in batch:
            labels = letter_indices(labels, batch["alphabet"])
        with narrow_head(self.model, batch["alphabet"]) if "alphabet" in batch else nullcontext():
            return self.position_logits(model, batch, scored), labels

    def position_logits(self, model: Module, batch: Batch, positions: torch.Tensor) -> torch.Tensor:
        """`[batch, positions, vocabulary]` at these positions alone: the head costs as much as layers do."""
        inputs = self.inputs(batch) | self.routing_inputs(model, batch)
        return model(**inputs, use_cache=False, logits_to_keep=positions).logits.float()

    def loss(self, model: Module, batch: Batch) -> tuple[torch.Tensor, int]:
        return self.summed_nll(model, batch), self.count_targets(batch)

    def summed_nll(self, model: Module, batch: Batch) -> torch.Tensor:
        return self.token_nll(model, batch).sum()

    def row_losses(self, model: Module, batch: Batch) -> torch.Tensor:
        return self.token_nll(model, batch).sum(1)

    def nll(self, model: Module, items: Sequence[Encoded]) -> list[tuple[float, int]]:
        """Summed nats and number of scored tokens of each item."""
        batch = self.collate(items)
        counts = (batch["labels"][:, 1:] != IGNORED).sum(1)
        return list(zip(self.token_nll(model, batch).double().sum(1).tolist(), counts.tolist()))

    def choice(self, model: Module, items: Sequence[Encoded], choices: tuple[str, ...]) -> torch.Tensor:
        """Log probability of each choice `[items, choices]`, renormalised over the choices.

        By their first tokens, or, where choices share one, by all of their tokens (without end-of-sequence).

        Raises:
            InputError: as `check_choices`.
        """
        self.check_choices(choices)
        ids = [self.tokens(choice) for choice in choices]
        first = [tokens[0] for tokens in ids]
        if len(set(first)) < len(first):
            return torch.stack([self.loglikelihood(model, items, tokens) for tokens in ids], 1).log_softmax(-1)
        batch = self.collate_prompts(items)
        last, place = (batch["mask"].sum(1) - 1).unique(return_inverse=True)
        return self.position_logits(model, batch, last)[torch.arange(len(items)), place][:, first].log_softmax(-1)

    def loglikelihood(self, model: Module, items: Sequence[Encoded], tokens: list[int]) -> torch.Tensor:
        """Log probability of these tokens after each prompt `[items]`."""
        scored = []
        for item in items:
            prompt = prompt_ids(item)
            labels = [IGNORED] * len(prompt) + tokens
            scored.append(replace(item, ids=prompt + tokens, labels=labels, length=len(labels)))
        return -self.token_nll(model, self.collate(scored)).sum(1)

    def text_columns(
        self,
        model: Module,
        items: Sequence[Encoded],
        limit: int,
        sampling: Sampling | None = None,
        in_place: InPlace | None = None,
        decoding: Decoding | None = None,
    ) -> list[dict[str, Any]]:
        """Continuations of the prompts; greedy unless `sampling` is given.

        Without end-of-sequence, or up to and with the letter that closes them.

        Args:
            in_place: (forward, rows, length) -> the forward to use, whose steps may stay in place.
        """
        batch = self.collate_prompts(items, left=True)

        def forward(inputs: dict[str, Any], cache: Any) -> Any:
            return model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)

        if in_place is not None:
            rows, width = batch["mask"].shape
            forward = in_place(forward, rows, width + limit)
        start = self.inputs(batch) | self.routing_inputs(model, batch), new_cache(model)
        if "alphabet" not in batch:
            written = decode_batch(forward, *start, self.end_id, limit, sampling)
            return [{"text": self.tokenizer.decode(row, clean_up_tokenization_spaces=False)} for row in written]
        ids = batch["alphabet"]
        letter = dict(zip(ids.tolist(), items[0].alphabet))
        closed = lambda written, logits: written[:, -1] == ids[-1]  # noqa: E731
        written = decode_batch(forward, *start, (), limit, sampling, stopping=closed, allowed=ids)
        return [{"text": "".join(letter[id] for id in row)} for row in written]


@contextmanager
def narrow_head(model: PreTrainedModel, ids: torch.Tensor) -> Iterator[None]:
    """Inside, the model's output embeddings, which no adapter wraps, give the logits of these tokens alone.

    A few letters of 49,152 tokens: the whole head would be a fifth of SmolLM2's work and most of its memory.
    """
    head = model.get_output_embeddings()
    head.forward = lambda hidden: F.linear(hidden, head.weight[ids], None if head.bias is None else head.bias[ids])
    try:
        yield
    finally:
        del head.forward


def scored_positions(labels: torch.Tensor) -> torch.Tensor:
    """Where any row of labels `[batch, length]` is scored."""
    return (labels != IGNORED).any(0).nonzero()[:, 0]


def pad_tensor(tensor: torch.Tensor, rows: int, length: int, value: float) -> torch.Tensor:
    """`[rows, length, …]` of `[fewer, shorter, …]`."""
    room = [*([0] * (2 * (tensor.dim() - 2))), 0, length - tensor.shape[1], 0, rows - tensor.shape[0]]
    return F.pad(tensor, room, value=value)


def prompt_ids(item: Encoded) -> list[int]:
    return [id for id, label in zip(item.ids, item.labels) if label == IGNORED]


def letter_indices(labels: torch.Tensor, alphabet: torch.Tensor) -> torch.Tensor:
    """Labels as places in the alphabet; what is ignored stays so."""
    places = (labels[..., None] == alphabet).int().argmax(-1)
    return torch.where(labels == IGNORED, labels, places)
