"""The training loop, one for bases, adapters and gates.

Features: AdamW; warm-up and cosine decay as functions of the step; micro-batches normalised by the real targets of the
whole step; passes replayed as CUDA graphs; gradient clipping; bf16 autocast through accelerate; exact resume; SIGTERM
or Ctrl-C finishes the step and saves.
"""

import math
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from types import FrameType
from typing import Any, NamedTuple, Self

import torch
from accelerate import Accelerator

from loratory.errors import InputError
from loratory.training import checkpoint, processes
from loratory.training.progress import Progress
from loratory.training.replay import Replays
from loratory.training.schedule import Training
from loratory.training.validation import Validations, changing_tensors

STOPS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass takes. Losses of one `task` are pooled over a step; tasks weigh alike.

    Attributes:
        targets: how many its loss sums over; needed where a task has several in a step, as all of them must be known
            before the first backward pass.
        positions: that it puts through the model, padding included.
        number: of the batch that it is, or is a part of.
        is_fixed: its batch is a `Base.fixed_batch`, all targets are announced, and its loss asks the device for
            nothing: its pass may be replayed.
    """

    task: str
    batch: dict
    targets: int = 0
    positions: int = 0
    number: int = 0
    is_fixed: bool = False


class Loss(NamedTuple):
    """Of one micro-batch: sums over its targets.

    Attributes:
        total: what the learning curve shows. targets: how many it sums over.
        extra: what is learnt besides and the curve leaves out, such as a routing penalty.
    """

    total: torch.Tensor
    targets: int
    extra: torch.Tensor | float = 0.0


class TrainingHooks:
    """What a training does besides following its gradients: here nothing; `training.session` has an adapter's."""

    def create_optimizer(self, parameters: dict[str, torch.nn.Parameter], recipe: Training) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters.values(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)

    def after_restore(self) -> None:
        """After the parameters were filled from a checkpoint, or with those of the best step."""

    def before_step(self, step: int) -> None:
        """Before the forward pass."""

    def see_batches(self, batches: Sequence[MicroBatch]) -> None:
        """Before the forward pass, with all that the step learns from."""

    def step_penalty(self) -> torch.Tensor | None:
        """Added once to a step's loss; the curve shows the loss without it."""

    def summed_tensors(self) -> list[torch.Tensor]:
        """What micro-batches add up besides gradients, 0 when a step begins."""
        return []

    def after_step(self, step: int) -> None:
        """After the optimizer moved, while the gradients are still there."""

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """Tensors that change in training besides the parameters; a resumed run fills them in place."""
        return {}


class TrainingStopped(SystemExit):
    """SIGTERM or Ctrl-C came: the step was finished and saved."""


def train_model(
    parameters: dict[str, torch.nn.Parameter],
    micro_batches: Callable[[int], list[MicroBatch]],
    loss: Callable[[MicroBatch], Loss],
    recipe: Training,
    seed: int,
    folder: Path | str,
    title: str,
    validate: Callable[[], float] | None = None,
    hooks: TrainingHooks = TrainingHooks(),  # noqa: B008 has no state
    made_with: Mapping[str, Any] | None = None,
) -> list[dict]:
    """Trains `parameters` in place; resumes from `folder` if it holds a checkpoint.

    Where several processes call it (`launch.run_processes`), they make each step together.

    Args:
        micro_batches: step -> the micro-batches of the step that this process passes; a pure function.
        validate: the loss on `valid` of what is trained, which it leaves as it was; called after the last step, and
            before as `training.validation` says. Where it is called before, the best step is what remains.
        hooks: what the training does besides; the default does nothing.
        folder: of the checkpoints; the caller removes it once the outcome is stored.
        made_with: what the run depends on besides the arguments (code, data, versions), in values of JSON. It goes on
            from no checkpoint that was made with anything else.

    Returns:
        The learning curve: one dict a step with step, loss, scheduled_rate, targets, positions, seconds and, of these,
        those that it waited for its batches; validated ones have valid_loss and validation_seconds.

    Raises:
        InputError: the loss is not finite.
        TrainingStopped: SIGTERM or Ctrl-C was received; call again to go on.
    """
    autocast = "no" if recipe.precision == "fp32" else recipe.precision
    accelerator = Accelerator(mixed_precision=autocast, cpu=next(iter(parameters.values())).device.type == "cpu")
    optimizer = hooks.create_optimizer(parameters, recipe)
    validations = Validations(validate, recipe, lambda: changing_tensors(parameters, hooks.state_tensors()), title)
    processes.copy_from_main([*parameters.values(), *hooks.state_tensors().values()])
    with processes.main_process_first():  # which puts aside what nothing may go on from
        done, curve = checkpoint.load_checkpoint(
            folder, parameters, optimizer, hooks.state_tensors(), made_with, validations.best
        )
    hooks.after_restore()
    progress = Progress(title, done, recipe.steps)
    replays = Replays([*parameters.values()], loss, accelerator, title)
    with TerminationSignal() as terminated, replays:
        while True:
            if validations.is_due(curve):
                validations.validate(curve)
            step = len(curve)
            if step == recipe.steps or validations.is_over(curve):
                break
            started = perf_counter()
            torch.manual_seed(step_seed(seed, step))  # of dropout, so that resume is exact
            hooks.before_step(step)
            waiting = perf_counter()
            batches = micro_batches(step)
            waited = perf_counter() - waiting
            hooks.see_batches(batches)
            done_here = update(parameters, batches, loss, optimizer, recipe, step, accelerator, hooks, seed, replays)
            own = *done_here, sum(micro.positions for micro in batches), terminated.received
            value, targets, positions, stopping = processes.sum_numbers(own)
            if not math.isfinite(value):
                raise divergence_error(title, f"the loss is {value} at step {step}")
            seconds = perf_counter() - started
            point = {"step": step, "loss": value, "scheduled_rate": recipe.learning_rate_at(step)}
            point |= {"targets": int(targets), "positions": int(positions)}
            curve.append(point | {"seconds": seconds, "waited": waited})
            progress(step, value)
            due = recipe.save_every and ((step + 1) % recipe.save_every == 0 or step + 1 == recipe.steps)
            if due or stopping:
                processes.check_agreement(parameters.values())
            if (due or stopping) and processes.is_main_process():  # before the step is validated, as it then is anew
                memory, best = hooks.state_tensors(), validations.best
                checkpoint.save_checkpoint(folder, step + 1, curve, parameters, optimizer, memory, made_with, best)
            if stopping:
                processes.wait_for_all()  # for the checkpoint: the first that ends has the others end too
                raise TrainingStopped(143)
    if done < recipe.steps:
        seconds, waited = (sum(point[key] for point in curve) for key in ("seconds", "waited"))
        print(f"{title}: {seconds:.1f} s, {waited / seconds:.1%} of it waiting for batches", flush=True)
    validations.restore_best()
    hooks.after_restore()
    return curve


def divergence_error(title: str, what: str) -> InputError:
    return InputError(title, what, fix="lower the learning rate", reason="diverged")


def step_seed(seed: int, step: int) -> int:
    """What a step draws with; no two seeds meet within a million steps."""
    return seed * 1_000_003 + step


def batch_seed(seed: int, number: int) -> int:
    """What a batch behind the first of a step draws with, in whichever process; no step's is the same."""
    return step_seed(seed, number) + (1 << 48)


def update(
    parameters: dict[str, torch.nn.Parameter],
    batches: list[MicroBatch],
    loss: Callable[[MicroBatch], Loss],
    optimizer: torch.optim.Optimizer,
    recipe: Training,
    step: int,
    accelerator: Accelerator,
    hooks: TrainingHooks,
    seed: int,
    replays: Replays,
) -> tuple[float, int]:
    """One optimizer step over micro-batches; the mean over tasks of each task's loss per target.

    Of several processes each returns its part of the sum and its own targets.
    """
    for group in optimizer.param_groups:
        group["lr"] = recipe.learning_rate_at(step) * group.get("ratio", 1)
    results = []
    counts, tasks = pooled_targets(batches), len({micro.task for micro in batches})
    replayed = any(micro.is_fixed for micro in batches)
    if replayed:
        replays.begin_step()
    drawing = recipe.batch_numbers(step).start
    for micro in batches:
        if micro.number > drawing:
            drawing = micro.number
            torch.manual_seed(batch_seed(seed, drawing))
        if replayed:
            parts = max(1, counts.get(micro.task, micro.targets)) * tasks
            results.append((replays.add_pass(micro, parts), micro.targets))
            continue
        with accelerator.autocast():
            total, n, extra = loss(micro)
        if micro.task in counts and n != micro.targets:
            raise ValueError(f"a micro-batch of {micro.task} has {n} targets, and {micro.targets} were announced")
        parts = max(1, counts.get(micro.task, n)) * tasks
        accelerator.backward((total + extra) / parts)
        results.append((total.detach() / parts, n))
    if replayed:
        replays.give_gradients()
    processes.sum_tensors([p.grad for p in parameters.values() if p.grad is not None])
    processes.sum_tensors(hooks.summed_tensors())
    penalty = hooks.step_penalty()
    if penalty is not None:
        accelerator.backward(penalty)
    accelerator.clip_grad_norm_(parameters.values(), recipe.clip)
    optimizer.step()
    hooks.after_step(step)
    optimizer.zero_grad(set_to_none=True)
    return float(sum(value for value, _ in results)), sum(n for _, n in results)


def pooled_targets(batches: list[MicroBatch]) -> dict[str, int]:
    """The targets of each task that has several micro-batches, in all processes."""
    targets: dict[str, list[int]] = {}
    for micro in batches:
        targets.setdefault(micro.task, []).append(micro.targets)
    several = processes.process_count() > 1
    sums = {task: sum(counts) for task, counts in targets.items() if several or len(counts) > 1}
    return {task: int(total) for task, total in zip(sums, processes.sum_numbers([*sums.values()]))}


class TerminationSignal:
    """Notes SIGTERM and Ctrl-C instead of dying from them; true once one came. A second Ctrl-C interrupts at once."""

    def __enter__(self) -> Self:
        self.received = False
        self.before: dict[int, Any] = {}
        answered = [number for number in STOPS if signal.getsignal(number) is not signal.SIG_IGN]
        with suppress(ValueError):  # not the main thread
            self.before = {number: signal.signal(number, self.note_signal) for number in answered}
        return self

    def note_signal(self, signum: int, frame: FrameType | None) -> None:
        self.received = True
        if signum == signal.SIGINT:
            signal.signal(signum, self.before[signum])

    def __bool__(self) -> bool:
        return self.received

    def __exit__(self, *_: object) -> None:
        for number, before in self.before.items():
            signal.signal(number, before)
