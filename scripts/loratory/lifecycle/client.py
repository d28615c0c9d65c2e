"""One client of a federation: its steps on its own records, and what it sends of them.

Tensors go as Flower sends them, as `.npy` without pickle. Whoever receives some takes them only if they are as many,
as long and as shaped as its own, and finite. In a process of its own, `python -m loratory.lifecycle.client` is told by
JSON on its standard input whose records it has and where the server is.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from flwr.client import Client
from flwr.common import (
    Code,
    FitIns,
    FitRes,
    GetPropertiesIns,
    GetPropertiesRes,
    Parameters,
    Scalar,
    Status,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)

from loratory.adapters import core
from loratory.adapters.contract import Method
from loratory.adapters.contract import Parameters as Trained
from loratory.bases.core import Encoded
from loratory.lifecycle.privacy import Privacy, take_private_step
from loratory.lifecycle.room import Room
from loratory.training import fit
from loratory.training.session import AdapterSession

FINE = Status(Code.OK, "")


class SgdSession(AdapterSession):
    """Plain gradient descent instead of the method's optimizer."""

    def create_optimizer(self, parameters: Trained, recipe: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters.values(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)


SESSIONS: dict[str, type[AdapterSession]] = {"adamw": AdapterSession, "sgd": SgdSession}


class RefusedTensors(ValueError):
    """What was sent is not what was asked for."""


def pack_tensors(trained: Trained) -> Parameters:
    return ndarrays_to_parameters([p.detach().cpu().numpy() for p in trained.values()])


def unpack_tensors(sent: Parameters, trained: Trained) -> dict[str, torch.Tensor]:
    """{name: tensor} of what was sent, in the order of the trained parameters.

    Raises:
        RefusedTensors: other tensors than these, or a number that is not finite.
    """
    if len(sent.tensors) != len(trained):
        raise RefusedTensors(f"{len(sent.tensors)} tensors instead of {len(trained)}")
    for name, data, length in zip(trained, sent.tensors, map(len, pack_tensors(trained).tensors)):
        if len(data) != length:  # before anything of it is read
            raise RefusedTensors(f"{len(data)} bytes instead of {length} for {name}")
    try:
        arrays = parameters_to_ndarrays(sent)
    except ValueError as error:
        raise RefusedTensors(f"no tensors ({error})") from error
    for (name, own), array in zip(trained.items(), arrays):
        if array.dtype != np.float32 or array.shape != tuple(own.shape):
            raise RefusedTensors(f"{array.dtype} {array.shape} for {name} instead of float32 {tuple(own.shape)}")
        if not np.isfinite(array).all():
            raise RefusedTensors(f"numbers that are not finite, in {name}")
    return {name: torch.from_numpy(array) for name, array in zip(trained, arrays)}


@torch.no_grad()
def fill_parameters(trained: Trained, values: dict[str, torch.Tensor]) -> None:
    for name, parameter in trained.items():
        parameter.copy_(values[name])


def fixed_digest(layers: dict[str, core.AdaptedLinear]) -> str:
    """Of what is fixed in all layers, such as A: whoever has another one learns something else."""
    digest = sha256()
    for name, layer in sorted(layers.items()):
        for key, tensor in layer.named_buffers(recurse=False):
            digest.update(f"{name}.{key}".encode() + tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


class AdapterClient(Client):
    """A client whose adapter lies on the room's base; what it learnt stays there until somebody fills it anew.

    Args:
        title: of the training, by which its random numbers differ from another's. number: of the client, from 0.
        key: that the server knows its clients by.
    """

    def __init__(
        self,
        title: str,
        number: int,
        room: Room,
        method: Method,
        layers: dict[str, core.AdaptedLinear],
        trained: Trained,
        items: Sequence[Encoded],
        optimizer: str,
        privacy: Privacy | None = None,
        key: str = "",
    ) -> None:
        self.title, self.number, self.items, self.privacy, self.key = title, number, items, privacy, key
        self.base, self.seed, self.recipe, self.trained = room.base, room.seed, room.recipe, trained
        self.fixed = fixed_digest(layers)
        augmentation = room.adapter.training.augmentation
        self.session = SESSIONS[optimizer](room.base, method, layers, items, room.recipe, room.seed, augmentation)
        on_cpu = next(iter(trained.values())).device.type == "cpu"
        autocast = "no" if self.recipe.precision == "fp32" else self.recipe.precision
        self.accelerator = Accelerator(mixed_precision=autocast, cpu=on_cpu)

    def get_properties(self, ins: GetPropertiesIns) -> GetPropertiesRes:
        own: dict[str, Scalar] = {
            "client": self.number,
            "examples": len(self.items),
            "fixed": self.fixed,
            "key": self.key,
        }
        return GetPropertiesRes(FINE, own)

    def fit(self, ins: FitIns) -> FitRes:
        """The steps from `first` up to `stop` of the training, with a new optimizer, from what was sent.

        A private client says no loss: nobody has added noise to it.
        """
        fill_parameters(self.trained, unpack_tensors(ins.parameters, self.trained))
        losses = self.take_steps(range(int(ins.config["first"]), int(ins.config["stop"])))
        said: dict[str, Scalar] = {} if self.privacy is not None else {"loss": float(np.mean(losses))}
        return FitRes(FINE, pack_tensors(self.trained), len(self.items), said)

    def take_steps(self, steps: range) -> list[float]:
        """The loss of each step."""
        optimizer = self.session.create_optimizer(self.trained, self.recipe)
        optimizer.zero_grad()  # of a client of the same process that has failed in a step
        take = self.take_plain_step if self.privacy is None else self.take_private_step
        self.base.model.train()
        losses = []
        for step in steps:
            torch.manual_seed(fit.step_seed(self.seed, step))
            losses.append(take(optimizer, step))
        return losses

    def take_plain_step(self, optimizer: torch.optim.Optimizer, step: int) -> float:
        loss, _ = fit.update(
            self.trained,
            self.session.collate_step(self.session.read_step(step)),
            lambda one: fit.Loss(*self.base.loss(self.base.model, one.batch)),
            optimizer,
            self.recipe,
            step,
            self.accelerator,
            self.session,
            self.seed,
        )
        return loss

    def take_private_step(self, optimizer: torch.optim.Optimizer, step: int) -> float:
        assert self.privacy is not None
        for group in optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate_at(step) * group.get("ratio", 1)
        own = f"{self.title} client {self.number} step {step}"  # no two have the same noise
        chosen = self.privacy.draw_examples(len(self.items), core.generator_for(self.seed, f"{own} draw"))
        noise = torch.Generator(next(iter(self.trained.values())).device)
        noise.manual_seed(core.generator_for(self.seed, f"{own} noise").initial_seed())
        losses: list[float] = []

        def gradients() -> Iterator[Sequence[torch.Tensor]]:
            for place in chosen:
                batch = self.session.make_batch(self.session.augment_items([self.items[place]], step), step)
                with self.accelerator.autocast():
                    total, targets = self.base.loss(self.base.model, batch)
                losses.append(float(total.detach()) / targets)
                yield torch.autograd.grad(total / targets, [*self.trained.values()], materialize_grads=True)

        private = self.privacy.private_optimizer(optimizer, len(self.items), noise)
        take_private_step(private, self.trained, gradients())
        return sum(losses) / len(losses) if losses else math.nan


def serve_client(told: dict[str, Any]) -> None:
    """Runs one client of a federation until its server leaves. See `federation.start_client_process`."""
    from flwr.client import start_client

    from loratory.bases.core import load_base
    from loratory.config import adapter_entry, domain_options, stage_entry
    from loratory.lifecycle.room import open_room

    entry, adapter = stage_entry(told["entry"]), adapter_entry(told["adapter"])
    tasks = {domain: domain_options(domain, "Task", task) for domain, task in told["tasks"].items()}
    base = load_base(told["base"], told["device"])
    room = open_room(
        told["stage"], entry, base, adapter, told["seed"], told["data"], tasks, told["device"], "checkpoints", "out"
    )
    training = entry.federations(entry, room)[told["arm"]]  # type: ignore[attr-defined]
    with training.attached_adapter() as layers:
        client = training.make_client(told["number"], layers, told["key"])
        start_client(server_address=told["address"], client=client, insecure=True, max_retries=0)


if __name__ == "__main__":
    serve_client(json.load(sys.stdin))
