"""Tiny bases of each family that can be trained on without files: their model, examples and loss."""

from shutil import copytree
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from models import bert, llama, whisper
from transformers import GPT2Config, GPT2LMHeadModel, Phi3Config, Phi3ForCausalLM

from loratory.adapters import core
from loratory.bases.core import Base
from loratory.training.fit import Loss, MicroBatch, train_model
from loratory.training.schedule import Training
from loratory.training.session import AdapterSession

VOCABULARY = 60


def gpt2():
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": VOCABULARY, "n_positions": 64}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(**sizes, **dropout)).eval()


def phi3():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return Phi3ForCausalLM(Phi3Config(**sizes, **ids, max_position_embeddings=64)).eval()


class Toy:
    """What a training needs of a base. An example is random ids; the next id, or the parity of their sum, is asked.

    Attributes:
        modules: linear layers that are adapted by default, of models of this family.
    """

    def __init__(self, make, modules: int, heads: tuple[str, ...] = (), kind: str = "causal"):
        self.model, self.modules, self.heads, self.kind = make().requires_grad_(False), modules, heads, kind
        generator = torch.Generator().manual_seed(7)
        rows = [torch.randint(3, VOCABULARY, (6,), generator=generator) for _ in range(12)]
        self.items = [SimpleNamespace(ids=row, length=len(row)) for row in rows]

    def collate(self, items) -> dict:
        ids = torch.stack([item.ids for item in items])
        return {"ids": ids, "mask": torch.ones_like(ids), "labels": ids.sum(1) % 2 if self.kind == "encoder" else ids}

    def training_batch(self, items, draw: int) -> dict:
        return self.collate(items)

    def logits(self, model, batch) -> torch.Tensor:
        if self.kind == "whisper":
            sound = torch.linspace(-1, 1, 200).expand(len(batch["ids"]), 80, 200)
            return model(input_features=sound.to(self.model.dtype), decoder_input_ids=batch["ids"]).logits
        return model(input_ids=batch["ids"]).logits

    def loss(self, model, batch):
        logits, labels = self.logits(model, batch), batch["labels"]
        if labels.dim() == 2:
            logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(logits, labels, reduction="sum"), len(labels)

    count_targets = Base.count_targets

    @torch.no_grad()
    def output(self) -> torch.Tensor:
        self.model.eval()
        return self.logits(self.model, self.collate(self.items[:4]))

    def mean_loss(self) -> float:
        with torch.no_grad():
            total, n = self.loss(self.model.eval(), self.collate(self.items))
        return float(total) / n


FAMILIES = {
    "llama": lambda: Toy(lambda: llama(VOCABULARY), 14),
    "gpt2": lambda: Toy(gpt2, 8),
    "phi3": lambda: Toy(phi3, 8),
    "bert": lambda: Toy(lambda: bert(VOCABULARY), 12, ("classifier", "bert.pooler"), "encoder"),
    "whisper": lambda: Toy(lambda: whisper(VOCABULARY), 16, (), "whisper"),
}


def begin(toy: Toy, method, seed=0, steps=6, rate=1e-2, decay=0.1, save_every=0, clip=1.0) -> AdapterSession:
    """Attaches a method and lets it prepare, as a sweep does."""
    training = {"steps": steps, "learning_rate": rate, "weight_decay": decay, "save_every": save_every, "clip": clip}
    recipe = Training(**training, warmup=0.2, decay="constant", batch_tokens=24)
    layers = core.attach(toy.model, method, seed, toy.heads)
    session = AdapterSession(toy, method, layers, toy.items, recipe, seed)
    torch.manual_seed(seed)
    method.prepare_training(session)
    return session


def five_steps(model, loss, **options) -> None:
    """Five steps of AdamW on all that is trained, for comparisons with PEFT's models."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], **options)
    with torch.enable_grad():
        for _ in range(5):
            loss(model).backward()
            optimizer.step()
            optimizer.zero_grad()


def train(
    toy: Toy, method, folder, kill_at: int | None = None, copy_at: int | None = None, parts: int = 1, **options
) -> AdapterSession:
    """A whole training; `kill_at` ends it without warning at that step, `copy_at` copies what such an end would leave
    to `{folder}.killed`, `parts` are micro-batches of a step."""
    session = begin(toy, method, **options)

    def micro_batches(step):
        if step == kill_at:
            raise KeyboardInterrupt
        if step == copy_at:
            copytree(folder, f"{folder}.killed")
        batch = session.batch(step)
        split = {key: tensor.chunk(parts) for key, tensor in batch.items()}
        batches = [dict(zip(split, part)) for part in zip(*split.values())]
        return [MicroBatch("train", batch, toy.count_targets(batch)) for batch in batches]

    toy.model.train()
    parameters = core.trainable_parameters(toy.model)
    loss = lambda micro: Loss(*toy.loss(toy.model, micro.batch))  # noqa: E731
    train_model(parameters, micro_batches, loss, session.recipe, session.seed, folder, "toy", hooks=session)
    toy.model.eval()
    return session
