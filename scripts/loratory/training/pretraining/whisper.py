"""A model of Whisper's class with its decoder prompt and a small vocabulary."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast, WhisperConfig, WhisperForConditionalGeneration

from loratory.bases.families.whisper import PROMPT, Family
from loratory.domains.contract import Example
from loratory.domains.examples import domain_examples
from loratory.training.job import Job
from loratory.training.pretrain import UNTRAINED, byte_pair_tokenizer, prefixed_parameters, train_on_corpora

read_corpus = partial(domain_examples, family=Family.family)


def pretrain(
    corpora: dict[str, list[Example]], entry: Any, audio_encoder: None, job: Job
) -> tuple[Family, list[dict]]:
    """A model of Whisper's class with its decoder prompt and a small vocabulary."""
    texts = (example.target for examples in corpora.values() for example in examples)
    special = ["<|endoftext|>", *PROMPT]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_pair_tokenizer(texts, entry.pretrain.vocabulary, special, letters=False),
        eos_token=special[0],
        bos_token=special[0],
        pad_token=special[0],
        additional_special_tokens=list(PROMPT),
    )
    torch.manual_seed(entry.pretrain.seed)
    ids = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 1}
    config = WhisperConfig(**{**entry.pretrain.architecture, **ids, "vocab_size": len(tokenizer)})
    config.suppress_tokens = config.begin_suppress_tokens = None
    model = WhisperForConditionalGeneration(config)
    model.generation_config.forced_decoder_ids = None  # type: ignore[attr-defined]  # Whisper's own
    manifest = UNTRAINED | {"whisper": entry.whisper and entry.whisper.model_dump()}
    model.to(job.device)  # type: ignore[arg-type]  # transformers' stub of `to`
    base = Family("pretrain", manifest, model, tokenizer)
    return base, train_on_corpora(
        base, prefixed_parameters(model, "model"), corpora, entry.pretrain.training, entry.pretrain.seed, job
    )
