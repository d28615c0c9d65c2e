"""An ESM-2 (Lin et al. 2023, doi:10.1126/science.ade2574); it learns to guess hidden residues."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import EsmForMaskedLM

from loratory.bases.fair_esm import esm_config, esm_tokenizer
from loratory.bases.families.masked import Family
from loratory.domains.contract import Example
from loratory.domains.examples import domain_examples
from loratory.training.job import Job
from loratory.training.pretrain import UNTRAINED, prefixed_parameters, train_on_corpora

read_corpus = partial(domain_examples, family="masked")


def pretrain(
    corpora: dict[str, list[Example]], entry: Any, audio_encoder: None, job: Job
) -> tuple[Family, list[dict]]:
    """A model of ESM-2's class with its vocabulary."""
    with TemporaryDirectory() as folder:
        tokenizer = esm_tokenizer(Path(folder))
    torch.manual_seed(entry.pretrain.seed)
    model = EsmForMaskedLM(esm_config(**entry.pretrain.architecture))
    model.to(job.device)  # type: ignore[arg-type]  # transformers' stub of `to`
    base = Family("pretrain", UNTRAINED, model, tokenizer)
    parameters = prefixed_parameters(model, "model")
    return base, train_on_corpora(base, parameters, corpora, entry.pretrain.training, entry.pretrain.seed, job)
