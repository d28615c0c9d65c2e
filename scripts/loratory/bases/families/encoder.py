"""Bidirectional encoders with a classification head (BERT, ESM, …)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn import Module
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto import modeling_auto as auto

from loratory.bases.core import (
    CONTACTS,
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
from loratory.bases.options import Decoding
from loratory.domains.contract import Example
from loratory.errors import InputError

HEADS = {"pooler", "classifier", CONTACTS}  # which pretraining leaves out or trains for something else


class Family(Base):
    """Pooler and classifier are new, so they are trained and saved with each adapter; a bare base predicts nothing."""

    family = "encoder"
    model_class = AutoModelForSequenceClassification
    model_options = {"num_labels": 2}  # noqa: RUF012 (it is never written)
    needed_token = "pad_token"

    def __init__(
        self, folder: Path | str, manifest: dict[str, Any], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ):
        super().__init__(folder, manifest, model, tokenizer)
        drop_contact_head(model)
        if not hasattr(model, "classifier"):
            raise InputError(folder, "no `classifier` head", type(model).__name__, "a BERT-like encoder")
        pooler = f"{model.base_model_prefix}.pooler"
        self.heads = ("classifier", pooler) if getattr(model.base_model, "pooler", None) else ("classifier",)
        for head in map(model.get_submodule, self.heads):  # trained, so never in half precision
            head.float().register_forward_pre_hook(lambda _, inputs: tuple(tensor.float() for tensor in inputs))

    @staticmethod
    def architectures(model_type: str) -> set[str]:
        masked, sorts = auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
        if not is_bidirectional(model_type):
            return set()
        return class_names(
            model_type, masked, sorts, auto.MODEL_FOR_PRETRAINING_MAPPING_NAMES, auto.MODEL_MAPPING_NAMES
        )

    @classmethod
    def requires_weight(cls, name: str) -> bool:
        return not is_head(name)

    @classmethod
    def refuses_weight(cls, name: str, model: PreTrainedModel) -> bool:
        """Its pretraining head is left behind: what is neither in the body nor a head of ours."""
        body = {model.base_model_prefix, *(child for child, _ in model.base_model.named_children())}
        return name.split(".")[0] in body and not is_head(name)

    @classmethod
    def complete_folder(cls, folder: Path) -> None:
        """Stores the encoder with its (untrained) pooler and classifier, so that every reader starts from the same."""
        torch.manual_seed(0)
        model = open_model(cls.model_class, folder, new=tuple(HEADS), **cls.model_options)
        for path in folder.glob("*.safetensors*"):
            path.unlink()
        model.save_pretrained(folder)
        open_tokenizer(folder).save_pretrained(folder)

    @property
    def context(self) -> int:
        return position_limit(self.model)

    def check_choices(self, choices: tuple[str, ...]) -> None:
        classes = self.model_options["num_labels"]
        if len(choices) > classes:
            raise InputError(self.folder, "more choices than the head has classes", str(choices), f"at most {classes}")

    def encode(self, example: Example) -> Encoded:
        ids = self.tokenizer(example.prompt)["input_ids"]
        if len(ids) > self.context:
            raise too_long_error(self.folder, example.id, len(ids), self.context)
        label = example.choices.index(example.target) if example.target else -1
        return Encoded(ids, [], len(ids), label=label)

    def keeps_rows(self, decoding: Decoding) -> bool:
        return True

    def collate(self, items: Sequence[Encoded]) -> Batch:
        return {
            "ids": pad_rows([item.ids for item in items], self.tokenizer.pad_token_id, self.device),
            "mask": pad_rows([[1] * len(item.ids) for item in items], 0, self.device),
            "labels": torch.tensor([item.label for item in items], device=self.device),
        }

    def inputs(self, batch: Batch) -> dict[str, Any]:
        return {"input_ids": batch["ids"], "attention_mask": batch["mask"]}

    def class_logits(self, model: Module, batch: Batch) -> torch.Tensor:
        return model(**self.inputs(batch), **self.routing_inputs(model, batch)).logits.float()

    def loss(self, model: Module, batch: Batch) -> tuple[torch.Tensor, int]:
        return F.cross_entropy(self.class_logits(model, batch), batch["labels"], reduction="sum"), len(batch["labels"])

    def choice(self, model: Module, items: Sequence[Encoded], choices: tuple[str, ...]) -> torch.Tensor:
        return self.class_logits(model, self.collate(items)).log_softmax(-1)


def is_head(name: str) -> bool:
    """Whether a weight is of a module of HEADS."""
    return not HEADS.isdisjoint(name.split("."))
