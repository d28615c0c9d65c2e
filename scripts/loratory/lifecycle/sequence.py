"""One adapter that learns several domains: in turn, with or without a memory of the earlier ones, or all at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from loratory.adapters import core
from loratory.bases.core import Batch, Encoded
from loratory.lifecycle.contract import Arm
from loratory.lifecycle.room import Room
from loratory.training.fit import Loss, MicroBatch, train_model
from loratory.training.recompute import recompute_activations
from loratory.training.session import AdapterSession

MEMORY = "memory"
Parameters = dict[str, nn.Parameter]
Session = TypeVar("Session", bound=AdapterSession)


class SequentialTraining:
    """Plain: each domain is learnt from where the one before ended, and nothing holds on to that.

    Args:
        name: of the arms; those before the last domain are `name:after_1` and so on.
    """

    def __init__(self, name: str, room: Room, domains: Sequence[str]) -> None:
        self.name, self.room, self.domains = name, room, domains
        self.base = room.base

    def iterate_arms(self) -> Iterator[Arm]:
        """The adapter behind each domain, on the base's model until the next one is asked for."""
        layers = core.attach(self.base.model, self.room.method, self.room.seed, self.base.heads)
        self.parameters = core.trainable_parameters(self.base.model)
        try:
            for number, domain in enumerate(self.domains, start=1):
                self.learn_domain(domain, layers)
                self.base.model.eval()
                whole = number == len(self.domains)
                name = self.name if whole else f"{self.name}:after_{number}"
                with self.predicting_weights():
                    yield Arm(
                        name, self.base, self.base.model, measures=self.measures() if whole else {}, stored=whole
                    )
        finally:
            core.detach(self.base.model)
            self.base.model.requires_grad_(False)

    def measures(self) -> dict[str, float]:
        return {"trained numbers": sum(p.numel() for p in self.parameters.values())}

    @contextmanager
    def predicting_weights(self) -> Iterator[None]:
        """Inside, the model holds what predicts."""
        yield

    def learn_domain(self, domain: str, layers: dict[str, core.AdaptedLinear]) -> None:
        hooks = self.make_hooks(domain, layers)
        job = self.room.job(f"{self.name} {domain}")
        self.base.model.train()
        torch.manual_seed(self.room.seed)
        with recompute_activations(self.base.model, self.room.adapter.training.gradient_checkpointing):
            train_model(
                self.parameters,
                lambda step: self.micro_batches(hooks, domain, step),
                self.loss,
                self.room.recipe,
                self.room.seed,
                *job.folder_and_title,
                hooks=hooks,
                made_with=job.made_with | {"before": self.domains[: self.domains.index(domain)]},
            )
        self.end_domain(domain, hooks)

    def make_hooks(self, domain: str, layers: dict[str, core.AdaptedLinear]) -> AdapterSession:
        return self.open_session(AdapterSession, layers, self.room.examples(domain, "train"))

    def open_session(
        self, kind: type[Session], layers: dict[str, core.AdaptedLinear], items: Sequence[Encoded]
    ) -> Session:
        room = self.room
        return kind(self.base, room.method, layers, items, room.recipe, room.seed, room.adapter.training.augmentation)

    def micro_batches(self, session: AdapterSession, domain: str, step: int) -> list[MicroBatch]:
        return task_batches(domain, session, step)

    def loss(self, micro: MicroBatch) -> Loss:
        return Loss(*self.base.loss(self.base.model, micro.batch))

    def end_domain(self, domain: str, session: AdapterSession) -> None:
        """What is kept of a domain that has been learnt."""


def task_batches(task: str, session: AdapterSession, step: int) -> list[MicroBatch]:
    """The micro-batches that a session has for a step, as those of a task."""
    return [replace(micro, task=task) for micro in session.collate_step(session.read_step(step))]


class JointTraining(SequentialTraining):
    """All domains at once, a batch of each at every step: what learning in turn could come to at best."""

    def __init__(self, name: str, room: Room, domains: Sequence[str]) -> None:
        super().__init__(name, room, domains[-1:])
        self.every = domains

    def make_hooks(self, domain: str, layers: dict[str, core.AdaptedLinear]) -> AdapterSession:
        self.sessions = {
            each: self.open_session(AdapterSession, layers, self.room.examples(each, "train")) for each in self.every
        }
        return self.sessions[domain]

    def micro_batches(self, session: AdapterSession, domain: str, step: int) -> list[MicroBatch]:
        return [micro for each in self.every for micro in task_batches(each, self.sessions[each], step)]


class Reservoir:
    """`size` of all records that were offered, each kept with the same probability (Vitter 1985, algorithm R)."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.offered, self.kept = size, 0, list[Encoded]()
        self.random = np.random.default_rng(seed)

    def offer_items(self, items: Sequence[Encoded]) -> None:
        for item in items:
            self.offered += 1
            if len(self.kept) < self.size:
                self.kept.append(item)
            elif (place := int(self.random.integers(self.offered))) < self.size:
                self.kept[place] = item


class ReplayTraining(SequentialTraining):
    """Beside every batch of a domain, one of records of the domains before it."""

    def __init__(self, name: str, room: Room, domains: Sequence[str], memory: int) -> None:
        super().__init__(name, room, domains)
        self.reservoir = Reservoir(memory, room.seed)

    def make_hooks(self, domain: str, layers: dict[str, core.AdaptedLinear]) -> AdapterSession:
        self.replay = (
            self.open_session(AdapterSession, layers, [*self.reservoir.kept]) if self.reservoir.kept else None
        )
        return super().make_hooks(domain, layers)

    def micro_batches(self, session: AdapterSession, domain: str, step: int) -> list[MicroBatch]:
        found = super().micro_batches(session, domain, step)
        return found if self.replay is None else found + task_batches(MEMORY, self.replay, step)

    def end_domain(self, domain: str, session: AdapterSession) -> None:
        self.reservoir.offer_items(self.room.examples(domain, "train"))

    def measures(self) -> dict[str, float]:
        return super().measures() | {"records kept": len(self.reservoir.kept)}


class EwcSession(AdapterSession):
    """Pulls weights back to where they were behind the earlier domains, the more the gradients there were large."""

    weight: float
    anchors: Sequence[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]]  # (θ*, F) of each earlier domain
    held: Parameters

    def step_penalty(self) -> torch.Tensor | None:
        own = super().step_penalty()
        if not self.anchors:
            return own
        terms = [
            (fisher[name] * (parameter - before[name]).square()).sum()
            for before, fisher in self.anchors
            for name, parameter in self.held.items()
        ]
        pulled = self.weight / 2 * torch.stack(terms).sum()
        return pulled if own is None else own + pulled


class EwcTraining(SequentialTraining):
    """EWC: a penalty for every earlier domain, and no memory (Kirkpatrick et al. 2017, arXiv:1612.00796)."""

    def __init__(self, name: str, room: Room, domains: Sequence[str], weight: float, batches: int) -> None:
        super().__init__(name, room, domains)
        self.weight, self.batches = weight, batches
        self.anchors: list[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]] = []

    def make_hooks(self, domain: str, layers: dict[str, core.AdaptedLinear]) -> AdapterSession:
        session = self.open_session(EwcSession, layers, self.room.examples(domain, "train"))
        session.weight, session.anchors, session.held = self.weight, [*self.anchors], self.parameters
        return session

    def end_domain(self, domain: str, session: AdapterSession) -> None:
        """Notes the weights and the mean squared gradients of single batches' mean losses."""
        fisher = {name: torch.zeros_like(parameter) for name, parameter in self.parameters.items()}
        self.base.model.eval()
        for number in range(self.batches):
            session.loss(session.batch(number)).backward()
            for name, parameter in self.parameters.items():
                if parameter.grad is not None:
                    fisher[name] += parameter.grad.square() / self.batches
                    parameter.grad = None
        self.anchors.append(({name: p.detach().clone() for name, p in self.parameters.items()}, fisher))


class SlowSession(AdapterSession):
    """Moves the slow adapter behind the fast one after every step."""

    share: float
    fast: Parameters
    slow: dict[str, torch.Tensor]

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        super().after_step(step)
        for name, parameter in self.fast.items():
            self.slow[name].lerp_(parameter.detach(), 1 - self.share)

    def state_tensors(self) -> dict[str, torch.Tensor]:
        return super().state_tensors() | {f"slow.{name}": tensor for name, tensor in self.slow.items()}


class SlowTraining(ReplayTraining):
    """I-LoRA; see `procedures/i_lora.py`.

    Args:
        share: λ. consistency: γ.
    """

    def __init__(
        self, name: str, room: Room, domains: Sequence[str], memory: int, share: float, consistency: float
    ) -> None:
        super().__init__(name, room, domains, memory)
        self.share, self.consistency = share, consistency
        self.slow: dict[str, torch.Tensor] = {}

    def make_hooks(self, domain: str, layers: dict[str, core.AdaptedLinear]) -> AdapterSession:
        super().make_hooks(domain, layers)
        if not self.slow:
            self.slow = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        session = self.open_session(SlowSession, layers, self.room.examples(domain, "train"))
        session.share, session.fast, session.slow = self.share, self.parameters, self.slow
        return session

    def loss(self, micro: MicroBatch) -> Loss:
        if micro.task != MEMORY or not self.consistency:
            return super().loss(micro)
        with torch.no_grad(), self.predicting_weights(), record_states(self.base.model) as slow:
            self.base.loss(self.base.model, micro.batch)
        with record_states(self.base.model) as fast:
            total, targets = self.base.loss(self.base.model, micro.batch)
        distance = states_distance(fast, slow, micro.batch)
        parts = targets * 2  # what the loop divides by: targets of the step, and two tasks
        return Loss(total, targets, self.consistency * distance * parts)

    @contextmanager
    def predicting_weights(self) -> Iterator[None]:
        fast = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        copy_weights(self.slow, self.parameters)
        try:
            yield
        finally:
            copy_weights(fast, self.parameters)


@torch.no_grad()
def copy_weights(values: dict[str, torch.Tensor], parameters: Parameters) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])


def stacked_blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks of a transformer, in order: what stands in lists of modules that stand in no other such list."""
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    outer = [m for name, m in lists if not any(name != other and name.startswith(f"{other}.") for other, _ in lists)]
    return [block for blocks in outer for block in blocks]


@contextmanager
def record_states(model: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Inside, what comes out of each block of a pass is noted."""
    found: list[torch.Tensor] = []

    def note_states(block: nn.Module, inputs: Any, output: Any) -> None:
        found.append(output if isinstance(output, torch.Tensor) else output[0])

    handles = [block.register_forward_hook(note_states) for block in stacked_blocks(model)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def states_distance(some: Sequence[torch.Tensor], others: Sequence[torch.Tensor], batch: Batch) -> torch.Tensor:
    """Mean squared difference of hidden states `[batch, length, width]`, the mean over blocks of that over positions.

    Positions of a text's padding are left out; an encoder of sound pads nothing that it does not read.
    """
    mask = batch["mask"].bool()
    terms = []
    for one, other in zip(some, others, strict=True):
        squares = (one.float() - other.float()).square().mean(-1)
        terms.append(squares[mask].mean() if squares.shape == mask.shape else squares.mean())
    return torch.stack(terms).mean()
