"""A Llama-style decoder, with or without an audio prefix."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from loratory.bases.families.causal import Family
from loratory.domains.contract import Example
from loratory.domains.examples import domain_examples
from loratory.training.job import Job
from loratory.training.pretrain import (
    UNTRAINED,
    byte_pair_tokenizer,
    new_audio_prefix,
    prefixed_parameters,
    train_on_corpora,
)

read_corpus = partial(domain_examples, family=Family.family)


def pretrain(
    corpora: dict[str, list[Example]], entry: Any, audio_encoder: Path | str | None, job: Job
) -> tuple[Family, list[dict]]:
    """A Llama-style decoder; with `audio_encoder`, the folder of a Whisper base, an audio prefix is trained with it.

    Args:
        corpora: {domain: examples}. Every step takes as many batches of each, and domains weigh alike.
    """
    texts = (example.prompt + example.target for examples in corpora.values() for example in examples)
    special = ["<|pad|>", "<|begin|>", "<|end|>"]
    core = byte_pair_tokenizer(texts, entry.pretrain.vocabulary, special, letters=True)
    core.post_processor = TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=special[0],
        bos_token=special[1],
        eos_token=special[2],
    )
    torch.manual_seed(entry.pretrain.seed)
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = LlamaConfig(**{**entry.pretrain.architecture, **ids, "vocab_size": len(tokenizer)})
    model = LlamaForCausalLM(config)
    audio = (
        new_audio_prefix(audio_encoder, entry.audio, config.hidden_size, job.device)
        if audio_encoder is not None
        else None
    )
    model.to(job.device)  # type: ignore[arg-type]  # transformers' stub of `to`
    base = Family("pretrain", UNTRAINED, model, tokenizer, audio)
    parameters = prefixed_parameters(model, "model") | (
        prefixed_parameters(audio.projector, "projector") if audio else {}
    )
    return base, train_on_corpora(base, parameters, corpora, entry.pretrain.training, entry.pretrain.seed, job)
