"""Training a mixture: its gate on the `gate` split while base and experts stay as they are, bit for bit; or what its
mixer declares instead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from math import isfinite, nan
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from loratory.adapters.contract import Tensors
from loratory.adapters.core import generator_for
from loratory.adapters.deltas import WEIGHTS
from loratory.bases.core import Base, Encoded, load_base
from loratory.data import batching
from loratory.data.files import file_sha256
from loratory.domains.contract import Example, TaskOptions
from loratory.domains.examples import domain_examples, read_records
from loratory.mixers.checks import check_trained_experts
from loratory.mixers.core import Mixture
from loratory.mixers.store import open_experts, save_mixture
from loratory.provenance import mixture_code
from loratory.registry import outside_packages
from loratory.training.costs import PeakMemory
from loratory.training.encoding import (
    Examples,
    example_lengths,
    join_examples,
    padded_positions,
    round_examples,
    round_lengths,
)
from loratory.training.features import StoredStates, open_features, pad_states
from loratory.training.feeding import Feed, known_sizes, steps_ahead
from loratory.training.fit import Loss, MicroBatch, TrainingHooks, train_model
from loratory.training.grid import best_trial, curve_rows, write_curves
from loratory.training.job import Job
from loratory.training.progress import announce_trainings
from loratory.training.replay import fix_shape, may_replay
from loratory.training.schedule import Training
from loratory.training.sweep import base_facts, data_digests, encode_split, mean_loss, training_split
from loratory.training.validation import kept_point


def train_mixture(
    name: str,
    entry: Any,
    base_folder: Path | str,
    experts: Mapping[str, Path | str],
    data: Mapping[str, Path | str],
    tasks: Mapping[str, TaskOptions],
    seeds: Sequence[int],
    device: str,
    checkpoints: Path | str,
    max_valid: int,
    out: Path | str,
    features: Mapping[str, Path | str] | None = None,
) -> None:
    """Writes `runs.parquet` (every learning curve) and `seed{n}/` (the mixture's folder, whole, for each seed).

    The grid of learning rates is tried on the first seed, the best one is used on the others; see `validation_loss`.

    Args:
        entry: config entry: the mixer with its options, `experts`, `training`.
        experts: {domain: folder of an adapter, with `seed{n}/`}, in the order of the gate's outputs.
        data: {domain: dataset folder}. tasks: {domain: task options}.
        max_valid: valid records of a domain that choose between learning rates and steps; a single rate is not
            validated without `validate_every`.
        features: {domain: folder}, each with a folder of what the base makes of every split that is learnt from (see
            `training.features`); without them each step begins with a pass of the base.
    """
    base, out, features = load_base(base_folder, device), Path(out), features or {}
    rates: Sequence[float | None] = entry.training.learning_rates if entry.trained else (None,)
    is_validated = len(rates) > 1 or bool(entry.trained and entry.training.validate_every)
    sets = {
        d: read_training_set(base, d, data[d], tasks[d], entry.splits, features.get(d), entry.training.max_examples)
        for d in experts
        if entry.trained
    }
    valid = {d: encode_split(base, d, data[d], tasks[d], "valid", max_valid) for d in experts if is_validated}
    facts = {"entry": entry.model_dump(mode="json"), "base": base_facts(base), "code": mixture_code(experts)}
    facts |= {"data": {d: data_digests(data[d], (*entry.splits, "valid")) for d in sets}}
    facts |= {"tasks": {d: tasks[d].model_dump(mode="json") for d in sets}}
    runs: list[dict] = []

    def split_examples() -> Iterator[Example]:
        for domain, split in product(sets, entry.splits):
            yield from domain_examples(domain, read_records(data[domain], split), tasks[domain], base.family)

    def train_trial(seed: int, digests: dict, stacked: dict, start: Tensors, rate: float | None) -> dict:
        title = f"{name} seed {seed} lr {rate}"
        job = Job(device, checkpoints, title, out, seed=seed, rate=rate, experts=digests, **facts)
        memory = PeakMemory(base.model)
        torch.manual_seed(generator_for(seed, "gate").initial_seed())  # a gate starts as PyTorch starts its layers
        mixture = Mixture(base.model, stacked, entry, name, list(experts))
        mixture.start_gate(start)
        try:
            if entry.gradient_checkpointing:
                mixture.checkpoint_gradients()
            curve: list[dict] = []
            if rate is not None:
                curve = optimise_mixture(base, mixture, sets, valid, entry.training.at_rate(rate), seed, job)
            return {
                "job": job,
                "mixture": mixture,
                "curve": curve,
                "valid_loss": kept_point(curve).get("valid_loss", nan) if curve else nan,
                "trainable_parameters": sum(p.numel() for p in mixture.trainable_parameters().values()),
                "accelerator_memory_max": memory.peak_bytes(),
            }
        finally:
            mixture.remove_experts()  # it keeps its layers and its gate, and the base is bare for the next one

    announce_trainings(len(rates) + len(seeds) - 1)
    for seed in seeds:
        started = perf_counter()
        folders = {domain: Path(folder) / f"seed{seed}" for domain, folder in experts.items()}
        digests = {domain: file_sha256(folder / WEIGHTS) for domain, folder in folders.items()}
        given = open_experts(folders, base.fingerprint)
        check_trained_experts(given, name, entry.fewest_experts)
        stacked, start = entry.prepare_experts(given, seed), entry.pretrain_gate(split_examples(), seed)
        best, trials = best_trial(rates, partial(train_trial, seed, digests, stacked, start))
        rates = (best["rate"],)
        run = {
            "name": name,
            "base": base.manifest["name"],
            "base_sha256": base.fingerprint,
            "expert_sha256": digests,
            "adapters": dict(entry.experts),
            "seed": seed,
            "learning_rate": best["rate"],
            "learning_rates": entry.training.learning_rates if entry.trained else [],
            "grid": [{key: t[key] for key in ("rate", "valid_loss")} for t in trials if isfinite(t["valid_loss"])],
            "steps": len(best["curve"]),
            "best_step": kept_point(best["curve"])["step"] if best["curve"] else None,
            "validation_time": round(sum(point.get("validation_seconds", 0.0) for point in best["curve"]), 3),
            "trainable_parameters": best["trainable_parameters"],
            "accelerator_memory_max": best["accelerator_memory_max"],
            "seconds": round(perf_counter() - started, 3),
            "packages": outside_packages(mixer=entry.mixer, family=base.family),
        }
        save_mixture(out / f"seed{seed}", best["mixture"], entry.mixer, folders, run)
        runs += curve_rows(seed, trials)
    write_curves(out / "runs.parquet", runs)
    best["job"].remove_checkpoints()


StreamWeights = dict[str, torch.Tensor]  # {stream or layer: `[tokens, modules | 1, experts]`}
Part = tuple[str, int, list[int], list[Encoded]]  # domain, number of a batch, and of a micro-batch places and examples


@dataclass
class TrainingSet:
    """What is learnt from one domain; `states` are those of the base, or none where they are not stored."""

    examples: Examples = ()
    states: list[StoredStates] = field(default_factory=list)

    def collate_batch(self, base: Base, chosen: list[int], items: Sequence[Encoded]) -> dict:
        """Args:
        chosen: which of the examples `items` are.
        """
        batch = base.collate(items)
        if self.states:
            batch["hidden"] = pad_states([self.states[i] for i in chosen], base.device)
        return batch


def read_training_set(
    base: Base,
    domain: str,
    data: Path | str,
    task: TaskOptions,
    splits: Sequence[str],
    features: Path | str | None = None,
    limit: int | None = None,
) -> TrainingSet:
    """Args:
    limit: most records of each split, by id hash; none takes all.
    """
    if features is None:
        return TrainingSet(join_examples([training_split(base, domain, data, task, split, limit) for split in splits]))
    found = {split: encode_split(base, domain, data, task, split, limit) for split in splits}
    states = [open_features(Path(features) / split, base, data, split, items) for split, items in found.items()]
    return TrainingSet(join_examples([*found.values()]), [state for each in states for state in each])


def optimise_mixture(
    base: Base,
    mixture: Mixture,
    sets: Mapping[str, TrainingSet],
    valid: Mapping[str, Sequence[Encoded]],
    training: Training,
    seed: int,
    job: Job,
) -> list[dict]:
    """Every step takes as many batches of each domain, and each domain's loss weighs alike.

    Args:
        sets: {domain: what is learnt from it}. valid: {domain: encoded examples} that a rate is chosen on, if any.
        training: how; its batches are those of validation too.
    """
    plans = {
        domain: batching.Batches(
            round_lengths(given.examples, seed, example_lengths),
            training.batch_tokens,
            seed,
            known_sizes(given.examples, job, domain),
        )
        for domain, given in sets.items()
    }
    ahead = steps_ahead([given.examples for given in sets.values()], training)
    hooks = MixtureHooks(base, mixture, {domain: place for place, domain in enumerate(sets)}, training.precision)

    replayed = may_replay(mixture.model, mixture.mixer.replayable, training)

    def read_step(step: int) -> list[Part]:
        batches = product(plans, training.batch_numbers(step))
        return [part for domain, number in batches for part in read_batch(domain, number)]

    def read_batch(domain: str, number: int) -> list[Part]:
        plan, examples = plans[domain], sets[domain].examples
        items, chosen = round_examples(examples, seed, plan.epoch_and_place(number)[0]), plan(number)
        read = [items[i] for i in chosen]
        parts = batching.split_batch(example_lengths(read), training.micro_batch_tokens)
        return [(domain, number, [chosen[i] for i in part], [read[i] for i in part]) for part in parts]

    def collate_step(parts: list[Part]) -> list[MicroBatch]:
        batches = [sets[domain].collate_batch(base, chosen, items) for domain, _, chosen, items in parts]
        found = [
            MicroBatch(domain, batch, base.count_targets(batch), padded_positions(items), number)
            for (domain, number, _, items), batch in zip(parts, batches)
        ]
        return [fix_shape(base, micro, training) for micro in found] if replayed else found

    def loss(micro: MicroBatch) -> Loss:
        mixture.domain = hooks.places[micro.task]
        if micro.is_fixed:  # of a mixer without a penalty
            return Loss(base.summed_nll(mixture, micro.batch), micro.targets)
        total, targets = base.loss(mixture, micro.batch)
        penalty = mixer_penalty(mixture, micro.batch["mask"].bool(), mixture.domain, hooks.step_routing(micro))
        return Loss(total, targets, targets * penalty)

    def validate_mixture() -> float:
        return validation_loss(base, mixture, valid, training.pass_tokens)

    mixture.train()
    with Feed(read_step, collate_step, training.steps, ahead) as feed:
        curve = train_model(
            mixture.trainable_parameters(),
            feed,
            loss,
            training,
            seed,
            *job.folder_and_title,
            validate_mixture if valid else None,
            hooks=hooks,
            made_with=job.made_with,
        )
    mixture.eval()
    return curve


class MixtureHooks(TrainingHooks):
    """Knows the step that is being made, where a penalty is of more than one micro-batch: how each of them is routed.

    Args:
        places: {domain: its place among the experts' domains}. precision: of the passes that learn.
    """

    def __init__(self, base: Base, mixture: Mixture, places: dict[str, int], precision: str) -> None:
        self.base, self.mixture, self.places, self.precision = base, mixture, places, precision
        self.batches: Sequence[MicroBatch] = ()
        self.routed: list[StreamWeights] = []

    def see_batches(self, batches: Sequence[MicroBatch]) -> None:
        mixer, split = self.mixture.mixer, len({(m.task, m.number) for m in batches}) < len(batches)
        if mixer.balances or (mixer.learns_labels and split):
            placed = [(self.places[micro.task], micro.batch) for micro in batches]
            self.batches, self.routed = batches, route_batches(self.base, self.mixture, placed, self.precision)

    def step_routing(self, micro: MicroBatch) -> StepRouting | None:
        if not self.routed:
            return None
        among = [
            place
            for place, other in enumerate(self.batches)
            if self.mixture.mixer.balances or (other.task, other.number) == (micro.task, micro.number)
        ]  # a penalty that does not balance is of one batch
        return step_routing([self.batches[i] for i in among], [self.routed[i] for i in among], micro)


def validation_loss(base: Base, mixture: Mixture, valid: Mapping[str, Sequence[Encoded]], budget: int) -> float:
    """The mean over domains of the loss per target, as in training but without what the mixer adds to it: mixtures
    with different penalties, or none, are chosen by what they are for."""
    losses = []
    for mixture.domain, items in enumerate(valid.values()):
        losses.append(mean_loss(base, mixture, items, budget))
    return sum(losses) / len(losses)


@torch.no_grad()
def route_batches(
    base: Base, mixture: Mixture, batches: Sequence[tuple[int, dict]], precision: str
) -> list[StreamWeights]:
    """How every batch of a step is routed, by a pass ahead of those that learn: a penalty of all of them must be known
    before the first backward pass, and keeping the activations of all would cost their memory.

    Args:
        batches: each with its domain's place. precision: of the passes that learn.
    """
    found = []
    with torch.autocast(base.device.type, torch.bfloat16, enabled=precision == "bf16"):
        for mixture.domain, batch in batches:
            base.loss(mixture, batch)
            found.append(token_weights(mixture, batch["mask"].bool()))
    return found


@dataclass(frozen=True)
class StepRouting:
    """The weights of all micro-batches of a step, of which one is learnt from now.

    Attributes:
        routed: of each micro-batch, without gradients. place: of the one that is learnt from.
        share: of the step's loss that is its own.
    """

    routed: Sequence[StreamWeights]
    place: int
    share: float

    def with_own(self, name: str, own: torch.Tensor) -> torch.Tensor:
        """`[tokens, modules, experts]` of all, with the gradient of `own`, the weights that are learnt from.

        Every micro-batch so finds the same penalty and adds its share of it. For the sum of their gradients to be the
        gradient of that one penalty, each must count as often as its share goes into the whole.
        """
        parts = [weights[name] for weights in self.routed]
        parts[self.place] = own.detach() + (own - own.detach()) / self.share
        return torch.cat(parts)


def step_routing(batches: Sequence[MicroBatch], routed: Sequence[StreamWeights], micro: MicroBatch) -> StepRouting:
    """Where `micro` stands in its step. Domains weigh alike, and the micro-batches of one by their targets."""
    place = next(place for place, other in enumerate(batches) if other is micro)
    own = sum(other.targets for other in batches if other.task == micro.task)
    tasks = len({other.task for other in batches})
    return StepRouting(routed, place, max(micro.targets, 1) / max(own, 1) / tasks)


def mixer_penalty(
    mixture: Mixture, mask: torch.Tensor, domain: int, whole: StepRouting | None = None
) -> torch.Tensor | float:
    """The mean of what the mixer adds, over streams or over layers that weigh for themselves. Where the mixer gives a
    plain 0.0, it adds nothing, and that one is not counted.

    Args:
        mask: `[batch, length]`, true where the latest pass read no padding. domain: which one that pass was of.
        whole: of a mixer that `balances`, the step that the pass was part of.
    """
    found = token_weights(mixture, mask)
    if whole is not None:
        found = {name: whole.with_own(name, weights) for name, weights in found.items()}
    penalties = [mixture.mixer.routing_penalty(weights, domain) for weights in found.values()]
    penalties = [value for value in penalties if torch.is_tensor(value)]
    return sum(penalties) / len(penalties) if penalties else 0.0


def token_weights(mixture: Mixture, mask: torch.Tensor) -> StreamWeights:
    """The weights that the mixer gave in the latest pass, without padding."""
    return {name: unpadded_weights(weights, mask) for name, weights in mixture.routing_weights.items()}


def unpadded_weights(weights: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Weights without padding: `[tokens, modules, experts]`, or of as many sequences or audio frames."""
    weights = weights.unsqueeze(-2) if weights.dim() == 3 else weights
    weights = weights.expand(len(mask), -1, -1, -1)
    return weights[mask] if weights.shape[1] == mask.shape[1] else weights.flatten(0, 1)
