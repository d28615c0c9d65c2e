"""What every system says about a domain's held-out records: one base in memory, systems put on and taken off."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch

from loratory import registry
from loratory.adapters import core
from loratory.bases.core import load_base
from loratory.bases.decoding import Sampling
from loratory.data.batching import by_length
from loratory.data.files import write_json
from loratory.domains.questions import examples, read_records
from loratory.evaluation.controls import Shuffled
from loratory.evaluation.rows import write_rows
from loratory.mixers.core import Mixture
from loratory.mixers.store import open_experts, open_mixture


@dataclass(frozen=True)
class System:
    """Something that answers: a name, its kind, and the model to call."""

    name: str
    kind: str
    model: torch.nn.Module


@dataclass(frozen=True)
class Trained:
    """What one seed's trainings made: {system name, such as "lora@protein": adapter folder}, {mixture: folder}."""

    adapters: dict[str, Path]
    mixtures: dict[str, Path]


def predict(domain, data, task, base_folder, trained, asked, evaluation, device, out) -> None:
    """Writes all systems' predictions and the mixtures' routing on this domain, for every seed.

    Args:
        trained: {seed: Trained}. evaluation: the config's `evaluation`.
        asked: which of "test", "valid" (for choices) and "sample" (where the domain generates).
        out: folder. `seed{n}.parquet` gets one row for each (split, system, record), `seed{n}.routing.json`
            {mixture: how its gate weighed}.
    """
    base = load_base(base_folder, device)
    sets, found = questions_of(domain, data, task, base, asked, evaluation), {}
    for seed, made in trained.items():
        rows, routes = [], {}
        for system in systems(base, domain, made):
            for split in (split for split in sets if is_asked(split, system, domain)):
                key = (system.name, split, seed if system.kind != "base" or split == "sample" else None)
                if key not in found:  # the bare base says the same whatever the seed, unless it samples
                    found[key] = told(base, domain, system, split, sets[split], task, evaluation, seed)
                rows += found[key]
            if system.kind == "mixture":
                routes[system.name] = route(base, system.model, sets["test"], evaluation.batch_tokens)
        write_rows(Path(out, f"seed{seed}.parquet"), rows)
        write_json(Path(out, f"seed{seed}.routing.json"), routes)


def questions_of(domain: str, data, task, base, asked, evaluation) -> dict[str, list]:
    """{split: its questions}."""
    limits = {"test": evaluation.max_records, "valid": evaluation.max_valid}
    sets = {
        split: examples(domain, read_records(data, split, limit), task, base.family)
        for split, limit in limits.items()
        if split in asked
    }
    if "sample" in asked and "sample" in registry.outputs(domain, base.family) and evaluation.samples:
        sets["sample"] = registry.load("domain", domain, "task").samples(evaluation.samples, task, base.family)
    return sets


def is_asked(split: str, system: System, domain: str) -> bool:
    """Choices on `valid` are between single experts; what another domain's adapter writes tells nobody anything."""
    if split == "valid":
        return system.kind in ("base", "adapter")
    return split != "sample" or system.kind != "adapter" or system.name.endswith(f"@{domain}")


def told(base, domain: str, system: System, split: str, questions, task, evaluation, seed: int) -> list[dict]:
    """The rows of one system on one split."""
    outputs = registry.outputs(domain, base.family)
    wanted = ("sample",) if split == "sample" else tuple(o for o in outputs if o != "sample")
    started = perf_counter()
    found = answer(base, system.model, questions, wanted, task, evaluation, seed)
    cost = (perf_counter() - started) / max(1, len(found))
    print(f"{domain}: {system.name} answered {len(found)} {split} records, {cost:.3f} s each", flush=True)
    label = {"split": split, "system": system.name, "kind": system.kind, "seconds": cost}
    return [label | row for row in found]


def systems(base, domain: str, made: Trained) -> Iterator[System]:
    """One system after the other on the one loaded model; each is taken off before the next comes."""
    if not base.heads:  # a head that nobody trained says nothing
        yield System("base", "base", base.model)
    for name, folder in made.adapters.items():
        core.apply(base.model, open_experts({name: folder}, base.fingerprint)[name], folder)
        yield System(name, "adapter", base.model.eval())
        core.detach(base.model)
    for name, folder in made.mixtures.items():
        mixture = open_mixture(folder, base)
        mixture.domain = mixture.domains.index(domain) if domain in mixture.domains else None
        own = mixture.mixer
        controls = {"uniform": mixer("uniform"), "oracle": mixer("oracle"), "shuffled": Shuffled(inner=own)}
        if mixture.domain is None:
            del controls["oracle"]
        for control, weights in controls.items():
            mixture.mixer = weights
            yield System(f"{name}:{control}", "control", mixture)
        mixture.mixer = own
        yield System(name, "mixture", mixture)
        mixture.unwrap()


def mixer(kind: str):
    return registry.load("mixer", kind).Mixer()


@torch.no_grad()
def answer(base, model, questions, wanted, task, evaluation, seed: int) -> list[dict]:
    """One row for each record, in the order of first appearance; windows of one record are averaged in log odds."""
    items = [base.encode(question) for question in questions]
    rows = [
        {"id": q.id, "group": q.group, "reference": q.target, "nll": None, "tokens": None, "p": None, "text": None}
        for q in questions
    ]
    odds = [0.0] * len(rows)
    for batch in by_length([item.length for item in items], evaluation.batch_tokens):
        part = [items[i] for i in batch]
        if "nll" in wanted:
            for i, (nll, tokens) in zip(batch, base.nll(model, part)):
                rows[i] |= {"nll": nll, "tokens": tokens}
        if "choice" in wanted:
            logs = base.choice(model, part, questions[batch[0]].choices).double()
            for i, odd in zip(batch, (logs[:, 1] - logs[:, 0]).tolist()):
                odds[i] = odd
        if "text" in wanted or "sample" in wanted:
            sampling = None
            if "sample" in wanted:
                sampling = Sampling(seed * 1_000_003 + batch[0], evaluation.temperature, evaluation.top_p)
            for i, text in zip(batch, base.text(model, part, task.max_new_tokens, sampling)):
                rows[i]["text"] = text
    return merged(rows, odds) if "choice" in wanted else rows


def merged(rows: list[dict], odds: list[float]) -> list[dict]:
    """Windows of one record as one row with the probability of their mean log odds."""
    of: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        of.setdefault(row["id"], []).append(i)
    result = []
    for indices in of.values():
        odd = sum(odds[i] for i in indices) / len(indices)
        result.append(rows[indices[0]] | {"p": 1 / (1 + math.exp(-max(-700.0, min(700.0, odd))))})
    return result


@torch.no_grad()
def route(base, mixture: Mixture, questions, budget: int) -> dict:
    """How the gate weighed the experts on this domain: means over tokens, prompt and answer apart.

    Returns:
        experts; `weights` (mean over all tokens and modules) with `prompt` and `target` apart; `modules` (mean for
        each module); `entropy` (mean, as a share of log n); `top1` (share of tokens whose heaviest expert, by the
        mean over modules, is the domain's own).
    """
    items = [base.encode(question) for question in questions]
    n = len(mixture.names)
    total = {"prompt": torch.zeros(n, dtype=torch.double), "target": torch.zeros(n, dtype=torch.double)}
    count = {"prompt": 0, "target": 0}
    modules, entropy, hits = 0.0, 0.0, 0
    for batch in by_length([item.length for item in items], budget):
        tensors = base.collate([items[i] for i in batch])
        weights = mixture.route(**base.inputs(tensors), **base.facts(mixture, tensors)).double().cpu()
        real, scored = tensors["mask"].cpu().bool(), (tensors["labels"] != -100).cpu()
        weights = weights.expand(*real.shape, -1, -1)
        mean = weights.mean(2)
        for part, chosen in (("prompt", real & ~scored), ("target", real & scored)):
            total[part] += mean[chosen].sum(0)
            count[part] += int(chosen.sum())
        modules = modules + weights[real].sum(0)
        entropy += float(-(weights[real] * weights[real].clamp_min(1e-12).log()).sum(-1).mean(-1).sum())
        hits += int((mean[real].argmax(-1) == mixture.domain).sum()) if mixture.domain is not None else 0
    tokens = count["prompt"] + count["target"]
    return {
        "experts": mixture.names,
        "weights": ((total["prompt"] + total["target"]) / tokens).tolist(),
        "prompt": (total["prompt"] / max(1, count["prompt"])).tolist(),
        "target": (total["target"] / max(1, count["target"])).tolist(),
        "modules": (modules / tokens).tolist(),
        "entropy": entropy / tokens / math.log(n),
        "top1": hits / tokens if mixture.domain is not None else None,
        "tokens": tokens,
    }
