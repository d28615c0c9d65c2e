"""Several trainings of one low-rank method on one base in one pass, each as it would be alone.

A step puts the batches of all runs through the frozen base at once: one launch of each kernel instead of one a run,
which is what a small base's step on a GPU waits for. Every run keeps its own rate, batches, loss, clipping, optimizer
and checkpoint. What a run learns differs from what it learns alone by rounding, as sums are taken in another order.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from accelerate import Accelerator

from loratory.adapters.core import AdaptedLinear
from loratory.adapters.stack import StackedLinear, stack_adapters
from loratory.bases.core import IGNORED, Base, Encoded
from loratory.training import checkpoint
from loratory.training.fit import TerminationSignal, TrainingStopped
from loratory.training.progress import Progress
from loratory.training.schedule import Training
from loratory.training.session import AdapterSession


@dataclass
class Run:
    """One of the trainings.

    Attributes:
        layers: its adapters, which are on no model. parameters: those of `layers`, by their names on the model.
        folder, made_with: of its checkpoints, as `fit.train_model` takes them.
    """

    session: AdapterSession
    layers: dict[str, AdaptedLinear]
    parameters: dict[str, torch.nn.Parameter]
    folder: Path
    made_with: dict[str, Any]
    done: int = 0
    curve: list[dict] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.optimizer = self.session.create_optimizer(self.parameters, self.recipe)
        memory = self.session.state_tensors()
        self.done, self.curve = checkpoint.load_checkpoint(
            self.folder, self.parameters, self.optimizer, memory, self.made_with
        )

    @property
    def recipe(self) -> Training:
        return self.session.recipe

    @property
    def failure(self) -> str:
        """Where it has diverged; its rows go along to the end."""
        wrong = (point for point in self.curve if not math.isfinite(point["loss"]))
        return next((f"the loss is {point['loss']} at step {point['step']}" for point in wrong), "")

    def save(self, step: int) -> None:
        memory = self.session.state_tensors()
        checkpoint.save_checkpoint(
            self.folder, step, self.curve, self.parameters, self.optimizer, memory, self.made_with
        )


def train_together(base: Base, runs: Sequence[Run], title: str) -> None:
    """Trains all runs to their last step; their layers hold the outcome, their curves what it took.

    Runs whose checkpoints stand at one step go on together, each such group behind the other. The seconds of a point
    are the step's, divided by the runs that shared it.

    Raises:
        TrainingStopped: SIGTERM or Ctrl-C was received; call again to go on.
    """
    for _, group in groupby(sorted(runs, key=lambda run: run.done), key=lambda run: run.done):
        train_group(base, [*group], title)


def train_group(base: Base, runs: Sequence[Run], title: str) -> None:
    recipe, done = runs[0].recipe, runs[0].done
    autocast = "no" if recipe.precision == "fp32" else recipe.precision
    accelerator = Accelerator(mixed_precision=autocast, cpu=base.device.type == "cpu")
    progress = Progress(title, done, recipe.steps)
    with stack_adapters(base.model, [run.layers for run in runs]) as stacked, TerminationSignal() as terminated:
        for step in range(done, recipe.steps):
            started = perf_counter()
            losses, targets = update_together(base, runs, stacked, step, accelerator)
            seconds = (perf_counter() - started) / len(runs)
            for run, value, count in zip(runs, losses, targets):
                point = {"step": step, "loss": value, "scheduled_rate": run.recipe.learning_rate_at(step)}
                run.curve.append(point | {"targets": count, "seconds": seconds})
            progress(step, sum(losses) / len(losses))
            due = recipe.save_every and ((step + 1) % recipe.save_every == 0 or step + 1 == recipe.steps)
            if due or terminated:
                for run in runs:
                    run.save(step + 1)
            if terminated:
                raise TrainingStopped(143)


def update_together(
    base: Base, runs: Sequence[Run], stacked: Sequence[StackedLinear], step: int, accelerator: Accelerator
) -> tuple[list[float], list[int]]:
    """One optimizer step of every run; (mean loss per target, targets) of each."""
    numbers = runs[0].recipe.batch_numbers(step)
    parts = [[run.session.batch_items(number) for run in runs] for number in numbers]  # [micro-batch][run]
    targets = [sum(count_targets(items[k]) for items in parts) for k in range(len(runs))]
    scale = torch.tensor(targets, device=base.device, dtype=torch.float32)
    means = torch.zeros(len(runs), device=base.device)
    for items in parts:
        batch, real = join_batches(base, items)
        with accelerator.autocast():
            sums = (base.row_losses(base.model, batch).view(len(runs), -1) * real).sum(1)
        accelerator.backward((sums / scale).sum())
        means += sums.detach() / scale
    for layer in stacked:
        layer.share_gradients()
    for run in runs:
        for group in run.optimizer.param_groups:
            group["lr"] = run.recipe.learning_rate_at(step) * group.get("ratio", 1)
        torch.nn.utils.clip_grad_norm_(run.parameters.values(), run.recipe.clip)
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)
    return means.tolist(), targets


def join_batches(base: Base, items: Sequence[Sequence[Encoded]]) -> tuple[dict, torch.Tensor]:
    """One batch of all runs' examples, as many rows of each; and `[runs, rows]`, 0 at rows that only fill it up."""
    rows = max(map(len, items))
    filled = [example for own in items for example in [*own, *[own[0]] * (rows - len(own))]]
    real = torch.tensor([[float(at < len(own)) for at in range(rows)] for own in items])
    return base.collate(filled), real.to(base.device)


def count_targets(items: Sequence[Encoded]) -> int:
    """As `Base.count_targets`, of examples that are not in a batch yet."""
    return sum(label != IGNORED for item in items for label in item.labels[1:])
