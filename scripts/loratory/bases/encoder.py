"""Bidirectional encoders with a classification head (BERT, ESM, …)."""

import torch
import torch.nn.functional as F
from transformers import AutoModelForSequenceClassification

from loratory.bases.core import Base, Encoded, open_model, open_tokenizer, pad_rows, too_long_error
from loratory.errors import InputError


class Encoder(Base):
    """Pooler and classifier are new, so they are trained and saved with each adapter; a bare base says nothing."""

    family = "encoder"

    def __init__(self, folder, manifest, model, tokenizer):
        super().__init__(folder, manifest, model, tokenizer)
        pooler = f"{model.base_model_prefix}.pooler"
        self.heads = ("classifier", pooler) if getattr(model.base_model, "pooler", None) else ("classifier",)
        for head in map(model.get_submodule, self.heads):  # trained, so never in half precision
            head.float().register_forward_pre_hook(lambda _, inputs: tuple(tensor.float() for tensor in inputs))

    @classmethod
    def open(cls, folder, manifest, dtype):
        model = open_model(AutoModelForSequenceClassification, folder, dtype=dtype, num_labels=2)
        if not hasattr(model, "classifier"):
            raise InputError(folder, "no `classifier` head", type(model).__name__, "a BERT-like encoder")
        return cls(folder, manifest, model, open_tokenizer(folder))

    def encode(self, example) -> Encoded:
        ids = self.tokenizer(example.prompt)["input_ids"]
        limit = self.model.config.max_position_embeddings
        if len(ids) > limit:
            raise too_long_error(self.folder, example.id, len(ids), limit)
        label = example.choices.index(example.target) if example.target else -1
        return Encoded(ids, [], len(ids), label=label)

    def collate(self, items):
        return {
            "ids": pad_rows([item.ids for item in items], self.tokenizer.pad_token_id, self.device),
            "mask": pad_rows([[1] * len(item.ids) for item in items], 0, self.device),
            "labels": torch.tensor([item.label for item in items], device=self.device),
        }

    @staticmethod
    def inputs(batch) -> dict:
        return {"input_ids": batch["ids"], "attention_mask": batch["mask"]}

    def class_logits(self, model, batch) -> torch.Tensor:
        return model(**self.inputs(batch), **self.routing_inputs(model, batch)).logits.float()

    def loss(self, model, batch):
        return F.cross_entropy(self.class_logits(model, batch), batch["labels"], reduction="sum"), len(batch["labels"])

    def choice(self, model, items, choices):
        """Log probability of each choice `[items, choices]`."""
        return self.class_logits(model, self.collate(items)).log_softmax(-1)
