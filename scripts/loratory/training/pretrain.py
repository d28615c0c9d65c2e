"""Training a small base from nothing on general data, so that a study needs no download.

Such a base shows that the pipeline works; it makes no scientific claim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from loratory.bases.audio import AudioPrefix
from loratory.bases.core import IGNORED, Base, family_class, load_base
from loratory.bases.families.causal import Family as Causal
from loratory.bases.families.whisper import PROMPT
from loratory.bases.families.whisper import Family as Whisper
from loratory.bases.prepare import write_manifest
from loratory.data.batching import Batches
from loratory.data.files import atomic_write, write_json
from loratory.domains.contract import Example
from loratory.training.fit import Loss, MicroBatch, train_model
from loratory.training.job import Job
from loratory.training.schedule import Training

UNTRAINED = {"weights_sha256": "", "family": None}
MASKED = 0.15  # share of tokens that the masked language model guesses


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


def word_tokenizer(texts: Iterable[str], vocabulary: int, special: list[str]) -> Tokenizer:
    """One token a blank-separated word (a k-mer)."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordLevelTrainer(vocab_size=vocabulary, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def pretrain_causal(
    corpora: dict[str, list[Example]], entry: Any, audio_encoder: Path | str | None, job: Job
) -> tuple[Causal, list[dict]]:
    """A Llama-style decoder; with `audio_encoder`, the folder of a Whisper base, an audio prefix is trained with it.

    Args:
        corpora: {domain: examples}. Every step takes one batch of each, so domains weigh alike.
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
    base = Causal("pretrain", UNTRAINED, model, tokenizer, audio)
    parameters = prefixed_parameters(model, "model") | (
        prefixed_parameters(audio.projector, "projector") if audio else {}
    )
    return base, train_on_corpora(base, parameters, corpora, entry.pretrain.training, entry.pretrain.seed, job)


def new_audio_prefix(whisper_folder: Path | str, options: Any, width: int, device: str) -> AudioPrefix:
    """A Whisper base's encoder, frozen, with an untrained projector to embeddings of `width`."""
    whisper = load_base(whisper_folder, dtype=torch.float32).model  # as the prefix holds it, whatever the base's
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
    write_json(folder / "audio" / "curve.json", curve)


def pretrain_whisper(
    corpora: dict[str, list[Example]], entry: Any, audio_encoder: None, job: Job
) -> tuple[Whisper, list[dict]]:
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
    base = Whisper("pretrain", manifest, model, tokenizer)
    return base, train_on_corpora(
        base, prefixed_parameters(model, "model"), corpora, entry.pretrain.training, entry.pretrain.seed, job
    )


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
        return [MicroBatch(n, base.collate([items[i] for i in plans[n](step)])) for n, items in encoded.items()]

    base.model.train()
    curve = train_model(
        parameters,
        micro_batches,
        lambda micro: Loss(*base.loss(base.model, micro.batch)),
        training,
        seed,
        *job.folder_and_title,
    )
    base.model.eval()
    return curve


def pretrain_encoder(
    corpora: dict[str, list[Example]], entry: Any, audio_encoder: None, job: Job
) -> tuple[PretrainedModel, list[dict]]:
    """A BERT-like masked language model over k-mers (Devlin et al. 2018, arXiv:1810.04805)."""
    texts = [example.prompt for examples in corpora.values() for example in examples]
    special = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer(texts, entry.pretrain.vocabulary, special),
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        unk_token="[UNK]",
    )
    template = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    tokenizer.backend_tokenizer.post_processor = template
    training, seed = entry.pretrain.training, entry.pretrain.seed
    torch.manual_seed(seed)
    config = BertConfig(**{**entry.pretrain.architecture, "vocab_size": len(tokenizer), "pad_token_id": 0})
    model = BertForMaskedLM(config)
    model.to(job.device)  # type: ignore[arg-type]  # transformers' stub of `to`
    ids = [tokenizer(text, truncation=True, max_length=config.max_position_embeddings)["input_ids"] for text in texts]
    plan = Batches([len(row) for row in ids], training.batch_tokens, seed)

    def micro_batches(step: int) -> list[MicroBatch]:
        rows = [ids[i] for i in plan(step)]
        return [MicroBatch("masked", masked_batch(rows, tokenizer, len(special), seed, step, job.device))]

    def loss(micro: MicroBatch) -> Loss:
        batch = micro.batch
        logits = model(input_ids=batch["ids"], attention_mask=batch["mask"]).logits
        nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="sum")
        return Loss(nll, max(1, int((batch["labels"] != IGNORED).sum())))

    model.train()
    curve = train_model(
        prefixed_parameters(model, "model"),
        micro_batches,
        loss,
        training,
        seed,
        *job.folder_and_title,
    )
    return PretrainedModel(model.eval(), tokenizer), curve


def pretrain_folding(
    corpora: dict[str, list[dict]], entry: Any, audio_encoder: None, job: Job
) -> tuple[PretrainedModel, list[dict]]:
    """An ESMFold; its corpora are records of chains with backbones."""
    from loratory.training.folding import train_folding

    model, tokenizer, curve = train_folding(chain.from_iterable(corpora.values()), entry.pretrain, job)
    return PretrainedModel(model, tokenizer), curve


class PretrainedModel:
    """A model and its tokenizer, before it is a base."""

    audio = None

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        self.model, self.tokenizer = model, tokenizer


def masked_batch(
    rows: list[list[int]], tokenizer: PreTrainedTokenizerFast, n_special: int, seed: int, step: int, device: str
) -> dict[str, torch.Tensor]:
    """A batch with 15 % of the k-mers hidden: 80 % as the mask token, 10 % as another k-mer, 10 % as they are."""
    from loratory.bases.core import pad_rows

    random = torch.Generator().manual_seed(seed * 1_000_003 + step)
    ids, mask = pad_rows(rows, 0, "cpu"), pad_rows([[1] * len(row) for row in rows], 0, "cpu")
    chosen = (torch.rand(ids.shape, generator=random) < MASKED) & (ids >= n_special)
    labels = ids.masked_fill(~chosen, IGNORED)
    fate = torch.rand(ids.shape, generator=random)
    other = torch.randint(n_special, len(tokenizer), ids.shape, generator=random)
    ids = torch.where(chosen & (fate < 0.8), tokenizer.mask_token_id, ids)
    ids = torch.where(chosen & (fate >= 0.9), other, ids)
    return {"ids": ids.to(device), "mask": mask.to(device), "labels": labels.to(device)}


def prefixed_parameters(module: torch.nn.Module, prefix: str) -> dict[str, torch.nn.Parameter]:
    return {f"{prefix}.{name}": parameter for name, parameter in module.named_parameters()}


PRETRAIN: dict[str, Callable[..., tuple[Any, list[dict]]]] = {
    "causal": pretrain_causal,
    "whisper": pretrain_whisper,
    "encoder": pretrain_encoder,
    "folding": pretrain_folding,
}


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
    base, curve = PRETRAIN[entry.family](corpora, entry, audio_encoder, job)
    with atomic_write(out) as aside:
        aside.mkdir(parents=True)
        dtype = getattr(torch, entry.pretrain.dtype)
        base.model.to(dtype).save_pretrained(aside)
        base.tokenizer.save_pretrained(aside)
        if base.audio is not None:
            base.audio.cpu().to(dtype).save(aside / "audio")
        family_class(entry.family).complete_folder(aside)
        write_json(aside / "curve.json", curve)
        size = sum(p.numel() for p in base.model.parameters())
        write_manifest(aside, name, entry, origin="pretrain", parameters=size, **facts)
    job.remove_checkpoints()
