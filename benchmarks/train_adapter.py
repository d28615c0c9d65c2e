"""LoRA training on sequences of skewed lengths: our loop and batches against Hugging Face's Trainer with PEFT.

    python benchmarks/train_adapter.py [steps] [--device cuda] [--precision bf16]

One epoch over 8 examples a step of 50 to 1,000 positions, with a small Llama (2 layers, width 128, random weights) and
rank 8 on all linear layers; the same start, examples, AdamW, rates and number of steps in every arm. The Trainer pads
8 examples at a time, drawn at random (its default) or grouped by length. It groups within fewer examples, and so pads
more, the shorter the epoch: 24 % of positions at 24 steps, 6 % at 100, 3 % from 200 on, so a ratio to it at few steps
flatters us. CPU seconds of the process on one thread; an arm counts only if it ends at the same held-out loss.

On a GPU the Llama has the shape of SmolLM2 135M (30 layers, width 576; random weights) and seconds are the clock's: of
the whole training, and the median of the second half of the steps. There our loop also replays passes as CUDA graphs.
"""

import argparse
import sys
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from types import SimpleNamespace

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import numpy as np  # noqa: E402
import peft  # noqa: E402
import torch  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments  # noqa: E402

from loratory.adapters import core  # noqa: E402
from loratory.adapters.methods.lora import Method  # noqa: E402
from loratory.bases.core import Encoded  # noqa: E402
from loratory.bases.families.causal import Family as Causal  # noqa: E402
from loratory.data.batching import Batches  # noqa: E402
from loratory.training.feeding import Feed  # noqa: E402
from loratory.training.fit import Loss, train_model  # noqa: E402
from loratory.training.schedule import Training  # noqa: E402
from loratory.training.session import AdapterSession  # noqa: E402
from loratory.training.sweep import mean_loss  # noqa: E402

EXAMPLES, HELD_OUT, VOCABULARY, SEED = 8, 64, 33, 0
SMALL = {"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 2, "num_attention_heads": 4}
SMOL = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
SIZES = {"cpu": SMALL | {"vocab_size": VOCABULARY}, "cuda": SMOL | {"num_key_value_heads": 3, "vocab_size": 49152}}
RATES = {"cpu": 3e-3, "cuda": 5e-4}
SAME = {"cpu": 1e-3, "cuda": 1e-2}  # largest difference of held-out losses


class Base(Causal):
    """A causal base without a folder; counts the positions of its batches."""

    def __init__(self, device: str):
        torch.manual_seed(SEED)
        config = LlamaConfig(**SIZES[device], max_position_embeddings=1024, tie_word_embeddings=device == "cuda")
        model = LlamaForCausalLM(config).to(device)
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


def recipe_of(items: list[Encoded], given: argparse.Namespace) -> Training:
    options = {"learning_rate": RATES[given.device], "save_every": 0, "precision": given.precision}
    return Training(steps=given.steps, batch_tokens=equal_budget(items, given.steps), **options)


def now(device: str) -> float:
    if device == "cpu":
        return process_time()
    torch.cuda.synchronize()
    return perf_counter()


def ours(items: list[Encoded], given: argparse.Namespace, folder: Path, replayed: bool = False):
    base, method = Base(given.device), Method(rank=8, alpha=16)
    recipe = recipe_of(items, given)
    layers = core.attach(base.model, method, SEED)
    session = AdapterSession(base, method, layers, items, recipe, SEED)
    session.is_replayed = replayed

    def loss(micro):
        if micro.is_fixed:
            return Loss(base.summed_nll(base.model, micro.batch), micro.targets)
        return Loss(*base.loss(base.model, micro.batch))

    parameters = core.trainable_parameters(base.model.train())
    before = now(given.device)
    with Feed(session.read_step, session.collate_replayed, recipe.steps, 0) as feed:
        curve = train_model(parameters, feed, loss, recipe, SEED, folder, "loratory", hooks=session)
    seconds = [point["seconds"] for point in curve]
    return now(given.device) - before, median(seconds[len(seconds) // 2 :]), base, base.model


def same_start(model: peft.PeftModel, device: str) -> None:
    """Gives PEFT's layers the matrices that ours start from."""
    for name, layer in core.attach(Base(device).model, Method(rank=8, alpha=16), SEED).items():
        model.base_model.model.get_submodule(name).lora_A["default"].weight.data.copy_(layer.adapter["A"])


def trainer(sampling: str):
    """The arm of the Trainer with a way of drawing examples."""

    def theirs(items: list[Encoded], given: argparse.Namespace, folder: Path):
        base, seconds = Base(given.device), []
        config = peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
        model = peft.get_peft_model(base.model, config)
        same_start(model, given.device)

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
            use_cpu=given.device == "cpu",
            bf16=given.precision == "bf16",
            dataloader_pin_memory=False,
            seed=SEED,
        )
        rows = [{"input_ids": item.ids, "item": item} for item in items]
        recipe, rate = recipe_of(items, given), RATES[given.device]
        optimizer = torch.optim.AdamW(core.trainable_parameters(model).values(), lr=rate, weight_decay=0.0, fused=True)
        rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: recipe.learning_rate_at(step) / rate)

        class Clock(TrainerCallback):
            def on_step_begin(self, *_, **__):
                self.begun = now(given.device)

            def on_step_end(self, *_, **__):
                seconds.append(now(given.device) - self.begun)

        training = Trainer(
            model,
            arguments,
            train_dataset=rows,
            data_collator=collate,
            optimizers=(optimizer, rates),
            callbacks=[Clock()],
        )
        before = now(given.device)
        training.train()
        return now(given.device) - before, median(seconds[len(seconds) // 2 :]), base, model

    return theirs


ARMS = {"trainer": trainer("random"), "grouped": trainer("group_by_length"), "loratory": ours}


def main(given: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    items, held_out = sequences(EXAMPLES * given.steps, 1), sequences(HELD_OUT, 2)
    arms = ARMS | ({"replayed": partial(ours, replayed=True)} if given.device == "cuda" else {})
    spent, steps, losses = {}, {}, {}
    for name, arm in arms.items():
        with TemporaryDirectory() as folder:
            spent[name], steps[name], base, model = arm(items, given, Path(folder))
        padding = base.padding  # of training alone, before the held-out batches count
        losses[name] = mean_loss(base, model.eval(), held_out, 8192)
        step = f", {steps[name] * 1000:.1f} ms a step" if given.device == "cuda" else ""
        print(
            f"{name}: {spent[name]:.1f} s{step}, {padding:.0%} padding, held-out loss {losses[name]:.4f}", flush=True
        )
    if max(losses.values()) - min(losses.values()) > SAME[given.device]:
        raise SystemExit("the arms learned differently: no ratio")
    tokens = sum(item.length for item in items)
    for name in [*arms][2:]:
        ratios = ", ".join(f"to {other} {spent[other] / spent[name]:.2f}" for other in arms if other != name)
        by_step = ", ".join(f"to {other} {steps[other] / steps[name]:.2f}" for other in arms if other != name)
        late = f"; of late steps {by_step}" if given.device == "cuda" else ""
        print(f"{given.steps} steps, {tokens} tokens, {name}: ratio {ratios}{late} (equal losses)", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("steps", nargs="?", type=int, default=100)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    main(parser.parse_args())
