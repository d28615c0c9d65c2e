"""Training a mixture: its gate on the `gate` split while base and experts stay as they are, bit for bit; or what its
mixer declares instead."""

from pathlib import Path
from time import perf_counter

import torch

from loratory.adapters.core import generator_for
from loratory.adapters.deltas import WEIGHTS
from loratory.bases.core import load_base
from loratory.data import batching
from loratory.data.files import sha256
from loratory.mixers.core import Mixture, check_given
from loratory.mixers.store import open_experts, save_mixture
from loratory.training.fit import MicroBatch, fit
from loratory.training.job import Job, recipe
from loratory.training.sweep import data_digest, encoded


def train_mixture(name, entry, base_folder, experts, data, tasks, seed, device, checkpoints, out) -> None:
    """Writes the mixture's folder, whole.

    Args:
        entry: config entry: the mixer with its options, `experts`, `training`.
        experts: {domain: adapter folder}, in the order of the gate's outputs. data: {domain: dataset folder}.
        tasks: {domain: task options}.
    """
    started = perf_counter()
    base = load_base(base_folder, device)
    given = open_experts(experts, base.fingerprint)
    check_given(given, name)
    mixture = Mixture(base.model, entry.experts_of(given, seed), entry, name, list(experts))
    digests = {domain: sha256(Path(folder) / WEIGHTS) for domain, folder in experts.items()}
    curve, job = [], None
    if mixture.gate is not None:
        start_gate(mixture.gate, seed)
    if mixture.trainable():
        sets = {domain: read(base, domain, data[domain], tasks[domain], entry.splits) for domain in experts}
        facts = {"base": base.fingerprint, "data": {d: data_digest(data[d]) for d in experts}}
        facts |= {"experts": digests}
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
        "seconds": round(perf_counter() - started, 3),
    }
    save_mixture(out, mixture, entry.mixer, experts, run)
    if job:
        job.done()


def read(base, domain: str, data, task, splits) -> list:
    return [item for split in splits for item in encoded(base, domain, data, task, split)]


def start_gate(gate: torch.nn.Module, seed: int) -> None:
    """Draws the gate's weights from (seed, name) alone; small, so that it starts near uniform weights."""
    for name, parameter in gate.named_parameters():
        if parameter.dim() > 1:
            fresh = torch.empty(parameter.shape).normal_(0, 0.02, generator=generator_for(seed, f"gate.{name}"))
            parameter.data.copy_(fresh)
        else:
            parameter.data.zero_()


def learn(base, mixture: Mixture, sets: dict, training, seed: int, job: Job) -> list[dict]:
    """Every step takes one batch of each domain, and each domain's loss weighs alike."""
    plans = {d: batching.Batches([i.length for i in items], training.batch_tokens, seed) for d, items in sets.items()}
    places = {domain: place for place, domain in enumerate(sets)}

    def micro_batches(step):
        return [MicroBatch(d, base.collate([items[i] for i in plans[d](step)])) for d, items in sets.items()]

    def loss(micro):
        mixture.domain = places[micro.task]
        total, targets = base.loss(mixture, micro.batch)
        return total + targets * penalty(mixture, micro.batch["mask"].bool(), mixture.domain), targets

    mixture.train()
    curve = fit(mixture.trainable(), micro_batches, loss, recipe(training, training.learning_rate), seed, *job.place)
    mixture.eval()
    return curve


def penalty(mixture: Mixture, mask: torch.Tensor, domain: int) -> torch.Tensor | float:
    """The mean over streams (or over layers that weigh for themselves) of what the mixer adds, padding left out."""
    found = []
    for stream, wanted in mixture.wanted.items():
        wanted = wanted if stream in mixture.streams else wanted.unsqueeze(-2)
        length = max(wanted.shape[1], 1)
        real = mask if mask.shape[1] == length or length == 1 else mask.new_ones(len(mask), length)
        found.append(mixture.mixer.penalty(wanted.expand(*real.shape, -1, -1)[real], domain))
    return sum(found) / len(found) if found else 0.0
