"""Whisper and models of its class: log-mel features in, transcript out (Radford et al. 2022, arXiv:2212.04356)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from hashlib import blake2b
from itertools import islice, pairwise
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from torch.nn import Module
from transformers import PreTrainedModel, PreTrainedTokenizerBase, WhisperForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.whisper.modeling_whisper import WhisperEncoder
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from loratory.bases.beams import Written, decode_beams, decode_scored
from loratory.bases.core import (
    IGNORED,
    Base,
    Batch,
    Encoded,
    InPlace,
    check_clip,
    pad_rows,
    too_long_error,
)
from loratory.bases.decoding import Sampling, new_cache, repeat_rows
from loratory.bases.options import Decoding, WhisperOptions
from loratory.data.audio import HOP, RATE, SAMPLES_PER_POSITION, clip_features, clip_samples, read_clip
from loratory.data.clips import Clip, Piece, as_clip, is_changed
from loratory.data.texts import compression_ratio
from loratory.domains.contract import Example
from loratory.errors import InputError
from loratory.registry import unknown_name_error

if TYPE_CHECKING:
    from loratory.bases.options import BaseEntry

PROMPT = ("<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>")
NO_SPEECH = ("<|nospeech|>", "<|nocaptions|>")  # one token, as OpenAI and as Hugging Face call it
TIMESTAMPS = "<|0.00|>"  # the first of them; they are the last ids
ENGLISH_ONLY = 51864  # tokens of OpenAI's English-only checkpoints; the multilingual ones have more


class Family(Base):
    """Language and task are fixed by the decoder prompt: children's speech is easily taken for another language."""

    family = "whisper"
    model_class = WhisperForConditionalGeneration
    needed_token = "eos_token"

    def __init__(
        self, folder: Path | str, manifest: dict[str, Any], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ):
        super().__init__(folder, manifest, model, tokenizer)
        self.options = WhisperOptions(**manifest.get("whisper") or {})
        vocabulary = tokenizer.get_vocab()
        self.prompt_ids = [vocabulary[token] for token in prompt_tokens(folder, model, vocabulary, self.options)]
        self.no_speech_id = next((vocabulary[token] for token in NO_SPEECH if token in vocabulary), None)
        self.timestamps = vocabulary.get(TIMESTAMPS, model.config.vocab_size)
        self.suppressed = suppressed_logits(folder, model, self.options.suppress)
        if self.options.window == "clip":
            model.model.encoder = ClipEncoder.from_encoder(model.model.encoder)

    @staticmethod
    def architectures(model_type: str) -> set[str]:
        return {"WhisperForConditionalGeneration"} if model_type == "whisper" else set()

    @classmethod
    def manifest_facts(cls, entry: BaseEntry) -> dict[str, Any]:
        """The options of decoding, so that the folder can be opened without a config."""
        return {"whisper": (entry.whisper or WhisperOptions()).model_dump()}

    @property
    def context(self) -> int:
        """Of the decoder."""
        return self.model.config.max_target_positions

    @property
    def frames(self) -> int:
        return 2 * self.model.config.max_source_positions

    def decoder_prompt(self) -> list[int]:
        """The decoder's first tokens."""
        return list(self.prompt_ids)

    def encode(self, example: Example) -> Encoded:
        samples = clip_samples(example.audio)
        check_clip(f"{self.folder}:{example.id}", samples, self.frames)
        text = self.tokens(example.target) if example.target else []
        prompt, target = self.decoder_prompt(), [*text, self.tokenizer.eos_token_id]
        if len(prompt) + len(target) > self.context:
            raise too_long_error(self.folder, example.id, len(prompt) + len(target), self.context)
        labels = [IGNORED] * len(prompt) + target
        return Encoded(prompt + target, labels, self.encoder_positions(samples) + len(labels), example.audio)

    def replace_clip(self, item: Encoded, clip: Clip) -> Encoded:
        return replace(item, audio=clip, length=self.encoder_positions(clip_samples(clip)) + len(item.labels))

    def longest_clip(self, item: Encoded) -> float:
        return self.frames * HOP / RATE

    def encode_question(self, example: Example, decoding: Decoding) -> Encoded:
        """A recording longer than the window has no target: no window's own words are known."""
        samples = clip_samples(example.audio)
        if samples <= self.frames * HOP or decoding.long_form == "refuse":
            return self.encode(example)
        prompt, end = self.decoder_prompt(), self.tokenizer.eos_token_id
        length = ceil(samples / (self.frames * HOP)) * (self.frames // 2 + len(prompt) + 1)
        return Encoded([*prompt, end], [IGNORED] * len(prompt) + [end], length, example.audio)

    def keeps_rows(self, decoding: Decoding) -> bool:
        """Not where one transcript is asked for anew, or one recording has several windows."""
        return not decoding.temperatures and decoding.long_form == "refuse"

    def windows(self, item: Encoded) -> list[Encoded]:
        """Windows that end where the sound is quietest, so that few words are cut in two."""
        clip, window = item.audio, self.frames * HOP
        if clip_samples(clip) <= window:
            return [item]
        facts = vars(as_clip(clip))
        pieces = [
            Piece(**facts, first=first, last=last) for first, last in pairwise(quiet_cuts(read_clip(clip), window))
        ]
        lengths = [self.encoder_positions(piece.last - piece.first) + len(item.labels) for piece in pieces]
        return [replace(item, audio=piece, length=length) for piece, length in zip(pieces, lengths)]

    def encoder_positions(self, samples: int) -> int:
        """Positions `[frames / 2]` of the encoder for a clip of so many samples."""
        if self.options.window == "full":
            return self.frames // 2
        return min(self.frames // 2, ceil((samples + self.options.silence * RATE) / SAMPLES_PER_POSITION))

    def audio_features(self, items: Sequence[Encoded]) -> torch.Tensor:
        """Log-mel features `[batch, n_mels, frames]`, as long as the longest item's; each clip is computed alone."""
        frames = 2 * max(item.length - len(item.labels) for item in items)
        n_mels = self.model.config.num_mel_bins
        for item in items:
            check_clip(as_clip(item.audio).path, clip_samples(item.audio), self.frames)
        clips = [
            (clip_features if is_changed(item.audio) else stored_features)(item.audio, n_mels, self.frames)[:, :frames]
            for item in items
        ]
        return torch.from_numpy(np.stack(clips)).to(self.device, self.model.dtype)

    def collate(self, items: Sequence[Encoded]) -> Batch:
        return {
            "features": self.audio_features(items),
            "ids": pad_rows([item.ids for item in items], self.tokenizer.eos_token_id, self.device),
            # the decoder does not read the last token, which nothing follows
            "mask": pad_rows([[1] * (len(item.ids) - 1) for item in items], 0, self.device),
            "labels": pad_rows([item.labels for item in items], IGNORED, self.device),
        }

    def trial_batch(self) -> Batch:
        """A short tone and a word."""
        with TemporaryDirectory() as folder:
            clip = str(Path(folder, "tone.wav"))
            soundfile.write(clip, np.sin(np.arange(RATE // 4) / 6), RATE)
            return self.collate([self.encode(Example("trial", "", "", "yes", audio=clip))])

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """Model inputs without the last token, which nothing follows; padding on the right needs no mask."""
        return {"input_features": batch["features"], "decoder_input_ids": batch["ids"][:, :-1], "use_cache": False}

    def target_logits(self, model: Module, batch: Batch) -> torch.Tensor:
        logits = model(**self.inputs(batch), **self.routing_inputs(model, batch)).logits
        return logits[batch["labels"][:, 1:] != IGNORED].float()

    def loss(self, model: Module, batch: Batch) -> tuple[torch.Tensor, int]:
        labels = batch["labels"][:, 1:]
        return self.target_nll(model, batch, "sum"), int((labels != IGNORED).sum())

    def row_losses(self, model: Module, batch: Batch) -> torch.Tensor:
        return self.target_nll(model, batch, "none").view(len(batch["labels"]), -1).sum(1)

    def target_nll(self, model: Module, batch: Batch, reduction: str) -> torch.Tensor:
        """Nats of the targets, summed up or of each position of all rows."""
        logits = model(**self.inputs(batch), **self.routing_inputs(model, batch)).logits
        labels = batch["labels"][:, 1:].flatten()
        return F.cross_entropy(logits.flatten(0, 1).float(), labels, ignore_index=IGNORED, reduction=reduction)

    def text_columns(
        self,
        model: Module,
        items: Sequence[Encoded],
        limit: int,
        sampling: Sampling | None = None,
        in_place: InPlace | None = None,
        decoding: Decoding | None = None,
    ) -> list[dict[str, Any]]:
        """`text`; and `no_speech`, whether all windows of an item are silent, where `decoding` asks for it."""
        parts, decoding = [self.windows(item) for item in items], decoding or Decoding()
        written = iter(self.transcribe(model, [part for each in parts for part in each], limit, decoding, sampling))
        columns: list[dict[str, Any]] = []
        for each in parts:
            own = [*islice(written, len(each))]
            text = " ".join(filter(None, (self.transcript_text(one.ids) for one in own)))
            columns.append({"text": text})
            if decoding.no_speech is not None:
                columns[-1]["no_speech"] = all(is_silent(one, decoding) for one in own)
        return columns

    def transcript_text(self, ids: list[int]) -> str:
        """The text of written ids, without times."""
        spoken = [id for id in ids if id < self.timestamps]
        return cast(str, self.tokenizer.decode(spoken, skip_special_tokens=True)).strip()

    def transcribe(
        self,
        model: Module,
        items: Sequence[Encoded],
        limit: int,
        decoding: Decoding,
        sampling: Sampling | None = None,
    ) -> list[Written]:
        """What is written of each window; one that fails a threshold is sampled, alone and at rising temperatures.

        What is drawn depends on the clip and the temperature, and on no other clip of the batch.
        """
        if decoding.no_speech is not None and self.no_speech_id is None:
            what, fix = "the tokenizer lacks a token for silence", "leave `evaluation.decoding.no_speech` out"
            raise InputError(self.folder, what, expected=" or ".join(NO_SPEECH), fix=fix)
        found = self.write(model, items, limit, decoding.beams, sampling)
        for temperature in decoding.temperatures:
            for place, item in enumerate(items):
                failed = fails_threshold(self.transcript_text(found[place].ids), found[place].mean_log_prob, decoding)
                if failed and not is_silent(found[place], decoding):
                    drawn = Sampling(clip_seed(item.audio, temperature), temperature)
                    found[place] = self.write(model, [item], limit, 1, drawn)[0]
        return found

    def generate_ids(
        self, model: Module, items: Sequence[Encoded], limit: int, sampling: Sampling | None = None
    ) -> list[list[int]]:
        """Ids that follow the prompt, without end; greedy unless `sampling` is given, and without fallback."""
        return [one.ids for one in self.write(model, items, limit, 1, sampling)]

    @torch.no_grad()
    def write(
        self, model: Module, items: Sequence[Encoded], limit: int, beams: int, sampling: Sampling | None = None
    ) -> list[Written]:
        """What follows the prompt, at most `limit` tokens: the best of `beams`, if it is not sampled."""
        beams = beams if sampling is None else 1
        encoded = cast(PreTrainedModel, model).get_encoder()(self.audio_features(items))
        if beams > 1:
            encoded = repeat_rows(encoded, beams)
        prompt = torch.tensor([self.decoder_prompt()] * len(items) * beams, device=self.device)
        limit = min(limit, self.context - prompt.shape[1])
        positions = torch.arange(prompt.shape[1], device=self.device).expand(len(prompt), -1)
        begin = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt), "position_ids": positions}
        silence: list[float | None] = [None] * len(items)
        first, later = (each.to(self.device) for each in self.suppressed) if self.suppressed else (None, None)

        def forward(inputs: dict[str, Any], cache: Any) -> Any:
            output = model(
                encoder_outputs=encoded,
                decoder_input_ids=inputs["input_ids"],
                past_key_values=cache,
                use_cache=True,
            )
            if inputs is begin and self.no_speech_id is not None:  # what follows the first token of the prompt
                silence[:] = output.logits[::beams, 0].float().softmax(-1)[:, self.no_speech_id].tolist()
            if self.suppressed:
                output.logits = output.logits[:, -1:] + (first if inputs is begin else later)  # `begin` comes once
            return output

        start = begin, new_cache(model), self.tokenizer.eos_token_id, limit
        written = decode_beams(forward, *start, beams) if beams > 1 else decode_scored(forward, *start, sampling)
        return [replace(one, no_speech=share) for one, share in zip(written, silence)]


def is_silent(one: Written, decoding: Decoding) -> bool:
    """Whether openai-whisper's `transcribe` would skip the window: silence is likely, and the text is a guess."""
    if decoding.no_speech is None or one.no_speech is None:
        return False
    is_guess = decoding.log_prob is None or one.mean_log_prob <= decoding.log_prob
    return one.no_speech > decoding.no_speech and is_guess


def fails_threshold(text: str, log_prob: float, decoding: Decoding) -> bool:
    """Whether a transcript repeats itself, or is a guess."""
    too_even = decoding.compression_ratio is not None and compression_ratio(text) > decoding.compression_ratio
    return too_even or (decoding.log_prob is not None and log_prob < decoding.log_prob)


def clip_seed(audio: Clip | str, temperature: float) -> int:
    """Of what is sampled: the recording by its name and not by its folder, so that a moved corpus changes nothing."""
    known = replace(as_clip(audio), path=Path(as_clip(audio).path).name)
    return int.from_bytes(blake2b(f"{known} {temperature}".encode(), digest_size=7).digest())


def quiet_cuts(samples: np.ndarray, window: int) -> list[int]:
    """Where a recording is cut into pieces of at most `window` samples: its first, the cuts, and its end.

    A cut lies in the middle of the quietest tenth of a second of the last sixth of a window (5 of 30 s).
    """
    cuts, tenth = [0], RATE // 10
    while len(samples) - cuts[-1] > window:
        first, last = cuts[-1] + window * 5 // 6, cuts[-1] + window
        frames = np.lib.stride_tricks.sliding_window_view(samples[first:last], tenth)[:: tenth // 2]
        cuts.append(first + int(np.square(frames).mean(1).argmin()) * (tenth // 2) + tenth // 2)
    return [*cuts, len(samples)]


stored_features = lru_cache(maxsize=1024)(clip_features)


class ClipEncoder(WhisperEncoder):
    """Whisper's encoder for windows of any even number of frames: it reads as many positions as there are."""

    @classmethod
    def from_encoder(cls, encoder: WhisperEncoder) -> ClipEncoder:
        """The same weights (not copies), under the same names."""
        with torch.device("meta"):
            clip = cls(encoder.config)
        clip.load_state_dict(encoder.state_dict(), assign=True)
        return clip.train(encoder.training)

    def forward(
        self, input_features: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutput:
        """`[batch, n_mels, frames]` → `[batch, frames / 2, d_model]`; nothing is masked, as in Whisper's training."""
        states = F.gelu(self.conv2(F.gelu(self.conv1(input_features)))).transpose(1, 2)
        states = states + self.embed_positions.weight[: states.shape[1]]
        states = F.dropout(states, self.dropout, self.training)
        for layer in self.layers:
            states = layer(states, None, **kwargs)
        return BaseModelOutput(last_hidden_state=self.layer_norm(states))


def prompt_tokens(
    folder: Path | str, model: PreTrainedModel, vocabulary: dict[str, int], options: WhisperOptions
) -> list[str]:
    """The decoder prompt: language and task only where the checkpoint was trained with them.

    Raises:
        InputError: the base knows no such language or task, or its tokenizer lacks a token of the prompt.
    """
    languages = [code for code in LANGUAGES if f"<|{code}|>" in vocabulary]
    mode = [f"<|{options.language}|>", f"<|{options.task}|>"]
    if not is_multilingual(model, languages):
        if mode != list(PROMPT[1:3]):
            given, fix = f"{options.language}, {options.task}", "take a multilingual base"
            raise InputError(f"{folder}: whisper", "an English-only base", given, "en, transcribe", fix)
        mode = []
    elif options.language not in languages:
        raise unknown_name_error(f"{folder}: whisper.language", "language of this base", options.language, languages)
    tokens = [PROMPT[0], *mode, PROMPT[3]]
    for token in tokens:
        if token not in vocabulary:
            what = "the tokenizer lacks a token of the decoder prompt"
            raise InputError(folder, what, token, fix="give the tokenizer that the weights were trained with")
    return tokens


def is_multilingual(model: PreTrainedModel, languages: list[str]) -> bool:
    """By the folder's config, else by OpenAI's sizes of vocabularies, else by whether languages have tokens.

    Tokens alone decide nothing: English-only checkpoints have tokens of languages too, which were never trained.
    """
    for config in (model.generation_config, model.config):
        if (stated := getattr(config, "is_multilingual", None)) is not None:
            return stated
    size = model.config.vocab_size
    return size > ENGLISH_ONLY if size >= ENGLISH_ONLY else bool(languages)


def suppressed_logits(
    folder: Path | str, model: PreTrainedModel, suppress: bool | tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """What is added to the logits `[vocabulary]` of the first token and of later ones: 0, or -inf where the given ids,
    or OpenAI's default suppression (`suppress_tokens="-1"`, `suppress_blank`), forbid the token. None: nothing.

    Raises:
        InputError: the vocabulary lacks an id, or is not one of OpenAI's, which their suppression is defined for.
    """
    size = model.config.vocab_size
    if not suppress:
        return None
    if isinstance(suppress, tuple):
        if max(suppress) >= size:
            what, expected = "the base has no such token", f"ids below {size}"
            raise InputError(f"{folder}: whisper.suppress", what, max(suppress), expected)
        given = torch.zeros(size)
        given[[*suppress]] = -torch.inf
        return given, given
    from whisper.tokenizer import get_tokenizer

    multilingual = size > ENGLISH_ONLY
    known = get_tokenizer(multilingual, num_languages=max(0, size - ENGLISH_ONLY + 99 - multilingual))
    if known.encoding.n_vocab != size:
        what, expected = "suppression is defined for OpenAI's vocabularies alone", "51864, 51865 or 51866 tokens"
        raise InputError(f"{folder}: whisper.suppress", what, f"{size} tokens", expected, "set it to false")
    never = {known.transcribe, known.translate, known.sot, known.sot_prev, known.sot_lm, known.no_speech}
    later = torch.zeros(size)
    later[[*never, *known.non_speech_tokens]] = -torch.inf
    first = later.clone()
    first[[*known.encode(" "), known.eot]] = -torch.inf
    return first, later
