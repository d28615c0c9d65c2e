"""All runs of one adapter on one loaded base: a learning-rate grid on the first seed, then the other seeds."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from loratory.adapters import core, deltas
from loratory.adapters.contract import DenseMethod, Method
from loratory.adapters.stack import are_alike, place_layers, stack_refusal
from loratory.bases.core import Base, Encoded, load_base
from loratory.data import batching
from loratory.data.files import file_sha256
from loratory.domains.contract import TaskOptions
from loratory.domains.dataset import open_split
from loratory.errors import InputError
from loratory.provenance import adapter_code, package_versions
from loratory.registry import outside_packages
from loratory.training import costs
from loratory.training.encoding import EncodedExamples, example_lengths
from loratory.training.fit import Loss, MicroBatch, divergence_error, train_model
from loratory.training.grid import best_trial, curve_rows, write_curves
from loratory.training.job import Job
from loratory.training.progress import announce_trainings
from loratory.training.session import AdapterSession
from loratory.training.together import Run, train_together


def train_sweep(
    domain: str,
    data: Path | str,
    task: TaskOptions,
    base_folder: Path | str,
    adapter: Any,
    seeds: Sequence[int],
    device: str,
    checkpoints: Path | str,
    max_valid: int,
    out: Path | str,
) -> None:
    """Writes `runs.parquet` (every learning curve) and `seed{n}/` (a PEFT folder and `run.json` for each seed).

    Args:
        adapter: config entry: the method with its hyper-parameters, and `training`.
        max_valid: valid records that choose between learning rates. A rate at which training diverges is not chosen.
    """
    base, out = load_base(base_folder, device), Path(out)
    sets = {
        "train": encode_split(base, domain, data, task, "train", adapter.training.max_examples),
        "valid": encode_split(base, domain, data, task, "valid", max_valid),
    }
    facts: dict[str, Any] = {
        "domain": domain,
        "base": base_facts(base),
        "data": data_digests(data, ("train", "valid")),
        "task": task.model_dump(mode="json"),
        "code": adapter_code(domain, adapter.method),
    }
    runs: list[dict] = []
    rates = adapter.training.learning_rates

    def job_of(seed: int, rate: float) -> Job:
        title = f"{domain} {base.manifest['name']} {adapter.method} seed {seed} lr {rate}"
        entry = adapter.model_dump(mode="json")
        return Job(device, checkpoints, title, out, adapter=entry, rate=rate, seed=seed, **facts)

    ready: dict[tuple[int, float], dict[str, Any] | InputError] = {}

    def train_trial(seed: int, rate: float) -> dict:
        found = ready.get((seed, rate)) or train_one(base, sets, adapter, seed, rate, job_of(seed, rate))
        if isinstance(found, InputError):
            raise found
        return found | {"job": job_of(seed, rate)}

    def train_ahead(pairs: Sequence[tuple[int, float]]) -> None:
        for start in range(0, len(pairs), together):
            jobs = {pair: job_of(*pair) for pair in pairs[start : start + together]}
            ready.update(train_alongside(base, sets, adapter, jobs) if len(jobs) > 1 else {})

    announce_trainings(len(rates) + len(seeds) - 1)
    together = runs_together(base, adapter)
    train_ahead([(seeds[0], rate) for rate in rates])
    for seed in seeds:
        best, trials = best_trial(rates, partial(train_trial, seed))
        if seed == seeds[0]:
            rates = (best["rate"],)
            train_ahead([(each, best["rate"]) for each in seeds[1:]])
        run = describe_run(base, domain, adapter, seed, best, facts["data"])
        stored = replace(best["adapter"], run=run)
        deltas.save_adapter(out / f"seed{seed}", stored, causal=base.family == "causal", transposed=best["transposed"])
        runs += curve_rows(seed, trials)
    write_curves(out / "runs.parquet", runs)
    best["job"].remove_checkpoints()


def runs_together(base: Base, adapter: Any) -> int:
    """How many trainings of an adapter share their passes: as the config says, or 1 where that cannot be."""
    wanted = adapter.training.together
    if wanted == 1:
        return 1
    reason = "a CPU gains nothing by it" if base.device.type == "cpu" else stack_refusal(base, adapter)
    if reason:
        print(f"note: trained one after the other: {reason}", flush=True)
    return 1 if reason else wanted


def base_facts(base: Base) -> list:
    """What tells one loaded base from another: its weights, their precision, and the options of a Whisper base."""
    return [base.fingerprint, base.manifest.get("precision"), base.manifest.get("whisper")]


def encode_split(
    base: Base, domain: str, data: Path | str, task: TaskOptions, split: str, limit: int | None = None
) -> EncodedExamples:
    """The examples of a split as the base reads them; those that do not fit into its context are named and left out.

    Raises:
        InputError: as `EncodedExamples`.
    """
    items = EncodedExamples(base, domain, open_split(data, split).sample(limit, seed=0), task)
    for error in items.left_out:
        print(f"{domain} {split}, left out: {error}", flush=True)
    return items


def train_one(
    base: Base, sets: Mapping[str, Sequence[Encoded]], adapter: Any, seed: int, rate: float, job: Job
) -> dict[str, Any]:
    """One run: attaches, trains, exports, counts and detaches."""
    memory, opened = costs.PeakMemory(base.model), None
    try:
        opened = open_training(base, sets["train"], adapter, seed, rate)

        def micro_batches(step: int) -> list[MicroBatch]:
            batches = map(opened.session.batch, opened.session.recipe.batch_numbers(step))
            return [MicroBatch("train", batch, base.count_targets(batch)) for batch in batches]

        def loss(micro: MicroBatch) -> Loss:
            return Loss(*base.loss(base.model, micro.batch))

        curve = train_model(
            opened.parameters,
            micro_batches,
            loss,
            opened.session.recipe,
            seed,
            *job.folder_and_title,
            hooks=opened.session,
            made_with=job.made_with,
        )
        return describe_outcome(base, sets, adapter, opened, curve, memory.peak_bytes())
    finally:
        close_training(base)


def train_alongside(
    base: Base, sets: Mapping[str, Sequence[Encoded]], adapter: Any, jobs: Mapping[tuple[int, float], Job]
) -> dict[tuple[int, float], dict[str, Any] | InputError]:
    """As `train_one` for each (seed, rate), in one pass for all; what has diverged is its error.

    Peak memory is that of all runs together. Nothing is returned where their adapters have not the same shapes.
    """
    memory, opened = costs.PeakMemory(base.model), {}
    try:
        for pair in jobs:
            opened[pair] = open_training(base, sets["train"], adapter, *pair)
            core.detach(base.model)
        if not are_alike([own.session.layers for own in opened.values()]):
            print("note: trained one after the other: adapters of unequal shapes", flush=True)
            return {}
        base.model.train()
        runs = {
            pair: Run(own.session, own.session.layers, own.parameters, jobs[pair].folder, jobs[pair].made_with)
            for pair, own in opened.items()
        }
        train_together(base, [*runs.values()], f"{len(runs)} trainings of {next(iter(jobs.values())).title}")
        peak, found = memory.peak_bytes(), dict[tuple[int, float], dict[str, Any] | InputError]()
        for pair, run in runs.items():
            with place_layers(base.model, run.layers):
                found[pair] = (
                    divergence_error(jobs[pair].title, run.failure)
                    if run.failure
                    else describe_outcome(base, sets, adapter, opened[pair], run.curve, peak)
                )
        return found
    finally:
        close_training(base)


@dataclass(frozen=True)
class OpenTraining:
    """An adapter that is about to be trained; `seconds` is what its preparation took."""

    session: AdapterSession
    parameters: dict[str, torch.nn.Parameter]
    transposed: Mapping[str, bool]  # of each linear layer of the base, whether it stores its weight so
    seconds: float


def open_training(base: Base, items: Sequence[Encoded], adapter: Any, seed: int, rate: float) -> OpenTraining:
    """Puts a new adapter on the base and prepares it."""
    started = perf_counter()
    transposed = {name: isinstance(layer, core.Conv1D) for name, layer in core.linear_layers(base.model).items()}
    layers = core.attach(base.model, adapter, seed, base.heads)
    recipe = adapter.training.at_rate(rate)
    session = AdapterSession(base, adapter, layers, items, recipe, seed, adapter.training.augmentation)
    base.model.train()
    torch.manual_seed(seed)
    adapter.prepare_training(session)
    return OpenTraining(session, core.trainable_parameters(base.model), transposed, perf_counter() - started)


def close_training(base: Base) -> None:
    base.model.eval()
    core.detach(base.model)
    base.model.requires_grad_(False)


def describe_outcome(
    base: Base,
    sets: Mapping[str, Sequence[Encoded]],
    adapter: Any,
    opened: OpenTraining,
    curve: list[dict],
    peak: int | None,
) -> dict[str, Any]:
    """What has come of the training whose adapter is on the model, with what it cost."""
    session = opened.session
    curve[-1]["valid_loss"] = mean_loss(base, base.model.eval(), sets["valid"], adapter.training.batch_tokens)
    positions = costs.batch_positions(session)
    found, lost = export_adapter(base, adapter, dict(opened.transposed))
    return {
        "adapter": found,
        "curve": curve,
        "valid_loss": curve[-1]["valid_loss"],
        "transposed": any(opened.transposed.values()),
        "lost": lost,
        "prepare_time": opened.seconds,
        "train_time": sum(point["seconds"] for point in curve),
        "accelerator_memory_max": peak,
        "num_trainable_params": sum(p.numel() for p in opened.parameters.values()),
        "num_stored_params": found.parameters,
        "optimizer_state": sum(
            t.numel() for state in session.optimizing.state.values() for t in optimizer_moments(state)
        ),
        "examples": len(sets["train"]),
        "adapted_modules": len(session.layers),
        "positions": sum(positions),
        "other_positions": session.positions,
        "flops": costs.total_flops(session, positions),
    }


def export_adapter(base: Base, adapter: Method, linear: dict[str, bool]) -> tuple[deltas.Adapter, float]:
    """The adapter that is on the model, and the share of its change's norm that cutting it to `export_rank` loses."""
    found = core.export(base.model, base.heads, {})
    if isinstance(adapter, DenseMethod) and adapter.export_rank:
        return deltas.truncate_adapter(found, linear, adapter.export_rank)
    return found, 0.0


def optimizer_moments(state: dict) -> list[torch.Tensor]:
    """What an optimizer remembers of one parameter, without counters."""
    return [value for value in state.values() if torch.is_tensor(value) and value.dim()]


@torch.no_grad()
def mean_loss(base: Base, model: torch.nn.Module, items: Sequence[Encoded], budget: int) -> float:
    """Loss per target over all items."""
    total, count = 0.0, 0
    for batch in batching.batches_by_length(example_lengths(items), budget):
        loss, n = base.loss(model, base.collate([items[i] for i in batch]))
        total, count = total + float(loss), count + n
    return total / count


COSTS = (
    "examples",
    "accelerator_memory_max",
    "num_trainable_params",
    "num_stored_params",
    "optimizer_state",
    "adapted_modules",
    "positions",
    "other_positions",
    "flops",
    "valid_loss",
    "lost",
)


def describe_run(base: Base, domain: str, adapter: Any, seed: int, trial: dict, data: list[str]) -> dict[str, Any]:
    """What is known of a run, in the groups of PEFT's method comparison: configuration, cost and outcome, provenance.

    Times leave validation and storage out, and are whole for a run that was resumed too.
    """
    name, points = base.manifest["name"], trial["curve"]
    shown = [{"step": points[-1]["step"], "train loss": points[-1]["loss"], "valid loss": trial["valid_loss"]}]
    return {
        "domain": domain,
        "base": name,
        "base_sha256": base.fingerprint,
        "seed": seed,
        "learning_rate": trial["rate"],
        "run_info": {
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "experiment_name": trial["job"].title,
            "total_time": round(trial["prepare_time"] + trial["train_time"], 3),
            "train_config": adapter.training.model_dump(mode="json"),
            "peft_config": adapter.model_dump(mode="json", exclude={"training"}),
            "error_msg": "",
        },
        "train_info": {cost: trial[cost] for cost in COSTS}
        | {
            "status": "success",
            "train_time": round(trial["train_time"], 3),
            "num_total_params": sum(p.numel() for p in base.model.parameters()),
            "targets": sum(point["targets"] for point in points),
            "metrics": shown,
        },
        "meta_info": {
            "model_info": {"name": name, "sha256": base.fingerprint},
            "dataset_info": {"domain": domain, "sha256": data},
            "package_info": package_versions()
            | outside_packages(domain=domain, method=adapter.method, family=base.family),
            "system_info": {"system": platform.platform(), "python": platform.python_version()},
            "accelerator": torch.cuda.get_device_name(base.device) if base.device.type == "cuda" else "cpu",
        },
    }


def data_digests(data: Path | str, splits: Sequence[str]) -> list[str]:
    """Digests of the splits that a training looks at."""
    return [file_sha256(Path(data) / f"{split}.parquet") for split in splits]
