"""Looking at `valid` while something is trained: the best step is kept, and a training that gains no more may end."""

from collections.abc import Callable, Mapping, Sequence
from math import inf, isfinite, nan
from time import perf_counter
from typing import Any

import torch

from loratory.training import processes
from loratory.training.schedule import Training, Trial

Tensors = dict[str, torch.Tensor]


def changing_tensors(parameters: Mapping[str, torch.Tensor], memory: Tensors) -> Tensors:
    """All that a training changes, by names of one kind."""
    found = {f"memory/{name}": tensor for name, tensor in memory.items()}
    return found | {f"parameter/{name}": parameter for name, parameter in parameters.items()}


class Validations:
    """The validations of a training: after every `validate_every` steps and after the last one.

    What was found stands in the learning curve (`valid_loss` of a step), so that a training that goes on knows it.

    Args:
        loss: of what is trained, on `valid`; it leaves the training as it was. None: nothing is validated.
        tensors: → {name: what is trained, and what changes with it}.
    """

    def __init__(
        self, loss: Callable[[], float] | None, recipe: Training, tensors: Callable[[], Tensors], title: str
    ) -> None:
        self.loss, self.recipe, self.title = loss, recipe, title
        self.every, self.patience = (
            (recipe.validate_every, recipe.patience) if isinstance(recipe, Trial) and loss else (0, None)
        )
        self.tensors = tensors
        self.best: Tensors = {}  # those of the best step, on the CPU

    def is_due(self, curve: Sequence[dict]) -> bool:
        """Whether the latest step's validation is still to be made."""
        steps, last = len(curve), len(curve) == self.recipe.steps
        due = last or (self.every and steps % self.every == 0)
        return bool(self.loss and curve and due and "valid_loss" not in curve[-1])

    def validate(self, curve: Sequence[dict]) -> None:
        assert self.loss is not None
        started, before = perf_counter(), lowest_loss(curve)
        loss = processes.number_of_main(self.loss())
        if loss < before and self.every:
            self.best = {name: tensor.detach().to("cpu", copy=True) for name, tensor in self.tensors().items()}
        curve[-1].update(valid_loss=loss, validation_seconds=perf_counter() - started)
        if self.every:
            lowest = ", the lowest so far" if loss < before else ""
            print(f"{self.title}: loss on valid {loss:.4f} after step {len(curve)}{lowest}", flush=True)

    def is_over(self, curve: Sequence[dict]) -> bool:
        """Whether the loss has not fallen for `patience` validations."""
        if self.patience is None:
            return False
        losses = [point["valid_loss"] for point in curve if "valid_loss" in point]
        lowest = lowest_loss(curve)
        return len(losses) - (losses.index(lowest) + 1 if lowest in losses else 0) >= self.patience

    @torch.no_grad()
    def restore_best(self) -> None:
        """Puts the best step back in place, where there is one."""
        current = self.tensors() if self.best else {}
        for name, tensor in self.best.items():
            current[name].copy_(tensor)


def lowest_loss(curve: Sequence[dict]) -> float:
    """Of all validations so far; infinite without one."""
    return min((p["valid_loss"] for p in curve if isfinite(p.get("valid_loss", nan))), default=inf)


def kept_point(curve: Sequence[dict]) -> dict[str, Any]:
    """The point of the step that is kept: of the validated ones the first of the lowest loss, or the last."""
    lowest = lowest_loss(curve)
    return next((point for point in curve if point.get("valid_loss") == lowest), curve[-1])


def describe_validation(curve: Sequence[dict]) -> dict[str, Any]:
    """What is stored of a training: its steps, which of them is kept if any, and the seconds of looking."""
    seconds = sum(point.get("validation_seconds", 0.0) for point in curve)
    best = kept_point(curve)["step"] if curve else None
    return {"steps": len(curve), "best_step": best, "validation_time": round(seconds, 3)}
