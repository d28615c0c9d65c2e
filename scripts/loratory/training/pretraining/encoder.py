"""A BERT-like masked language model over k-mers (Devlin et al. 2018, arXiv:1810.04805)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from loratory.bases.core import IGNORED, pad_rows
from loratory.bases.families.masked import HIDDEN, MASKED, REPLACED
from loratory.data.batching import Batches, split_batch
from loratory.domains.contract import Example
from loratory.domains.examples import domain_examples
from loratory.training.fit import Loss, MicroBatch, train_model
from loratory.training.job import Job
from loratory.training.pretrain import PretrainedModel, prefixed_parameters, word_tokenizer

read_corpus = partial(domain_examples, family="encoder")


def pretrain(
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
        found = []
        for number in training.batch_numbers(step):
            rows = [ids[i] for i in plan(number)]
            batch = masked_batch(rows, tokenizer, len(special), seed, number, job.device)
            for part in split_batch([*map(len, rows)], training.micro_batch_tokens):
                own = {name: tensor[part] for name, tensor in batch.items()}
                found.append(MicroBatch("masked", own, count_masked(own)))
        return found

    def loss(micro: MicroBatch) -> Loss:
        batch = micro.batch
        logits = model(input_ids=batch["ids"], attention_mask=batch["mask"]).logits
        nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="sum")
        return Loss(nll, count_masked(batch))

    model.train()
    curve = train_model(
        prefixed_parameters(model, "model"),
        micro_batches,
        loss,
        training,
        seed,
        *job.folder_and_title,
        made_with=job.made_with,
    )
    return PretrainedModel(model.eval(), tokenizer), curve


def count_masked(batch: dict[str, torch.Tensor]) -> int:
    return int((batch["labels"] != IGNORED).sum())


def masked_batch(
    rows: list[list[int]], tokenizer: PreTrainedTokenizerFast, n_special: int, seed: int, number: int, device: str
) -> dict[str, torch.Tensor]:
    """The batch of that number, each k-mer hidden with the chance and in the ways that a masked base learns by."""
    random = torch.Generator().manual_seed(seed * 1_000_003 + number)
    ids, mask = pad_rows(rows, 0, "cpu"), pad_rows([[1] * len(row) for row in rows], 0, "cpu")
    chosen = (torch.rand(ids.shape, generator=random) < HIDDEN) & (ids >= n_special)
    labels = ids.masked_fill(~chosen, IGNORED)
    fate = torch.rand(ids.shape, generator=random)
    other = torch.randint(n_special, len(tokenizer), ids.shape, generator=random)
    ids = torch.where(chosen & (fate < MASKED), tokenizer.mask_token_id, ids)
    ids = torch.where(chosen & (fate >= 1 - REPLACED), other, ids)
    return {"ids": ids.to(device), "mask": mask.to(device), "labels": labels.to(device)}
