"""LoRA training on sequences of skewed lengths: our loop and batches against Hugging Face's Trainer with PEFT.

    python benchmarks/train_adapter.py [steps]

One epoch over 8 examples a step of 50 to 1,000 positions, with a small Llama (2 layers, width 128, random weights) and
rank 8 on all linear layers; the same start, examples, AdamW, rates and number of steps in every arm. The Trainer pads
8 examples at a time, drawn at random (its default) or grouped by length. It groups within fewer examples, and so pads
more, the shorter the epoch: 24 % of positions at 24 steps, 6 % at 100, 3 % from 200 on, so a ratio to it at few steps
flatters us. CPU seconds of the process on one thread; an arm counts only if it ends at the same held-out loss.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time
from types import SimpleNamespace

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import numpy as np  # noqa: E402
import peft  # noqa: E402
import torch  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments  # noqa: E402

from loratory.adapters import core  # noqa: E402
from loratory.adapters.methods.lora import Method  # noqa: E402
from loratory.bases.core import Encoded  # noqa: E402
from loratory.bases.families.causal import Family as Causal  # noqa: E402
from loratory.data.batching import Batches  # noqa: E402
from loratory.training.fit import Loss, MicroBatch, train_model  # noqa: E402
from loratory.training.schedule import Training  # noqa: E402
from loratory.training.session import AdapterSession  # noqa: E402
from loratory.training.sweep import mean_loss  # noqa: E402

EXAMPLES, HELD_OUT, VOCABULARY, RATE, SEED = 8, 64, 33, 3e-3, 0
SAME = 1e-3  # largest difference of held-out losses


class Base(Causal):
    """A causal base without a folder; counts the positions of its batches."""

    def __init__(self):
        torch.manual_seed(SEED)
        sizes = {"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 2, "num_attention_heads": 4}
        model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=VOCABULARY, max_position_embeddings=1024))
        tokenizer = SimpleNamespace(pad_token_id=0, bos_token_id=1, eos_token_id=2)
        super().__init__("", {"weights_sha256": ""}, model.requires_grad_(False), tokenizer)
        self.real = self.positions = 0

    def collate(self, items):
        batch = super().collate(items)
        self.real, self.positions = self.real + int(batch["mask"].sum()), self.positions + batch["mask"].numel()
        return batch

    @property
    def padding(self) -> float:
        return 1 - self.real / self.positions


def sequences(count: int, seed: int) -> list[Encoded]:
    """Residues that are unequally frequent, so that there is something to learn; most are short, a few are long."""
    random = np.random.default_rng(seed)
    lengths = np.clip(np.exp(random.normal(5.5, 0.7, count)), 50, 1000).astype(int)
    frequencies = 1 / np.arange(1, VOCABULARY - 2)
    rows = [random.choice(np.arange(3, VOCABULARY), n, p=frequencies / frequencies.sum()).tolist() for n in lengths]
    return [Encoded(row, row, len(row)) for row in rows]


def equal_budget(items: list[Encoded], steps: int) -> int:
    """The smallest batch, in positions, with which an epoch takes no more than so many steps."""
    lengths = [item.length for item in items]
    budgets = range(max(lengths), sum(lengths), 50)
    return next(budget for budget in budgets if len(Batches(lengths, budget, SEED).epoch_batches(0)) <= steps)


def recipe_of(items: list[Encoded], steps: int) -> Training:
    return Training(steps=steps, learning_rate=RATE, save_every=0, batch_tokens=equal_budget(items, steps))


def ours(items: list[Encoded], steps: int, folder: Path):
    base, method = Base(), Method(rank=8, alpha=16)
    recipe = recipe_of(items, steps)
    layers = core.attach(base.model, method, SEED)
    session = AdapterSession(base, method, layers, items, recipe, SEED)
    parameters = core.trainable_parameters(base.model.train())
    before = process_time()
    train_model(
        parameters,
        lambda step: [MicroBatch("train", session.batch(step))],
        lambda micro: Loss(*base.loss(base.model, micro.batch)),
        recipe,
        SEED,
        folder,
        "loratory",
        hooks=session,
    )
    return process_time() - before, base, base.model


def same_start(model: peft.PeftModel) -> None:
    """Gives PEFT's layers the matrices that ours start from."""
    for name, layer in core.attach(Base().model, Method(rank=8, alpha=16), SEED).items():
        model.base_model.model.get_submodule(name).lora_A["default"].weight.data.copy_(layer.adapter["A"])


def trainer(sampling: str):
    """The arm of the Trainer with a way of drawing examples."""

    def theirs(items: list[Encoded], steps: int, folder: Path):
        base = Base()
        config = peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
        model = peft.get_peft_model(base.model, config)
        same_start(model)

        def collate(rows):
            batch = base.collate([row["item"] for row in rows])
            return {"input_ids": batch["ids"], "attention_mask": batch["mask"], "labels": batch["labels"]}

        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=EXAMPLES,
            num_train_epochs=1,
            train_sampling_strategy=sampling,
            remove_unused_columns=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            seed=SEED,
        )
        rows = [{"input_ids": item.ids, "item": item} for item in items]
        recipe = recipe_of(items, steps)
        optimizer = torch.optim.AdamW(core.trainable_parameters(model).values(), lr=RATE, weight_decay=0.0, fused=True)
        rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: recipe.learning_rate_at(step) / RATE)
        training = Trainer(model, arguments, train_dataset=rows, data_collator=collate, optimizers=(optimizer, rates))
        before = process_time()
        training.train()
        return process_time() - before, base, model

    return theirs


ARMS = {"trainer": trainer("random"), "grouped": trainer("group_by_length"), "loratory": ours}


def main(steps: int) -> None:
    torch.set_num_threads(1)
    items, held_out = sequences(EXAMPLES * steps, 1), sequences(HELD_OUT, 2)
    seconds, losses = [], []
    for name, arm in ARMS.items():
        with TemporaryDirectory() as folder:
            spent, base, model = arm(items, steps, Path(folder))
        padding = base.padding  # of training alone, before the held-out batches count
        loss = mean_loss(base, model.eval(), held_out, 8192)
        print(f"{name}: {spent:.1f} s, {padding:.0%} padding, held-out loss {loss:.4f}", flush=True)
        seconds.append(spent)
        losses.append(loss)
    if max(losses) - min(losses) > SAME:
        raise SystemExit("the arms learned differently: no ratio")
    slow, grouped, fast = seconds
    tokens = sum(item.length for item in items)
    print(f"{steps} steps, {tokens} tokens: ratio {slow / fast:.2f}, to grouped {grouped / fast:.2f} (equal losses)")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
