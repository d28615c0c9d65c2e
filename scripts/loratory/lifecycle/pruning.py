"""Trainings around models that are cut: a LoRA that learns while units go, and one whose costs are measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from loratory.adapters import core
from loratory.adapters.deltas import Adapter
from loratory.errors import InputError
from loratory.lifecycle import cutting
from loratory.lifecycle.contract import Arm
from loratory.lifecycle.room import Room
from loratory.lifecycle.sequence import JointTraining
from loratory.training.costs import PeakMemory
from loratory.training.session import AdapterSession

SMOOTH = 0.9  # of the scores, from one cut to the next
WARM, COOL = 0.1, 0.1  # shares of the steps before the first cut and behind the last one


def weight_importance(layer: core.AdaptedLinear) -> torch.Tensor:
    """(ĝ ⊙ (W + s B A))² `[out, in]`, with ĝ = g_B A + B g_A − g_B g_A: what a unit step of A and B takes from B A."""
    a, b = layer.adapter["A"], layer.adapter["B"]
    assert a.grad is not None and b.grad is not None
    gradient = b.grad @ a + b @ a.grad - b.grad @ a.grad
    delta = layer.weight_delta()
    assert not isinstance(delta, core.InputDependent)
    return (gradient * (layer.weight.float() + delta.to_dense())).square()


def cut_progress(step: int, steps: int) -> float:
    """How much of all that is to be cut is cut after a step, from 0 to 1: 1 − (1 − p)³."""
    first, last = cut_window(steps)
    p = 1.0 if step >= last else max(0, step - first) / (last - first)
    return 1 - (1 - p) ** 3


def cut_window(steps: int) -> tuple[int, int]:
    """(step of the first scores, step of the last cut)."""
    first = round(WARM * steps)
    return first, max(first, steps - 1 - round(COOL * steps))


class PruningSession(AdapterSession):
    """Scores the units by the LoRA's gradients, and masks those that are worth least, more and more of them."""

    parts: Sequence[cutting.Part]
    share: float
    interval: int
    masks: dict[str, torch.Tensor]
    scores: dict[str, torch.Tensor]

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        super().after_step(step)
        first, last = cut_window(self.recipe.steps)
        if step == last or (first <= step < last and (step - first) % self.interval == 0):
            for part in self.parts:
                self.cut_units(part, cut_progress(step, self.recipe.steps))

    def cut_units(self, part: cutting.Part, progress: float) -> None:
        layers = {name: self.layers[name] for name in (*part.rows, *part.columns) if name in self.layers}
        sums = part.unit_sums({name: weight_importance(layer) for name, layer in layers.items()})
        mask, scores = self.masks[part.name], self.scores[part.name]
        scores.lerp_(mask * sums / sums.norm().clamp(min=torch.finfo(sums.dtype).tiny), 1 - SMOOTH)
        number = part.units - round(progress * (part.units - part.kept_number(self.share)))
        mask.zero_()
        mask[cutting.best_units(scores, number)] = 1

    def state_tensors(self) -> dict[str, torch.Tensor]:
        found = {f"mask.{name}": mask for name, mask in self.masks.items()}
        found |= {f"score.{name}": score for name, score in self.scores.items()}
        return super().state_tensors() | found


class PruningTraining(JointTraining):
    """LoRAPrune; see `procedures/lora_prune.py`. The adapter that it yields is trained for the units in `kept`."""

    def __init__(
        self,
        name: str,
        room: Room,
        domains: Sequence[str],
        parts: Sequence[cutting.Part],
        share: float,
        interval: int,
    ) -> None:
        super().__init__(name, room, domains)
        self.parts, self.share, self.interval = parts, share, interval
        device = next(self.base.model.parameters()).device
        self.masks = {part.name: torch.ones(part.units, device=device) for part in parts}
        self.scores = {part.name: torch.zeros(part.units, device=device) for part in parts}

    @property
    def kept(self) -> cutting.Kept:
        return {name: mask.nonzero()[:, 0] for name, mask in self.masks.items()}

    def learn_domain(self, domain: str, layers: dict[str, core.AdaptedLinear]) -> None:
        with cutting.mask_units(self.base.model, self.parts, self.masks):
            super().learn_domain(domain, layers)

    def make_hooks(self, domain: str, layers: dict[str, core.AdaptedLinear]) -> AdapterSession:
        super().make_hooks(domain, layers)
        session = self.open_session(PruningSession, layers, self.room.examples(domain, "train"))
        session.parts, session.share, session.interval = self.parts, self.share, self.interval
        session.masks, session.scores = self.masks, self.scores
        return session


def check_targets(room: Room, parts: Sequence[cutting.Part]) -> None:
    """Raises:
    InputError: the adapter has no layer in a part, so that nothing says which of its units matter.
    """
    targets = core.target_layers(room.base.model, room.method.target_modules, room.base.heads)
    for part in parts:
        if not targets.keys() & {*part.rows, *part.columns}:
            what, fix = f"the adapter has no layer in {part.name}", "leave `target_modules` of the adapter out"
            raise InputError(f"lifecycle.{room.name}.adapter", what, None, "one whose gradients score its units", fix)


class MeasuredTraining(JointTraining):
    """A plain training that says how many numbers it holds, and on a GPU how many bytes it came to need."""

    def iterate_arms(self) -> Iterator[Arm]:
        self.memory = PeakMemory(self.base.model)
        yield from super().iterate_arms()

    def measures(self) -> dict[str, float]:
        found = super().measures()
        found |= {f"{what} while training": size for what, size in cutting.model_size(self.base.model).items()}
        peak = self.memory.peak_bytes()
        return found if peak is None else found | {"peak training MB": peak / 1e6}


@contextmanager
def wear_adapter(room: Room, adapter: Adapter) -> Iterator[None]:
    """Inside, a LoRA of the room's method lies on its base with the factors of a stored one."""
    model = room.base.model
    try:
        for name, layer in core.attach(model, room.method, room.seed, room.base.heads).items():
            for key in ("A", "B"):
                layer.adapter[key].data.copy_(getattr(adapter.deltas[name], key))
        yield
    finally:
        core.detach(model)
        model.requires_grad_(False)
