"""Trans-LoRA: an adapter moves to another base without the data that it was trained on (arXiv:2405.17258).

While the source's adapter is trained, a discriminator learns to tell real inputs from invented ones. What comes after
knows of real data no more than a few seeds: a generator invents inputs, the discriminator keeps what looks real, the
source with its adapter labels it, and an adapter of the target learns that. Digests of all real inputs stand guard.

Project interpretation, as nothing of it is confirmed in the paper: the discriminator is a LoRA with a linear layer on
the mean of the last hidden states; an input is kept above `threshold`; what says the same as an earlier candidate, a
seed or a real record is left out; soft labels are the source's probabilities, without a temperature. Where all
prompts of a domain are the same, the invented input is the whole record: the source with its adapter writes it, and
hard labels are what it wrote. Of masked bases it fills holes in seeds. Of clips nothing is invented: those of the
split `gate`, which no adapter learns from, are labelled without their transcripts, which is pseudo-labelling.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from loratory.fields import Name
from loratory.lifecycle import contract
from loratory.lifecycle.contract import Arm

if TYPE_CHECKING:
    from loratory.config import StageEntry
    from loratory.lifecycle.room import Room

WRITERS = ("causal", "masked")  # families that can invent


class Procedure(contract.Procedure):
    """An adapter of `base` moved to `target`, beside what it is there and what real data would have given."""

    families: ClassVar[tuple[str, ...]] = ("causal", "whisper", "encoder", "masked")
    one_domain: ClassVar[bool] = True

    target: Name = Field(description="the base that the adapter moves to, of the same family")
    generator: Name | None = Field(
        None, description="a causal base that writes inputs, or a masked one that fills holes in seeds; none: `base`"
    )
    labels: Literal["hard", "soft"] = Field(
        "hard", description="what the source answers, or its probabilities: of choices, of letters, of shared tokens"
    )
    seed_examples: int = Field(5, ge=2, description="real examples that the generator may see, in each domain")
    inputs: int | None = Field(None, ge=1, description="how many are invented; none: as many as train has")
    tries: int = Field(10, ge=1, description="most candidates for each input that is wanted")
    threshold: float = Field(0.5, ge=0, le=1, description="kept is what looks real with more than this probability")
    judged: int = Field(200, ge=10, description="most inputs of each kind that the discriminator learns from")
    temperature: float = Field(0.9, gt=0, description="of the generator")
    hidden: float = Field(0.3, gt=0, le=1, description="share of a seed's tokens that a masked generator draws anew")

    @property
    def further_bases(self) -> dict[str, tuple[str, ...]]:
        return {self.target: ()} | ({self.generator: WRITERS} if self.generator not in (None, self.target) else {})

    def base_conflict(self, family: str) -> str | None:
        if family == "encoder" and self.generator in (None, self.target):
            return "a base of family encoder writes no inputs: name a masked or causal one under `generator`"
        return None

    def iterate_arms(self, entry: StageEntry, room: Room) -> Iterator[Arm]:
        from loratory.adapters import core
        from loratory.lifecycle import inventing, transfer
        from loratory.lifecycle.sequence import JointTraining

        source, target, domains = room.base, room.others[self.target], entry.domains
        questions = [transfer.read_question(room, domain, self.seed_examples) for domain in domains]
        transfer.check_generator(room, questions, self.generator)
        if self.labels == "soft":
            transfer.check_labels(room, target.base, questions)
        yield Arm("base", target.base, target.base.model, kind="base")
        yield Arm("source_base", source, source.model, kind="base")
        for arm in JointTraining("source_lora", room, domains).iterate_arms():
            yield arm
            learnt = core.export(source.model, source.heads, {})
        if transfer.have_same_shapes(source, target.base, room):
            with inventing.wear_stored(target.base, learnt):
                yield Arm("direct_copy", target.base, target.base.model)
        yield from JointTraining("target_real", target, domains).iterate_arms()
        shown = {each.domain: transfer.read_lesson(source, target.base, each.seeds) for each in questions}
        yield from transfer.learn_lessons("seeds_only", target, shown, source, learnt, "hard")

        if questions[0].spoken:
            inputs = {each.domain: each.known for each in questions}
            yield from transfer.learn_inputs("pseudo_labelling", room, target, questions, inputs, learnt, self.labels)
            return
        found = {each.domain: transfer.invent_for(each, room, learnt, self) for each in questions}
        for name, filtered in (("unfiltered", False), ("trans_lora", True)):
            inputs = {
                each.domain: transfer.invented_examples(each, found[each.domain], filtered) for each in questions
            }
            measures = inventing.mean_of([own.measures(filtered) for own in found.values()])
            for arm in transfer.learn_inputs(name, room, target, questions, inputs, learnt, self.labels):
                yield replace(arm, measures={**arm.measures, **measures})
