"""Several trainings of one low-rank method on one base in one pass, each as it would be alone.

A step puts the batches of all runs through the frozen base at once: one launch of each kernel instead of one a run,
which is what a small base's step on a GPU waits for. Every run keeps its own rate, batches, loss, clipping, optimizer,
looks at `valid` and checkpoint. What a run learns differs from what it learns alone by rounding, as sums are taken in
another order.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter

import torch
from accelerate import Accelerator

from loratory.adapters.core import AdaptedLinear
from loratory.adapters.stack import StackedLinear, place_layers, stack_adapters
from loratory.bases.core import IGNORED, Base, Encoded
from loratory.training import checkpoint
from loratory.training.encoding import Examples, padded_positions
from loratory.training.feeding import Feed, steps_ahead
from loratory.training.fit import TerminationSignal, TrainingStopped
from loratory.training.job import Job
from loratory.training.progress import Progress
from loratory.training.schedule import Training
from loratory.training.session import AdapterSession
from loratory.training.validation import Validations, changing_tensors


@dataclass
class Run:
    """One of the trainings; its adapters are on no model.

    Attributes:
        parameters: those of its layers, by their names on the model.
        validate: its loss on `valid`, while its layers are on the model.
        job: where it keeps its checkpoints.
    """

    session: AdapterSession
    parameters: dict[str, torch.nn.Parameter]
    validate: Callable[[], float]
    job: Job
    curve: list[dict] = field(init=False)

    def __post_init__(self) -> None:
        self.optimizer = self.session.create_optimizer(self.parameters, self.recipe)
        self.validations = Validations(self.validate, self.recipe, self.changing_tensors, self.job.title)
        memory, best = self.session.state_tensors(), self.validations.best
        _, self.curve = checkpoint.load_checkpoint(
            self.job.folder, self.parameters, self.optimizer, memory, self.job.made_with, best
        )

    @property
    def recipe(self) -> Training:
        return self.session.recipe

    @property
    def layers(self) -> dict[str, AdaptedLinear]:
        return self.session.layers

    @property
    def failure(self) -> str:
        """Where it has diverged; its rows go along as long as the runs beside it pass together."""
        wrong = (point for point in self.curve if not math.isfinite(point["loss"]))
        return next((f"the loss is {point['loss']} at step {point['step']}" for point in wrong), "")

    @property
    def is_over(self) -> bool:
        return len(self.curve) == self.recipe.steps or bool(self.failure) or self.validations.is_over(self.curve)

    def changing_tensors(self) -> dict[str, torch.Tensor]:
        return changing_tensors(self.parameters, self.session.state_tensors())

    def validate_where_due(self, model: torch.nn.Module) -> None:
        if self.validations.is_due(self.curve) and not self.failure:
            with place_layers(model, self.layers):
                self.validations.validate(self.curve)

    def save(self, step: int) -> None:
        memory, best = self.session.state_tensors(), self.validations.best
        checkpoint.save_checkpoint(
            self.job.folder, step, self.curve, self.parameters, self.optimizer, memory, self.job.made_with, best
        )


@dataclass(frozen=True)
class JointBatch:
    """What one pass takes.

    Attributes:
        batch: of all runs' examples, as many rows of each.
        real: `[runs, rows]`, 0 at rows that only fill it up.
        targets, positions: of each run's own examples.
    """

    batch: dict
    real: torch.Tensor
    targets: list[int]
    positions: list[int]


def train_together(base: Base, runs: Sequence[Run], title: str, examples: Examples) -> None:
    """Trains all runs to their ends; their layers hold the outcome, their curves what it took.

    The runs that are behind pass together up to the next step at which one of them looks at `valid`, or another is met
    that goes along from there. The seconds of a point are the step's, divided by the runs that shared it.

    Args:
        examples: that all of them learn from.

    Raises:
        TrainingStopped: SIGTERM or Ctrl-C was received; call again to go on.
    """
    recipe, every = runs[0].recipe, runs[0].validations.every
    progress = Progress(title, min(len(run.curve) for run in runs), recipe.steps)
    with TerminationSignal() as terminated:
        while True:
            for run in runs:
                run.validate_where_due(base.model)
            pending = [run for run in runs if not run.is_over]
            if not pending:
                break
            step, *ahead = sorted({len(run.curve) for run in pending})
            stop = min([recipe.steps, *ahead[:1], *([(step // every + 1) * every] if every else [])])
            group = [run for run in pending if len(run.curve) == step]
            train_group(base, group, range(step, stop), examples, progress, terminated)
    for run in runs:
        run.validations.restore_best()


def train_group(
    base: Base,
    runs: Sequence[Run],
    steps: range,
    examples: Examples,
    progress: Progress,
    terminated: TerminationSignal,
) -> None:
    recipe = runs[0].recipe
    autocast = "no" if recipe.precision == "fp32" else recipe.precision
    accelerator = Accelerator(mixed_precision=autocast, cpu=base.device.type == "cpu")
    feed = Feed(partial(read_step, runs), partial(join_step, base), steps.stop, steps_ahead([examples], recipe))
    with stack_adapters(base.model, [run.layers for run in runs]) as stacked, feed:
        for step in steps:
            started = perf_counter()
            parts = feed(step)
            waited = perf_counter() - started
            losses = update_together(base, runs, stacked, parts, step, accelerator)
            seconds = perf_counter() - started
            for k, (run, loss) in enumerate(zip(runs, losses)):
                point = {"step": step, "loss": loss, "scheduled_rate": run.recipe.learning_rate_at(step)}
                point |= {key: sum(getattr(part, key)[k] for part in parts) for key in ("targets", "positions")}
                run.curve.append(point | {"seconds": seconds / len(runs), "waited": waited / len(runs)})
            progress(step, sum(losses) / len(losses))
            due = recipe.save_every and ((step + 1) % recipe.save_every == 0 or step + 1 == recipe.steps)
            if due or terminated:
                for run in runs:
                    run.save(step + 1)
            if terminated:
                raise TrainingStopped(143)


def update_together(
    base: Base,
    runs: Sequence[Run],
    stacked: Sequence[StackedLinear],
    parts: Sequence[JointBatch],
    step: int,
    accelerator: Accelerator,
) -> list[float]:
    """One optimizer step of every run; the mean loss per target of each."""
    targets = [max(1, sum(part.targets[k] for part in parts)) for k in range(len(runs))]
    scale = torch.tensor(targets, device=base.device, dtype=torch.float32)
    means = torch.zeros(len(runs), device=base.device)
    for part in parts:
        with accelerator.autocast():
            sums = (base.row_losses(base.model, part.batch).view(len(runs), -1) * part.real).sum(1)
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
    return means.tolist()


def read_step(runs: Sequence[Run], step: int) -> list[list[list[Encoded]]]:
    """The examples of each of a step's batches, of each run."""
    numbers = runs[0].recipe.batch_numbers(step)
    return [[run.session.batch_examples(number) for run in runs] for number in numbers]


def join_step(base: Base, batches: Sequence[Sequence[Sequence[Encoded]]]) -> list[JointBatch]:
    """What `read_step` gave, as it is passed."""
    return [join_batches(base, items) for items in batches]


def join_batches(base: Base, items: Sequence[Sequence[Encoded]]) -> JointBatch:
    """One batch of all runs' examples."""
    rows = max(map(len, items))
    filled = [example for own in items for example in [*own, *[own[0]] * (rows - len(own))]]
    real = torch.tensor([[float(at < len(own)) for at in range(rows)] for own in items]).to(base.device)
    return JointBatch(base.collate(filled), real, [*map(count_targets, items)], [*map(padded_positions, items)])


def count_targets(items: Sequence[Encoded]) -> int:
    """As `Base.count_targets`, of examples that are not in a batch yet."""
    return sum(label != IGNORED for item in items for label in item.labels[1:])
