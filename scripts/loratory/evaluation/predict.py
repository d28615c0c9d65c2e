"""What every system predicts for a domain's held-out records: one base in memory, systems put on and taken off."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

import torch

from loratory import registry
from loratory.adapters import core
from loratory.bases.core import IGNORED, load_base
from loratory.data.batching import batches_by_length, pad_contexts
from loratory.data.files import write_json
from loratory.domains.examples import domain_examples, domain_prompts, read_records
from loratory.errors import InputError
from loratory.evaluation.answers import Answers, Cost, encode_questions, predict_examples
from loratory.evaluation.controls import MeanUserMixer, ShuffledMixer, can_shuffle, exchange_users
from loratory.evaluation.ranking import rank_row, read_candidates
from loratory.evaluation.rows import write_rows
from loratory.evaluation.systems import (
    System,
    TrainedModels,
    answer_key,
    is_evaluated,
    ranks_candidates,
    split_outputs,
)
from loratory.evaluation.together import answer_together, open_adapter
from loratory.mixers.core import Mixture
from loratory.mixers.store import open_experts, open_mixture, read_manifest
from loratory.mixers.streams import TOKENS, module_streams
from loratory.training.encoding import LEFT_OUT

if TYPE_CHECKING:
    from loratory.bases.core import Base, Encoded
    from loratory.bases.options import Decoding
    from loratory.domains.contract import Example, RankingTaskModule, TaskOptions
    from loratory.mixers.contract import Mixer


def predict_domain(
    domain: str,
    data: Path | str,
    task: TaskOptions,
    base_folder: Path | str,
    trained: Mapping[int, TrainedModels],
    asked: Collection[str],
    evaluation: Any,
    device: str,
    out: Path | str,
) -> None:
    """Writes all systems' predictions, what they cost and the mixtures' routing on this domain, for every seed.

    Args:
        trained: {seed: what its trainings made}. evaluation: the config's `evaluation`.
        asked: which of "test", "valid" (for choices), "sample" (where a domain writes) and "rank" (where one ranks).
        out: folder. `seed{n}.parquet` gets one row for each (split, system, record), `seed{n}.routing.json`
            {mixture: its `mixture_facts` and `routing_summary`}, and `seed{n}.costs.json` {system: its `Cost`}, apart
            because seconds are never the same twice.
    """
    base = load_base(base_folder, device)
    sets = examples_by_split(domain, data, task, base, asked, evaluation)
    too_long = {split: list_too_long(base, domain, split, sets[split], task, evaluation.decoding) for split in sets}
    candidates = candidate_lists(domain, data, base, asked, evaluation)
    cache_audio(base, [question for questions in sets.values() for question in questions], evaluation)
    found = answer_together(base, domain, trained, sets, candidates, task, evaluation)
    for seed, made in trained.items():
        rows: list[dict[str, Any]] = []
        costs: dict[str, dict[str, Any]] = {}
        routing: dict[str, dict[str, Any]] = {}
        answered = {key.system for key in found if key.seed == seed}
        for system in iterate_systems(base, domain, made, sets.get("valid", sets["test"]), answered):
            cost = Cost()
            for split in (split for split in sets if is_evaluated(split, system, domain)):
                key = answer_key(system, split, seed)
                if key not in found:
                    found[key] = run_system(base, domain, system, split, sets[split], task, evaluation, seed)
                answers, spent = found[key]
                cost += spent
                marked = [row | {"too_long": row["id"] in too_long[split]} for row in answers]
                rows += [row | {"system": name} for name in system.names for row in marked]
            if candidates and ranks_candidates(system):
                key = answer_key(system, "rank", seed)
                if key not in found:
                    found[key] = rank_candidates(base, domain, system, candidates, task, evaluation, seed)
                ranked, spent = found[key]
                cost += spent
                rows += [row | {"system": name} for name in system.names for row in ranked]
            costs |= dict.fromkeys(system.names, asdict(cost))
            if system.kind == "mixture" and isinstance(system.model, Mixture):
                routed = routing_summary(base, system.model, sets["test"], evaluation)
                routing[system.name] = mixture_facts(system.model) | routed
        write_rows(Path(out, f"seed{seed}.parquet"), rows)
        write_json(Path(out, f"seed{seed}.routing.json"), routing)
        write_json(Path(out, f"seed{seed}.costs.json"), costs)


def examples_by_split(
    domain: str, data: Path | str, task: TaskOptions, base: Base, asked: Collection[str], evaluation: Any
) -> dict[str, list]:
    """{split: its examples}."""
    limits = {"test": evaluation.max_records, "valid": evaluation.max_valid}
    sets = {
        split: domain_examples(domain, read_records(data, split, limit), task, base.family)
        for split, limit in limits.items()
        if split in asked
    }
    outputs = task.choose_outputs(registry.family_outputs(domain, base.family))
    if "sample" in asked and "sample" in outputs and evaluation.samples:
        test = read_records(data, "test", evaluation.max_records)
        sets["sample"] = domain_prompts(domain, test, evaluation.samples, task, base.family)
    return sets


def candidate_lists(
    domain: str, data: Path | str, base: Base, asked: Collection[str], evaluation: Any
) -> list[list[dict]]:
    """Records of all candidates of each question that models rank; none unless the config asks for it."""
    ranks = "rank" in asked and "rank" in registry.family_outputs(domain, base.family)
    if not (ranks and evaluation.models_rank):
        return []
    module = cast("RankingTaskModule", registry.load_module("domain", domain, "task"))
    return [*read_candidates(module, data, evaluation.ranked_users)]


def rank_candidates(
    base: Base,
    domain: str,
    system: System,
    candidates: Sequence[list[dict]],
    task: TaskOptions,
    evaluation: Any,
    seed: int,
) -> Answers:
    """The rows of one system on the split "rank", and their `Cost`; each candidate is a question."""
    label, found, cost = {"split": "rank", "system": system.name, "kind": system.kind}, [], Cost()
    for records in candidates:
        questions = domain_examples(domain, records, task, base.family)
        rows, spent = predict_examples(base, system.model, questions, ("choice",), task, evaluation, seed)
        found.append(label | rank_row(rows))
        cost += spent
    print(f"{domain}: {system.name} ranked the candidates of {len(candidates)} users", flush=True)
    return found, cost


def run_system(
    base: Base,
    domain: str,
    system: System,
    split: str,
    questions: Sequence[Example],
    task: TaskOptions,
    evaluation: Any,
    seed: int,
) -> Answers:
    """The rows of one system on one split, and their `Cost`."""
    wanted = split_outputs(base, domain, task, split)
    questions = exchange_users(questions) if system.others_past else questions
    started = perf_counter()
    found, cost = predict_examples(base, system.model, questions, wanted, task, evaluation, seed)
    each = (perf_counter() - started) / max(1, len(found))
    print(f"{domain}: {system.name} answered {len(found)} {split} records, {each:.3f} s each", flush=True)
    label = {"split": split, "system": system.name, "kind": system.kind}
    return [label | row for row in found], cost


def iterate_systems(
    base: Base,
    domain: str,
    made: TrainedModels,
    questions: Sequence[Example] = (),
    answered: Collection[str] = (),
) -> Iterator[System]:
    """One system after the other on the one loaded model; each is taken off before the next comes.

    Args:
        questions: those whose users are the mean user of mixers that weigh by user.
        answered: adapters and cuts that have answered already, and need not be put on.
    """
    if not base.heads:  # predictions of a head that is not trained mean nothing
        yield System(("base",), "base", base.model)
    for name in (*made.adapters, *made.cuts):
        if name not in answered:
            core.apply(base.model, open_adapter(base, made, name), made.folder(name))
        yield System((name,), "cut" if name in made.cuts else "adapter", base.model.eval())
        core.detach(base.model)
    for experts, names in group_by_experts(made.mixtures).items():
        yield from mixture_controls(
            base, domain, {d: made.adapters[f"{adapter}@{d}"] for d, adapter in experts}, names
        )
    for name, folder in made.mixtures.items():
        yield from mixture_systems(base, domain, name, folder, questions)


def group_by_experts(mixtures: Mapping[str, Path]) -> dict[tuple, list[str]]:
    """{(domain, adapter) pairs: mixtures of these experts}, which have the same controls."""
    found: dict[tuple, list[str]] = {}
    for name, folder in mixtures.items():
        found.setdefault(tuple(sorted(read_manifest(Path(folder)).adapters.items())), []).append(name)
    return found


def mixture_controls(base: Base, domain: str, experts: Mapping[str, Path], names: list[str]) -> Iterator[System]:
    """What mixtures of these experts must beat, run once for all of them."""
    mixture = Mixture(base.model, open_experts(dict(experts), base.fingerprint), default_mixer("uniform")).eval()
    set_domain(mixture, domain)
    for control in ("uniform", "oracle") if domain in experts else ("uniform",):
        mixture.mixer = default_mixer(control)
        yield System(tuple(f"{name}:{control}" for name in names), "control", mixture)
    mixture.remove_experts()


def mixture_systems(
    base: Base, domain: str, name: str, folder: Path | str, questions: Sequence[Example]
) -> Iterator[System]:
    """A mixture after the controls of its gate; only these where it needs the domain and was not made for it."""
    mixture = open_mixture(folder, base)
    set_domain(mixture, domain)
    own = mixture.mixer
    if can_shuffle(own, mixture.gate):
        mixture.mixer = ShuffledMixer(inner=own)
        yield System((f"{name}:shuffled",), "control", mixture)
        mixture.mixer = own
    contexts = [question.context for question in questions if question.context]
    if own.reads == "context" and contexts:
        yield System((f"{name}:other_user",), "control", mixture, others_past=True)
        padded = torch.from_numpy(pad_contexts(contexts)).to(base.device)
        mixture.mixer = MeanUserMixer(inner=own, contexts=padded)
        yield System((f"{name}:mean_user",), "control", mixture)
        mixture.mixer = own
    if not own.needs_domain or mixture.domain is not None:
        yield System((name,), "mixture", mixture)
    mixture.remove_experts()


def set_domain(mixture: Mixture, domain: str) -> None:
    mixture.domain = mixture.domains.index(domain) if domain in mixture.domains else None


def default_mixer(kind: str) -> Mixer:
    return registry.load_module("mixer", kind).Mixer()


def mixture_facts(mixture: Mixture) -> dict:
    """`needs_domain`: the mixture is told the domain; `learns_labels`: it learnt from the domains' labels;
    `first_pass`: it runs the base without experts first; `stored`: how many numbers its folder holds in its gate and
    experts."""
    gate = [] if mixture.gate is None else mixture.gate.state_dict().values()
    experts = [tensor for layer in mixture.layers.values() for tensor in (layer.A, layer.B)]
    heads = [tensor for head in mixture.heads for tensor in head.values()]
    stored = sum(tensor.numel() for tensor in (*gate, *experts, *heads))
    mixer = mixture.mixer
    facts = {"needs_domain": mixer.needs_domain, "learns_labels": mixer.learns_labels}
    return facts | {"first_pass": mixer.reads == "hidden", "stored": stored}


def list_too_long(
    base: Base, domain: str, split: str, questions: Sequence[Example], task: TaskOptions, decoding: Decoding
) -> set[str]:
    """The ids of records whose reference has more tokens than may be written: no model could answer them in full.

    Each is named in the log. They are scored like all others: what cannot be written is missing from the answer.

    Raises:
        InputError: there are too many, by the share that may be left out of a training.
    """
    if split == "sample" or "text" not in task.choose_outputs(registry.family_outputs(domain, base.family)):
        return set()
    found = {}
    for question in questions:
        try:
            check_room(base, question, base.encode_question(question, decoding), task.max_new_tokens)
        except InputError as error:
            if error.reason != "too_long":
                raise
            found[question.id] = error
    if len(found) > LEFT_OUT * len(questions):
        raise next(iter(found.values()))
    for each in found.values():
        print(f"{domain} {split}, scored without what cannot be written: {each}", flush=True)
    return {*found}


def check_room(base: Base, question: Example, item: Encoded, limit: int) -> None:
    """Raises:
    InputError: the reference has more tokens than may be written.
    """
    tokens = sum(label not in (IGNORED, base.tokenizer.eos_token_id) for label in item.labels)
    if tokens > limit:
        what, fix = "the reference is longer than what may be written", "raise `task.max_new_tokens` of the domain"
        raise InputError(f"{base.folder}:{question.id}", what, f"{tokens} tokens", f"at most {limit}", fix, "too_long")


def cache_audio(base: Base, questions: Sequence[Example], evaluation: Any) -> None:
    """Encodes all clips, which the base keeps: else the first system's costs would hold what all systems share."""
    for question in questions:
        if question.audio:
            for item in encode_questions(base, [question], evaluation.decoding, written=True):
                for window in base.windows(item):
                    base.collate([window])


@torch.no_grad()
def routing_summary(base: Base, mixture: Mixture, questions: Sequence[Example], evaluation: Any) -> dict:
    """How the gate weighed the experts on this domain: means over tokens, of prompt and target apart.

    Returns:
        experts; `weights` (mean over all tokens and modules) with `prompt` and `target` apart; `modules` (mean for
        each of the modules `layers`, or one for all of them); `entropy` (mean, as a share of log n, of weights scaled
        to a sum of 1; 0 of a single expert); `top1` (share of tokens whose heaviest expert, by the mean over modules,
        is the domain's own; None where experts are not those of domains). Of Whisper, what its decoder reads.
    """
    encoded = encode_questions(base, questions, evaluation.decoding, written=True)
    items = [window for item in encoded for window in base.windows(item)]
    n = len(mixture.names)
    own = mixture.domain if mixture.names == mixture.domains else None
    total = {"prompt": torch.zeros(n, dtype=torch.double), "target": torch.zeros(n, dtype=torch.double)}
    count = {"prompt": 0, "target": 0}
    modules = torch.zeros((), dtype=torch.double)
    entropy, hits = 0.0, 0
    for batch in batches_by_length([item.length for item in items], evaluation.batch_tokens):
        tensors = base.collate([items[i] for i in batch])
        weights = mixture.token_routing(**base.inputs(tensors), **base.routing_inputs(mixture, tensors)).double().cpu()
        real = tensors["mask"].cpu().bool()
        scored = is_scored(tensors["labels"].cpu(), real)
        weights = weights.expand(*real.shape, -1, -1)
        mean = weights.mean(2)
        for part, chosen in (("prompt", real & ~scored), ("target", real & scored)):
            total[part] += mean[chosen].sum(0)
            count[part] += int(chosen.sum())
        modules = modules + weights[real].sum(0)
        entropy += float(weight_entropies(weights[real]).mean(-1).sum())
        hits += int((mean[real].argmax(-1) == own).sum()) if own is not None else 0
    tokens = count["prompt"] + count["target"]
    read = module_streams(mixture.model, list(mixture.layers), apart=True).get(TOKENS, ())
    layers = next((names for names in (read, mixture.layers) if len(names) == len(modules)), ["all"])
    return {
        "experts": mixture.names,
        "weights": ((total["prompt"] + total["target"]) / tokens).tolist(),
        "prompt": (total["prompt"] / max(1, count["prompt"])).tolist(),
        "target": (total["target"] / max(1, count["target"])).tolist(),
        "modules": (modules / tokens).tolist(),
        "layers": list(layers),
        "entropy": entropy / tokens / math.log(n) if n > 1 else 0.0,
        "top1": hits / tokens if own is not None else None,
        "tokens": tokens,
    }


def is_scored(labels: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Which of the positions `[batch, length]` belong to a target; none where labels are of whole sequences."""
    return labels[:, : real.shape[1]] != IGNORED if labels.dim() == 2 else torch.zeros_like(real)


def weight_entropies(weights: torch.Tensor) -> torch.Tensor:
    """In nats, of weights `[..., experts]` as shares of their sum."""
    shares = weights.clamp(min=0)
    shares = shares / shares.sum(-1, keepdim=True).clamp(min=1e-12)
    return -(shares * shares.clamp_min(1e-12).log()).sum(-1)
