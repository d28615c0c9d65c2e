"""I-LoRA: one base learns one domain after another; a slow adapter follows a fast one (arXiv:2402.18865).

After every step θ_slow ← λ θ_slow + (1 − λ) θ_fast, A and B each for itself; what predicts is the slow one. The fast
one learns from the new records and, beside them, from some of those of earlier domains, where its hidden states are
held near the slow one's: loss = mean of both cross entropies + γ · MSE(h_fast, h_slow). Both released codes fail to
move the slow adapter; this is the paper's formula. Project interpretation: a domain's records enter the memory when it
ends, so that the first domain is learnt as by a plain LoRA; γ's states are those of all layers, where no padding is.

Averages of factors are not the factors of an average, avg(B) avg(A) ≠ avg(B A); along one training they are close.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from loratory.lifecycle import contract
from loratory.lifecycle.contract import Arm, Number, Scores

if TYPE_CHECKING:
    from loratory.config import StageEntry
    from loratory.lifecycle.room import Room

AFTER = ":after_"


class Procedure(contract.Procedure):
    """Domains learnt in turn: plainly, with replay, with EWC, by I-LoRA, and all at once."""

    one_domain: ClassVar[bool] = True
    fewest_domains: ClassVar[int] = 2

    slow: float = Field(0.99, ge=0, le=1, description="λ: share of itself that the slow adapter keeps at every step")
    consistency: float = Field(1.0, ge=0, description="γ: weight of the distance between fast and slow hidden states")
    memory: int = Field(200, ge=0, description="records of earlier domains that are kept for replay (reservoir)")
    ewc: float = Field(
        1000.0, ge=0, description="weight of the penalty of EWC (arXiv:1612.00796), half of it times F (θ − θ*)²"
    )
    fisher_batches: int = Field(20, ge=1, description="batches from which EWC estimates F, the squared gradients")

    def iterate_arms(self, entry: StageEntry, room: Room) -> Iterator[Arm]:
        from loratory.lifecycle import sequence

        domains = entry.domains
        yield Arm("base", room.base, room.base.model, kind="base")
        for training in (
            sequence.JointTraining("joint", room, domains),
            sequence.SequentialTraining("sequential", room, domains),
            sequence.ReplayTraining("replay", room, domains, self.memory),
            sequence.EwcTraining("ewc", room, domains, self.ewc, self.fisher_batches),
            sequence.SlowTraining("i_lora", room, domains, self.memory, self.slow, self.consistency),
        ):
            yield from training.iterate_arms()

    def summarise_arms(
        self, arms: Sequence[str], domains: Sequence[str], score: Scores
    ) -> dict[str, dict[str, Number]]:
        """With a[t, i] the score on domain i after t domains, a[0, i] that of the base: mean gain, a[T, i] − a[0, i];
        backward transfer, the mean of a[T, i] − a[i, i] over the domains before the last; forgetting, that of max over
        t < T of a[t, i] − a[T, i]; forward transfer, the mean of a[i − 1, i] − a[0, i] over those behind the first."""
        import numpy as np

        found: dict[str, dict[str, Number]] = {
            "mean gain": {},
            "backward transfer": {},
            "forgetting": {},
            "forward transfer": {},
        }
        last = len(domains)
        for arm in (arm for arm in arms if AFTER not in arm):
            gains = [score(arm, domain) - score("base", domain) for domain in domains]
            found["mean gain"][arm] = sum(gains) / last
            if f"{arm}{AFTER}1" not in arms:
                continue

            def at(t: int, i: int, arm: str = arm) -> Number:
                name = "base" if t == 0 else arm if t == last else f"{arm}{AFTER}{t}"
                return score(name, domains[i - 1])

            earlier, later = range(1, last), range(2, last + 1)
            found["backward transfer"][arm] = sum(at(last, i) - at(i, i) for i in earlier) / (last - 1)
            best = {i: reduce(np.maximum, [at(t, i) for t in range(1, last)]) for i in earlier}
            found["forgetting"][arm] = sum(best[i] - at(last, i) for i in earlier) / (last - 1)
            found["forward transfer"][arm] = sum(at(i - 1, i) - at(0, i) for i in later) / (last - 1)
        return found
