"""Federated LoRA: clients learn one adapter and send it, not their records; FedAvg of LoRA against FFA-LoRA.

In a round the server sends what is trained; each client takes `local_steps` steps on its own records, with a new
optimizer, and sends the result back; the server takes the mean, weighted by examples. Of A and B both, mean(B) mean(A)
is not mean(B A): each client's update is averaged wrongly. FFA-LoRA (arXiv:2403.12313) keeps A as the seed drew it and
sends B alone, so that Σ w (B A) = (Σ w B) A, at half the bytes; and noise on B stays as it is, where noise on both is
multiplied, ξ_B ξ_A. All arms take the steps of the adapter's `training`, whose rates go over all rounds.

Private arms promise (ε, δ) for every example of a client, counted by Opacus, see `lifecycle/privacy.py`; a client's
batches are those of the privacy, not of `batch_tokens`. Noise is drawn from the seed, so that runs can be repeated:
who knows the seed can take it off again.

Project interpretation: the mean is weighted (one of three released codes has a plain one); clients keep no optimizer
state; ε is per client, with its own sampling rate; A is drawn as LoRA's is. There is no official code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from loratory.errors import InputError
from loratory.lifecycle import contract
from loratory.lifecycle.contract import Arm

if TYPE_CHECKING:
    from loratory.bases.core import Encoded
    from loratory.config import StageEntry
    from loratory.lifecycle.federation import FederatedTraining
    from loratory.lifecycle.room import Room

LOCAL = "local"


class Procedure(contract.Procedure):
    """One adapter of many clients: FedAvg of LoRA and FFA-LoRA, private and not, beside one on all records and one for
    each client."""

    one_domain: ClassVar[bool] = True

    by: str = Field("group", description="column of the records (`speaker`, `user`, …) whose values are dealt out")
    clients: int | None = Field(3, ge=1, description="how many; none: one for each value of the column")
    dirichlet: float | None = Field(
        None,
        gt=0,
        description="deal the records of every value to all clients, in shares from a Dirichlet distribution of this "
        "concentration; none: a value goes to one client whole",
    )
    local_steps: int = Field(
        10, ge=1, description="steps of a client in a round; rounds follow from the adapter's steps"
    )
    participation: float = Field(1.0, gt=0, le=1, description="share of the clients that a round asks")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="of all arms; a client begins anew in each round")
    epsilon: float | None = Field(
        6.0, gt=0, description="ε of every example of a client after all rounds; none leaves the private arms out"
    )
    delta: float = Field(
        1e-5, gt=0, lt=1, description="δ that goes with ε; less than one over the examples of a client"
    )
    largest_norm: float = Field(1.0, gt=0, description="that the gradient of an example is cut to in private arms")
    private_batch: int = Field(16, ge=1, description="examples that a private step is expected to draw")
    processes: bool = Field(
        False, description="each client is a process that loads the base and speaks gRPC over loopback, else simulated"
    )

    def iterate_arms(self, entry: StageEntry, room: Room) -> Iterator[Arm]:
        require_engine(f"lifecycle.{room.name}")
        from loratory.lifecycle.clients import join_examples
        from loratory.lifecycle.federation import PlainTraining

        items = self.client_items(entry, room)
        yield Arm("base", room.base, room.base.model, kind="base")
        yield from PlainTraining("central", room, join_examples(items), self.optimizer).iterate_arms()
        for number, own in enumerate(items):
            yield from PlainTraining(f"{LOCAL}:client_{number}", room, own, self.optimizer).iterate_arms()
        for training in self.federations(entry, room, items).values():
            yield from training.iterate_arms()

    def client_items(self, entry: StageEntry, room: Room) -> list[Sequence[Encoded]]:
        from loratory.lifecycle.clients import client_examples

        return client_examples(room, entry.domains, self.by, self.clients, self.dirichlet)

    def federations(
        self, entry: StageEntry, room: Room, items: Sequence[Sequence[Encoded]] | None = None
    ) -> dict[str, FederatedTraining]:
        """{arm: its training}, of the arms with rounds."""
        from loratory.adapters.methods import ffa_lora
        from loratory.lifecycle.federation import FederatedTraining, Plan
        from loratory.lifecycle.privacy import Privacy

        items = self.client_items(entry, room) if items is None else items
        plan = Plan(self.local_steps, self.optimizer, self.participation, self.processes)
        fixed = ffa_lora.Method(**{key: getattr(room.method, key) for key in ffa_lora.Method.model_fields})
        methods = {"fedavg_lora": room.method, "ffa_lora": fixed}
        found = {name: FederatedTraining(name, room, of, items, plan, None, entry) for name, of in methods.items()}
        if self.epsilon is not None:
            steps = room.recipe.steps
            privacy = Privacy(self.epsilon, self.delta, self.largest_norm, self.private_batch, steps)
            self.check_delta(room, max(map(len, items)))
            for name, of in methods.items():
                found[f"{name}_dp"] = FederatedTraining(f"{name}_dp", room, of, items, plan, privacy, entry)
        return found

    def check_delta(self, room: Room, examples: int) -> None:
        """Raises:
        InputError: δ would allow to publish one of a client's examples.
        """
        if self.delta * examples >= 1:
            what, expected = f"δ is no promise to a client of {examples} examples", f"less than {1 / examples:.2g}"
            raise InputError(f"lifecycle.{room.name}.delta", what, self.delta, expected)

    def mean_arms(self, arms: Sequence[str]) -> Mapping[str, Sequence[str]]:
        return {LOCAL: [arm for arm in arms if arm.startswith(f"{LOCAL}:")]}


def require_engine(where: str) -> None:
    """Raises:
    InputError: what the rounds are made with is not installed.
    """
    if missing := [name for name in ("flwr", "opacus") if find_spec(name) is None]:
        raise InputError(
            where, "this needs flwr and opacus", f"no {missing[0]}", fix="pip install 'loratory[federated]'"
        )
