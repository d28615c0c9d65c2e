"""Rounds of a federation: a server asks clients to learn on from its adapter, and averages what they send.

Flower is the engine. Its server, its strategy and its clients are the same in a simulation, where they stand in one
process and share one base, and with processes, where each client loads the base and speaks gRPC over loopback. The
simulation needs no Ray: a client of Flower's server is whatever answers it, and here that is an object.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from flwr.common import FitIns, FitRes, GetPropertiesIns, Parameters
from flwr.common.serde import fit_ins_from_proto, fit_ins_to_proto, fit_res_from_proto, fit_res_to_proto
from flwr.proto.transport_pb2 import ClientMessage, ServerMessage
from flwr.server import Server, SimpleClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import FedAvg
from flwr.server.superlink.fleet.grpc_bidi.grpc_server import start_grpc_server

from loratory.adapters import core
from loratory.adapters.contract import Method
from loratory.bases.core import Encoded
from loratory.errors import InputError
from loratory.lifecycle.client import (
    SESSIONS,
    AdapterClient,
    RefusedTensors,
    fill_parameters,
    fixed_digest,
    pack_tensors,
    unpack_tensors,
)
from loratory.lifecycle.contract import Arm
from loratory.lifecycle.privacy import Privacy, refuse_coupled_layers
from loratory.lifecycle.room import Room
from loratory.lifecycle.sequence import JointTraining
from loratory.lifecycle.sequence import Parameters as Trained
from loratory.training import checkpoint
from loratory.training.fit import TerminationSignal, TrainingStopped
from loratory.training.progress import Progress
from loratory.training.recompute import recompute_activations
from loratory.training.session import AdapterSession

LOOPBACK = "127.0.0.1"
STARTED = 600  # seconds within which the process of a client must have loaded its base
logging.getLogger("flwr").setLevel(logging.CRITICAL)  # what matters of a round is told here, in one line


class PlainTraining(JointTraining):
    """A training of one adapter on some examples by the optimizer that clients have."""

    def __init__(self, name: str, room: Room, items: Sequence[Encoded], optimizer: str) -> None:
        super().__init__(name, room, ("own records",))
        self.items, self.session = items, SESSIONS[optimizer]

    def make_hooks(self, domain: str, layers: dict[str, core.AdaptedLinear]) -> AdapterSession:
        self.sessions = {domain: self.open_session(self.session, layers, self.items)}
        return self.sessions[domain]


@dataclass(frozen=True)
class Plan:
    """Attributes:
    local_steps: of a client in a round. optimizer: of clients, anew in every round.
    participation: share of the clients that a round asks. processes: whether each client is one.
    """

    local_steps: int
    optimizer: str
    participation: float = 1.0
    processes: bool = False


class LocalProxy(ClientProxy):
    """A client in the server's own process. What it is told and what it says are written and read as if they went
    over a wire."""

    def __init__(self, client: AdapterClient) -> None:
        super().__init__(str(client.number))
        self.client = client

    def get_properties(self, ins: GetPropertiesIns, timeout: float | None, group_id: int | None) -> Any:
        return self.client.get_properties(ins)

    def fit(self, ins: FitIns, timeout: float | None, group_id: int | None) -> FitRes:
        told = ServerMessage.FromString(ServerMessage(fit_ins=fit_ins_to_proto(ins)).SerializeToString())
        said = fit_res_to_proto(self.client.fit(fit_ins_from_proto(told.fit_ins)))
        return fit_res_from_proto(type(said).FromString(said.SerializeToString()))

    def get_parameters(self, ins: Any, timeout: float | None, group_id: int | None) -> Any:
        raise NotImplementedError("the server knows them")

    def evaluate(self, ins: Any, timeout: float | None, group_id: int | None) -> Any:
        raise NotImplementedError("arms are asked by the stage")

    def reconnect(self, ins: Any, timeout: float | None, group_id: int | None) -> Any:
        raise NotImplementedError("it is here")


class CheckedFedAvg(FedAvg):
    """FedAvg, weighted by examples, of what is as it should be; who answers otherwise, or not, is left out and named.

    Attributes:
        numbers: {Flower's name of a client: its number}, of clients that are what they should be.
        round: facts about the last round: who was asked, who was lost, bytes of a message each way; of plain clients
            the mean loss.
    """

    def __init__(self, training: FederatedTraining, key: str) -> None:
        super().__init__(fraction_evaluate=0.0, min_evaluate_clients=0)
        self.training, self.key = training, key
        self.numbers: dict[str, int] = {}
        self.round: dict[str, Any] = {}

    def meet_clients(self, manager: Any, fixed: str) -> None:
        """Asks everybody who they are; clients with another key or another fixed A are never asked again."""
        for cid, proxy in [*manager.all().items()]:
            try:
                said = proxy.get_properties(GetPropertiesIns({}), timeout=STARTED, group_id=None).properties
            except Exception:  # it has died, as the first round will tell
                continue
            if said.get("key") == self.key and said.get("fixed") == fixed:
                self.numbers[cid] = int(said["client"])
            else:
                print(f"{self.training.name}: a client with another key or another fixed A is refused", flush=True)

    def configure_fit(self, server_round: int, parameters: Parameters, client_manager: Any) -> list:
        """As `FedAvg`; who is asked depends on the seed and the round, not on who came first."""
        asked, steps = self.training.clients_asked(server_round), self.training.steps_of(server_round)
        here = {self.numbers[cid]: proxy for cid, proxy in client_manager.all().items() if cid in self.numbers}
        ins = FitIns(parameters, {"first": steps.start, "stop": steps.stop})
        found = [(here[number], ins) for number in asked if number in here]
        self.round = {"asked": asked, "told_bytes": ServerMessage(fit_ins=fit_ins_to_proto(ins)).ByteSize()}
        if not found:
            raise self.empty_error(server_round, "none is connected")
        return found

    def aggregate_fit(self, server_round: int, results: list, failures: list) -> tuple[Parameters | None, dict]:
        """As `FedAvg`, of the answers that pass, in the order of their clients.

        Raises:
            InputError: none does.
        """
        failed = [f"{type(error).__name__}: {error}".strip(": ") for error in failures]
        passed, reasons = {}, dict.fromkeys(self.round["asked"], "; ".join(["no answer", *dict.fromkeys(failed)]))
        lengths = [ClientMessage(fit_res=fit_res_to_proto(answer)).ByteSize() for _, answer in results]
        for proxy, answer in results:
            number = self.numbers[proxy.cid]
            try:
                unpack_tensors(answer.parameters, self.training.trained)
                if answer.num_examples != len(self.training.items[number]):
                    raise RefusedTensors(f"{answer.num_examples} examples, which it has not")
            except RefusedTensors as error:
                reasons[number] = str(error)
            else:
                passed[number] = (proxy, answer)
                del reasons[number]
        for number, reason in reasons.items():
            print(f"{self.training.name}: round {server_round} goes on without client {number} ({reason})", flush=True)
        if not passed:
            raise self.empty_error(server_round, "; ".join(dict.fromkeys(reasons.values())))
        ordered = [passed[number] for number in sorted(passed)]
        self.round |= {"lost": sorted(reasons), "said_bytes": float(np.mean(lengths))}
        if self.training.privacy is None:
            weights = [answer.num_examples for _, answer in ordered]
            losses = [answer.metrics.get("loss", np.nan) for _, answer in ordered]
            self.round["loss"] = float(np.average(losses, weights=weights))
        return super().aggregate_fit(server_round, ordered, [])

    def empty_error(self, number: int, why: str) -> InputError:
        where = f"lifecycle.{self.training.room.name}: {self.training.name}"
        return InputError(where, f"no client is left in round {number} ({why})", expected="one whose answer is whole")


class FederatedTraining:
    """One adapter learnt by all clients.

    Args:
        items: the examples of each client. privacy: of each client; None: none.
        entry: of the config, which the process of a client reads anew.
    """

    def __init__(
        self,
        name: str,
        room: Room,
        method: Method,
        items: Sequence[Sequence[Encoded]],
        plan: Plan,
        privacy: Privacy | None = None,
        entry: Any = None,
    ) -> None:
        self.name, self.room, self.method, self.items = name, room, method, items
        self.plan, self.privacy, self.entry = plan, privacy, entry
        self.model = room.base.model

    @property
    def rounds(self) -> int:
        return -(-self.room.recipe.steps // self.plan.local_steps)

    def steps_of(self, number: int) -> range:
        """The steps of a round, which are counted from 1; the last one may have fewer."""
        first = (number - 1) * self.plan.local_steps
        return range(first, min(first + self.plan.local_steps, self.room.recipe.steps))

    def clients_asked(self, number: int) -> list[int]:
        """The clients that a round asks."""
        clients = len(self.items)
        random = np.random.default_rng([self.room.seed, number])
        return sorted(random.permutation(clients)[: max(1, round(self.plan.participation * clients))].tolist())

    def iterate_arms(self) -> Iterator[Arm]:
        with self.attached_adapter() as layers:
            curve = self.learn_rounds(layers)
            self.model.eval()
            yield Arm(self.name, self.room.base, self.model, measures=self.measures(curve), stored=True)

    @contextmanager
    def attached_adapter(self) -> Iterator[dict[str, core.AdaptedLinear]]:
        """Inside, the adapter lies on the base, at first as all clients have it."""
        base = self.room.base
        layers = core.attach(self.model, self.method, self.room.seed, base.heads)
        self.trained: Trained = core.trainable_parameters(self.model)
        try:
            if self.privacy is not None:
                refuse_coupled_layers(self.model, f"lifecycle.{self.room.name}: {self.name}")
            with recompute_activations(self.model, self.room.adapter.training.gradient_checkpointing):
                yield layers
        finally:
            core.detach(self.model)
            self.model.requires_grad_(False)

    def make_client(self, number: int, layers: dict[str, core.AdaptedLinear], key: str = "") -> AdapterClient:
        items, optimizer = self.items[number], self.plan.optimizer
        return AdapterClient(
            self.name, number, self.room, self.method, layers, self.trained, items, optimizer, self.privacy, key
        )

    def learn_rounds(self, layers: dict[str, core.AdaptedLinear]) -> list[dict]:
        """Fills the adapter; returns facts about each round. Goes on behind the last round that was saved."""
        job, key = self.room.job(self.name), secrets.token_hex()
        stateless = torch.optim.SGD(self.trained.values(), lr=0.0)  # clients begin each round with a new optimizer
        done, curve = checkpoint.load_checkpoint(job.folder, self.trained, stateless, {}, job.made_with)
        if done == self.rounds:
            return curve
        progress = Progress(self.name, done, self.rounds)
        with self.connected_clients(layers, key) as manager, TerminationSignal() as terminated:
            strategy = CheckedFedAvg(self, key)
            strategy.meet_clients(manager, fixed_digest(layers))
            server = Server(client_manager=manager, strategy=strategy)
            server.set_max_workers(len(self.items) if self.plan.processes else 1)
            for number in range(done + 1, self.rounds + 1):
                server.parameters = pack_tensors(self.trained)
                found = server.fit_round(number, None)  # waits as long as a client lives
                assert found is not None and found[0] is not None  # a round without answers has ended the run
                fill_parameters(self.trained, unpack_tensors(found[0], self.trained))
                curve.append({"round": number} | strategy.round)
                if self.privacy is None:
                    progress(number - 1, strategy.round["loss"])
                else:
                    print(f"{self.name}: round {number} of {self.rounds}", flush=True)
                if self.room.recipe.save_every or terminated:
                    checkpoint.save_checkpoint(job.folder, number, curve, self.trained, stateless, {}, job.made_with)
                if terminated:
                    raise TrainingStopped(143)
        return curve

    @contextmanager
    def connected_clients(self, layers: dict[str, core.AdaptedLinear], key: str) -> Iterator[SimpleClientManager]:
        """Flower's list of the clients, which are there while it is open."""
        manager = SimpleClientManager()
        if self.plan.processes:
            with client_processes(self, manager, key):
                yield manager
            return
        for number in range(len(self.items)):
            manager.register(LocalProxy(self.make_client(number, layers, key)))
        yield manager

    def measures(self, curve: Sequence[dict]) -> dict[str, float]:
        found = {
            "trained numbers": sum(p.numel() for p in self.trained.values()),
            "bytes to a client a round": float(np.mean([each["told_bytes"] for each in curve])),
            "bytes from a client a round": float(np.mean([each["said_bytes"] for each in curve])),
            "clients lost": len({number for each in curve for number in each["lost"]}),
        }
        if self.privacy is not None:
            spent = [
                self.privacy.spent_epsilon(len(own), self.steps_asked(curve, n)) for n, own in enumerate(self.items)
            ]
            found |= {"epsilon": max(spent), "delta": self.privacy.delta}
        return found

    def steps_asked(self, curve: Sequence[dict], number: int) -> int:
        """How many steps a client was asked for; it may have taken those whose answer was lost."""
        return sum(len(self.steps_of(each["round"])) for each in curve if number in each["asked"])


@contextmanager
def client_processes(training: FederatedTraining, manager: SimpleClientManager, key: str) -> Iterator[None]:
    """Inside, there is a gRPC server on loopback, and each client is a process that is connected to it or has died."""
    with socket.socket() as free:
        free.bind((LOOPBACK, 0))
        address = f"{LOOPBACK}:{free.getsockname()[1]}"
    server = start_grpc_server(client_manager=manager, server_address=address)
    processes = [start_client_process(training, number, address, key) for number in range(len(training.items))]
    try:
        ends = time.monotonic() + STARTED
        while manager.num_available() < sum(process.poll() is None for process in processes):
            if time.monotonic() > ends:
                break
            time.sleep(0.1)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
        server.stop(None)


def start_client_process(training: FederatedTraining, number: int, address: str, key: str) -> subprocess.Popen:
    """The process of a client, which opens the room of the stage anew. A signal to the stage is not one to it."""
    room = training.room
    told = {
        "stage": room.name,
        "entry": training.entry.model_dump(mode="json"),
        "adapter": room.adapter.model_dump(mode="json"),
        "base": str(room.base.folder),
        "data": {domain: str(folder) for domain, folder in room.data.items()},
        "tasks": {domain: task.model_dump(mode="json") for domain, task in room.tasks.items()},
        "seed": room.seed,
        "device": room.job("").device,
        "arm": training.name,
        "number": number,
        "address": address,
        "key": key,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "loratory.lifecycle.client"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "no_grpc_proxy": LOOPBACK},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=sys.stderr,  # the log of the job
        start_new_session=True,
        text=True,
    )
    assert process.stdin is not None
    with process.stdin as stream:
        json.dump(told, stream)
    return process
