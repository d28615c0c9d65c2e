"""Training a mixture: its gate on the `gate` split while base and experts stay as they are, bit for bit; or what its
mixer declares instead."""

from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import torch

from loratory.adapters.core import generator_for
from loratory.adapters.deltas import WEIGHTS
from loratory.bases.core import Encoded, load_base
from loratory.data import batching
from loratory.data.files import sha256
from loratory.mixers.core import Mixture, check_given
from loratory.mixers.store import open_experts, save_mixture
from loratory.training.budget import Memory
from loratory.training.features import Rows, open_features, padded
from loratory.training.fit import MicroBatch, fit
from loratory.training.job import Job, recipe
from loratory.training.sweep import data_digest, encoded


def train_mixture(name, entry, base_folder, experts, data, tasks, seed, device, checkpoints, out, features=None):
    """Writes the mixture's folder, whole.

    Args:
        entry: config entry: the mixer with its options, `experts`, `training`.
        experts: {domain: adapter folder}, in the order of the gate's outputs. data: {domain: dataset folder}.
        tasks: {domain: task options}.
        features: {domain: folder}, each with a folder of what the base makes of every split (see
            `training.features`); without them each step asks the base anew.
    """
    started = perf_counter()
    base = load_base(base_folder, device)
    memory = Memory(base.model)
    given = open_experts(experts, base.fingerprint)
    check_given(given, name)
    mixture = Mixture(base.model, entry.experts_of(given, seed), entry, name, list(experts))
    digests = {domain: sha256(Path(folder) / WEIGHTS) for domain, folder in experts.items()}
    curve, job = [], None
    if mixture.gate is not None:
        start_gate(mixture.gate, seed)
    if entry.gradient_checkpointing:
        mixture.checkpoint_gradients()
    if mixture.trainable():
        features = features or {}
        sets = {d: read(base, d, data[d], tasks[d], entry.splits, features.get(d)) for d in experts}
        facts = {"data": {d: data_digest(data[d]) for d in experts}, "experts": digests}
        facts["base"] = [base.fingerprint, base.manifest.get("precision")]  # weights, and how they are rounded
        job = Job(device, checkpoints, f"{name} seed {seed}", entry=entry.model_dump(mode="json"), seed=seed, **facts)
        curve = learn(base, mixture, sets, entry.training, seed, job)
    run = {
        "name": name,
        "base": base.manifest["name"],
        "base_sha256": base.fingerprint,
        "expert_sha256": digests,
        "adapters": dict(entry.experts),
        "seed": seed,
        "trainable_parameters": sum(p.numel() for p in mixture.trainable().values()),
        "curve": curve,
        "accelerator_memory_max": memory.peak(),
        "seconds": round(perf_counter() - started, 3),
    }
    save_mixture(out, mixture, entry.mixer, experts, run)
    if job:
        job.done()


@dataclass
class Examples:
    """What is learnt from one domain; `states` are the base's, where they are known."""

    items: list[Encoded] = field(default_factory=list)
    states: list[Rows] = field(default_factory=list)

    def batch(self, base, chosen: list[int]) -> dict:
        batch = base.collate([self.items[i] for i in chosen])
        if self.states:
            batch["hidden"] = padded([self.states[i] for i in chosen], base.device)
        return batch


def read(base, domain: str, data, task, splits, features=None) -> Examples:
    found = Examples()
    for split in splits:
        items = encoded(base, domain, data, task, split)
        found.items += items
        if features is not None:
            found.states += open_features(Path(features) / split, base, data, split, items)
    return found


def start_gate(gate: torch.nn.Module, seed: int) -> None:
    """Draws the gate's weights from (seed, name) alone; small, so that it starts near uniform weights."""
    for name, parameter in gate.named_parameters():
        if parameter.dim() > 1:
            fresh = torch.empty(parameter.shape).normal_(0, 0.02, generator=generator_for(seed, f"gate.{name}"))
            parameter.data.copy_(fresh)
        else:
            parameter.data.zero_()


def learn(base, mixture: Mixture, sets: dict[str, Examples], training, seed: int, job: Job) -> list[dict]:
    """Every step takes one batch of each domain, and each domain's loss weighs alike."""
    lengths = {domain: [item.length for item in examples.items] for domain, examples in sets.items()}
    plans = {domain: batching.Batches(lengths[domain], training.batch_tokens, seed) for domain in sets}
    places = {domain: place for place, domain in enumerate(sets)}

    def micro_batches(step):
        return [MicroBatch(domain, sets[domain].batch(base, plan(step))) for domain, plan in plans.items()]

    def loss(micro):
        mixture.domain = places[micro.task]
        total, targets = base.loss(mixture, micro.batch)
        return total + targets * penalty(mixture, micro.batch["mask"].bool(), mixture.domain), targets

    mixture.train()
    curve = fit(mixture.trainable(), micro_batches, loss, recipe(training, training.learning_rate), seed, *job.place)
    mixture.eval()
    return curve


def penalty(mixture: Mixture, mask: torch.Tensor, domain: int) -> torch.Tensor | float:
    """The mean over streams, or over layers that weigh for themselves, of what the mixer adds; a plain 0.0 of the
    mixer says that this one has no part in it."""
    found = [mixture.mixer.penalty(real(w, mask), domain) for w in mixture.wanted.values()]
    found = [value for value in found if torch.is_tensor(value)]
    return sum(found) / len(found) if found else 0.0


def real(wanted: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Wanted weights without padding: `[tokens, modules, experts]`, or of as many sequences or audio frames."""
    wanted = wanted.unsqueeze(-2) if wanted.dim() == 3 else wanted
    wanted = wanted.expand(len(mask), -1, -1, -1)
    return wanted[mask] if wanted.shape[1] == mask.shape[1] else wanted.flatten(0, 1)
