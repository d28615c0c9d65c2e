"""Masked language models (BERT, RoBERTa, ESM-2, …): a hidden token is guessed from both sides of it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch.nn import Module
from transformers import AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto import modeling_auto as auto

from loratory.bases.checks import quiet_logging
from loratory.bases.core import (
    CONTACTS,
    IGNORED,
    Base,
    Batch,
    Encoded,
    class_names,
    drop_contact_head,
    is_bidirectional,
    open_model,
    open_tokenizer,
    pad_rows,
    position_limit,
    too_long_error,
)
from loratory.domains.contract import Example
from loratory.errors import InputError

HIDDEN = 0.15  # share of the targets that training asks for; of these
MASKED, REPLACED = 0.8, 0.1  # so many are the mask token, so many another token, the rest as they are
FIXED_DRAW = -1  # of what is hidden where nothing is trained; those of trainings are from 0
PASS_POSITIONS = 8192  # of one pass of `nll`
OTHER_HEADS = {"pooler", "seq_relationship", CONTACTS}  # which predict no tokens


class Family(Base):
    """Sequence = [begin] prompt target [end], as the tokenizer frames a text; the target's tokens are scored.

    Training hides 15 % of them (80 % as the mask token, 10 % as another token, 10 % as they are: Devlin et al. 2018,
    arXiv:1810.04805), drawn anew for each seed, step and record. Output "nll" is the pseudo-likelihood (Salazar et al.
    2020, arXiv:1910.14659): each token of the target is hidden alone, in as many passes as there are tokens.
    Probabilities are those among all tokens, as fair-esm's are; among the letters alone where there is an alphabet.
    """

    family = "masked"
    model_class = AutoModelForMaskedLM
    needed_token = "mask_token"

    def __init__(
        self, folder: Path | str, manifest: dict[str, Any], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ):
        super().__init__(folder, manifest, model, tokenizer)
        drop_contact_head(model)

    @staticmethod
    def architectures(model_type: str) -> set[str]:
        if not is_bidirectional(model_type):
            return set()
        masked, pretrained = auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, auto.MODEL_FOR_PRETRAINING_MAPPING_NAMES
        names = class_names(model_type, masked, pretrained)
        return {name for name in names if name.endswith(("ForMaskedLM", "ForPreTraining"))}

    @classmethod
    def requires_weight(cls, name: str) -> bool:
        return OTHER_HEADS.isdisjoint(name.split("."))

    @classmethod
    def refuses_weight(cls, name: str, model: PreTrainedModel) -> bool:
        return cls.requires_weight(name)

    @classmethod
    def open(cls, folder: Path, manifest: dict[str, Any], **options: Any) -> Self:
        with quiet_logging():  # that nothing predicts contacts
            model = open_model(cls.model_class, folder, new=(CONTACTS,), **options)
        return cls(folder, manifest, model, open_tokenizer(folder))

    @property
    def context(self) -> int:
        return position_limit(self.model)

    @property
    def pad_id(self) -> int:
        return self.mask_id if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id

    @property
    def mask_id(self) -> int:
        return self.tokenizer.mask_token_id

    @cached_property
    def frame(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before and behind a text."""
        ids = self.tokenizer(self.tokenizer.mask_token)["input_ids"]
        at = ids.index(self.mask_id)
        return ids[:at], ids[at + 1 :]

    @cached_property
    def ordinary_ids(self) -> list[int]:
        """The tokens that may stand in the place of another."""
        return sorted({*self.tokenizer.get_vocab().values()} - {*self.tokenizer.all_special_ids})

    def encode(self, example: Example) -> Encoded:
        begin, end = self.frame
        before, target = begin + self.tokens(example.prompt), self.target_tokens(example)
        if self.tokenizer.unk_token_id in target:
            where, what = f"{self.folder}:{example.id}", "the tokenizer does not know a part of the target"
            raise InputError(where, what, example.target, "what it has tokens for", reason="tokenizer")
        ids = before + target + end
        if len(ids) > self.context:
            raise too_long_error(self.folder, example.id, len(ids), self.context)
        labels = [IGNORED] * len(before) + target + [IGNORED] * len(end)
        return Encoded(ids, labels, len(ids), alphabet=example.alphabet)

    def collate(self, items: Sequence[Encoded]) -> Batch:
        """What is hidden of an item depends on it alone."""
        return self.training_batch(items, FIXED_DRAW)

    def training_batch(self, items: Sequence[Encoded], draw: int) -> Batch:
        return self.assemble_batch([self.hide_targets(item, draw) for item in items], items[0].alphabet)

    def trial_batch(self) -> Batch:
        (begin, end), some = self.frame, self.ordinary_ids[:4]
        ids = begin + some + end
        return self.collate([Encoded(ids, [IGNORED] * len(begin) + some + [IGNORED] * len(end), len(ids))])

    def assemble_batch(self, rows: Sequence[tuple[list[int], list[int]]], alphabet: tuple[str, ...]) -> Batch:
        """Of ids and labels; `letters` are the ids of an alphabet."""
        batch = {
            "ids": pad_rows([ids for ids, _ in rows], self.pad_id, self.device),
            "mask": pad_rows([[1] * len(ids) for ids, _ in rows], 0, self.device),
            "labels": pad_rows([labels for _, labels in rows], IGNORED, self.device),
        }
        if alphabet:
            batch["letters"] = torch.tensor(self.letter_ids(alphabet), device=self.device)
        return batch

    def hide_targets(self, item: Encoded, draw: int) -> tuple[list[int], list[int]]:
        """Ids and labels of an item with a share of its targets hidden, at least one."""
        rng = random.Random(f"{draw} {item.ids}")
        others = self.letter_ids(item.alphabet) if item.alphabet else self.ordinary_ids
        places = target_places(item)
        ids, labels = list(item.ids), [IGNORED] * len(item.ids)
        for place in rng.sample(places, min(len(places), max(1, round(HIDDEN * len(places))))):
            labels[place], fate = ids[place], rng.random()
            if fate < MASKED:
                ids[place] = self.mask_id
            elif fate < MASKED + REPLACED:
                ids[place] = rng.choice(others)
        return ids, labels

    def inputs(self, batch: Batch) -> dict[str, Any]:
        return {"input_ids": batch["ids"], "attention_mask": batch["mask"]}

    def target_nll(self, model: Module, batch: Batch) -> torch.Tensor:
        """`[targets]` nats of all that is asked in a batch, in its order."""
        targets = batch["labels"][batch["labels"] != IGNORED]
        if "letters" in batch:
            targets = (targets[:, None] == batch["letters"]).int().argmax(1)
        return F.cross_entropy(self.target_logits(model, batch), targets, reduction="none")

    def target_logits(self, model: Module, batch: Batch) -> torch.Tensor:
        asked = batch["labels"] != IGNORED
        logits = model(**self.inputs(batch), **self.routing_inputs(model, batch)).logits[asked].float()
        return logits[:, batch["letters"]] if "letters" in batch else logits

    def loss(self, model: Module, batch: Batch) -> tuple[torch.Tensor, int]:
        nats = self.target_nll(model, batch)
        return nats.sum(), len(nats)

    def count_targets(self, batch: Batch) -> int:
        """What is hidden; a first token too, as it is guessed from what follows it."""
        return int((batch["labels"] != IGNORED).sum())

    def nll(self, model: Module, items: Sequence[Encoded]) -> list[tuple[float, int]]:
        """The rows of an item are passed by themselves: all of one length, so that nothing is padding."""
        return [(self.pseudo_nll(model, item), len(target_places(item))) for item in items]

    def pseudo_nll(self, model: Module, item: Encoded) -> float:
        """Summed nats of an item's targets, each hidden alone."""
        places, total = target_places(item), 0.0
        rows = max(1, PASS_POSITIONS // len(item.ids))
        for start in range(0, len(places), rows):
            hidden = [self.hide_one(item, place) for place in places[start : start + rows]]
            total += float(self.target_nll(model, self.assemble_batch(hidden, item.alphabet)).double().sum())
        return total

    def hide_one(self, item: Encoded, place: int) -> tuple[list[int], list[int]]:
        ids, labels = list(item.ids), [IGNORED] * len(item.ids)
        ids[place], labels[place] = self.mask_id, item.ids[place]
        return ids, labels

    def scoring_positions(self, item: Encoded) -> int:
        return len(target_places(item)) * item.length


def target_places(item: Encoded) -> list[int]:
    return [place for place, label in enumerate(item.labels) if label != IGNORED]
