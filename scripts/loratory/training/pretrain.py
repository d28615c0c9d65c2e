"""Training a small base from nothing on general data, so that a study needs no download.

Such a base shows that the pipeline works; it makes no scientific claim.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerBase, WhisperConfig

from loratory import registry
from loratory.bases.audio import AudioPrefix
from loratory.bases.core import CURVE, Base, family_class, load_base
from loratory.bases.prepare import write_manifest
from loratory.data.batching import Batches
from loratory.data.files import atomic_write, write_json
from loratory.domains.contract import Example
from loratory.training.encoding import split_items
from loratory.training.fit import Loss, MicroBatch, step_seed, train_model
from loratory.training.job import Job
from loratory.training.schedule import Training

UNTRAINED = {"weights_sha256": "", "family": None}


def byte_pair_tokenizer(texts: Iterable[str], vocabulary: int, special: list[str], letters: bool) -> Tokenizer:
    """Byte-level BPE.

    Args:
        letters: capital letters and digits are tokens of their own, so that a residue is always one token and text
            still merges.
    """
    tokenizer = Tokenizer(models.BPE())
    split = [pre_tokenizers.Split(Regex("[A-Z0-9]"), "isolated")] if letters else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def new_audio_prefix(whisper_folder: Path | str, options: Any, width: int, device: str) -> AudioPrefix:
    """A Whisper base's encoder, frozen, with an untrained projector to embeddings of `width`."""
    whisper = load_base(whisper_folder, precision="fp32").model  # as the prefix holds it, whatever the base's
    audio = AudioPrefix(cast(WhisperConfig, whisper.config), options.stack, width, options.hidden)
    audio.encoder.load_state_dict(whisper.model.encoder.state_dict())
    audio.encoder.requires_grad_(False).eval()
    return audio.to(device)


def train_projector(folder: Path, corpus: list[Example], options: Any, audio_encoder: Path | str, job: Job) -> None:
    """Gives a prepared causal base (changed in place) an audio prefix, whose encoder is that of the Whisper base at
    `audio_encoder`: the projector learns to transcribe, all else is frozen.

    Stage one of SLAM-ASR (Ma et al. 2024, arXiv:2402.08846).
    """
    base = load_base(folder, job.device)
    torch.manual_seed(0)
    base.audio = audio = new_audio_prefix(audio_encoder, options, base.model.config.hidden_size, job.device)
    parameters = prefixed_parameters(audio.projector, "projector")
    curve = train_on_corpora(base, parameters, {"speech": corpus}, options.training, 0, job)
    audio.cpu().save(folder / "audio")
    write_json(folder / "audio" / CURVE, curve)


def word_tokenizer(texts: Iterable[str], vocabulary: int, special: list[str]) -> Tokenizer:
    """One token a blank-separated word (a k-mer)."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordLevelTrainer(vocab_size=vocabulary, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


class PretrainedModel:
    """A model and its tokenizer, before it is a base."""

    audio = None

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        self.model, self.tokenizer = model, tokenizer


def train_on_corpora(
    base: Base,
    parameters: dict[str, torch.nn.Parameter],
    corpora: Mapping[str, list[Example]],
    training: Training,
    seed: int,
    job: Job,
) -> list[dict]:
    """Trains on every corpus's targets."""
    encoded = {name: [base.encode(example) for example in examples] for name, examples in corpora.items()}
    plans = {
        name: Batches([item.length for item in items], training.batch_tokens, seed) for name, items in encoded.items()
    }

    def micro_batches(step: int) -> list[MicroBatch]:
        found = []
        for (name, items), number in product(encoded.items(), training.batch_numbers(step)):
            for part in split_items([items[i] for i in plans[name](number)], training):
                batch = base.training_batch(part, step_seed(seed, number))
                found.append(MicroBatch(name, batch, base.count_targets(batch)))
        return found

    base.model.train()
    curve = train_model(
        parameters,
        micro_batches,
        lambda micro: Loss(*base.loss(base.model, micro.batch)),
        training,
        seed,
        *job.folder_and_title,
        made_with=job.made_with,
    )
    base.model.eval()
    return curve


def prefixed_parameters(module: torch.nn.Module, prefix: str) -> dict[str, torch.nn.Parameter]:
    return {f"{prefix}.{name}": parameter for name, parameter in module.named_parameters()}


def pretrain_base(
    name: str,
    entry: Any,
    corpora: Mapping[str, list],
    audio_encoder: Path | str | None,
    job: Job,
    out: Path | str,
    **facts: Any,
) -> None:
    """Trains a base and writes its folder, whole: safetensors, config, tokenizer, manifest, learning curve."""
    base, curve = registry.load_module("pretraining", entry.family).pretrain(corpora, entry, audio_encoder, job)
    with atomic_write(out) as aside:
        aside.mkdir(parents=True)
        dtype = getattr(torch, entry.pretrain.dtype)
        base.model.to(dtype).save_pretrained(aside)
        base.tokenizer.save_pretrained(aside)
        if base.audio is not None:
            base.audio.cpu().to(dtype).save(aside / "audio")
        family_class(entry.family).complete_folder(aside)
        write_json(aside / CURVE, curve)
        size = sum(p.numel() for p in base.model.parameters())
        write_manifest(aside, name, entry, origin="pretrain", parameters=size, **facts)
    job.remove_checkpoints()
