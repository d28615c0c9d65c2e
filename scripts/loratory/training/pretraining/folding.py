"""An ESMFold; it learns from whole records of chains, for their backbones."""

from __future__ import annotations

from itertools import chain
from typing import Any

from loratory.domains.contract import TaskOptions
from loratory.training.folding import train_folding
from loratory.training.job import Job
from loratory.training.pretrain import PretrainedModel


def read_corpus(domain: str, records: list[dict], task: TaskOptions) -> list[dict]:
    return records


def pretrain(
    corpora: dict[str, list[dict]], entry: Any, audio_encoder: None, job: Job
) -> tuple[PretrainedModel, list[dict]]:
    """An ESMFold; its corpora are records of chains with backbones."""
    model, tokenizer, curve = train_folding(chain.from_iterable(corpora.values()), entry.pretrain, job)
    return PretrainedModel(model, tokenizer), curve
