"""All runs of one adapter on one loaded base: a learning-rate grid on the first seed, then the other seeds."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from loratory.adapters import core, deltas
from loratory.adapters.contract import DenseMethod, Method
from loratory.bases.core import Base, Encoded, load_base
from loratory.data import batching
from loratory.data.files import file_sha256
from loratory.domains.contract import TaskOptions
from loratory.domains.dataset import open_split
from loratory.provenance import adapter_code, package_versions
from loratory.registry import outside_packages
from loratory.training import costs, encoding
from loratory.training.encoding import DrawnExamples, EncodedExamples, Examples, example_lengths, round_examples
from loratory.training.feeding import Feed, known_sizes, steps_ahead
from loratory.training.fit import Loss, MicroBatch, train_model
from loratory.training.grid import best_trial, curve_rows, write_curves
from loratory.training.job import Job
from loratory.training.memory import require_training_room
from loratory.training.processes import is_main_process
from loratory.training.progress import announce_trainings
from loratory.training.recompute import recompute_activations
from loratory.training.session import AdapterSession
from loratory.training.sharding import load_shared_base
from loratory.training.validation import kept_point


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

    Raises:
        InputError: as `open_base` and `encode_split`.
    """
    base, out = open_base(base_folder, adapter, device), Path(out)
    sets = {
        "train": training_split(base, domain, data, task, "train", adapter.training.max_examples),
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

    def train_trial(seed: int, rate: float) -> dict:
        title = f"{domain} {base.manifest['name']} {adapter.method} seed {seed} lr {rate}"
        entry = adapter.model_dump(mode="json")
        job = Job(device, checkpoints, title, out, adapter=entry, rate=rate, seed=seed, **facts)
        return train_one(base, sets, adapter, seed, rate, job) | {"job": job}

    announce_trainings(len(rates) + len(seeds) - 1)
    for seed in seeds:
        best, trials = best_trial(rates, partial(train_trial, seed))
        rates = (best["rate"],)
        runs += curve_rows(seed, trials)
        if not is_main_process():
            continue
        run = describe_run(base, domain, adapter, seed, best, facts["data"])
        stored = replace(best["adapter"], run=run)
        deltas.save_adapter(out / f"seed{seed}", stored, causal=base.family == "causal", transposed=best["transposed"])
    if is_main_process():
        write_curves(out / "runs.parquet", runs)
        best["job"].remove_checkpoints()


def open_base(folder: Path | str, adapter: Any, device: str) -> Base:
    """The base of a training, or this process's part of it.

    Raises:
        InputError: as `load_base` and, of a base that a process holds alone, `require_training_room`.
    """
    training = adapter.training
    if training.sharding == "fsdp":
        return load_shared_base(folder, device)
    recipe = training.at_rate(training.learning_rates[0])
    require_training_room(folder, adapter, recipe, device, training.gradient_checkpointing)
    return load_base(folder, device)


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


def training_split(
    base: Base, domain: str, data: Path | str, task: TaskOptions, split: str, limit: int | None = None
) -> EncodedExamples | DrawnExamples:
    """As `encode_split`, to learn from: one that is large is encoded round by round."""
    records = open_split(data, split).sample(limit, seed=0)
    if len(records) > encoding.ROUND:
        return DrawnExamples(base, domain, records, task)
    return encode_split(base, domain, data, task, split, limit)


def train_one(
    base: Base, sets: Mapping[str, Examples], adapter: Any, seed: int, rate: float, job: Job
) -> dict[str, Any]:
    """One run: attaches, trains, exports, counts and detaches.

    Args:
        sets: {split: what it learns from, or chooses by}.
    """
    started, memory = perf_counter(), costs.PeakMemory(base.model)
    linear = {name: isinstance(layer, core.Conv1D) for name, layer in core.linear_layers(base.model).items()}
    layers = core.attach(base.model, adapter, seed, base.heads)
    recipe = adapter.training.at_rate(rate)
    train, valid = sets["train"], round_examples(sets["valid"], seed, 0)
    session = AdapterSession(
        base, adapter, layers, train, recipe, seed, adapter.training.augmentation, known_sizes(train, job)
    )

    def loss(micro: MicroBatch) -> Loss:
        return Loss(*base.loss(base.model, micro.batch))

    def validate_adapter() -> float:
        return mean_loss(base, base.model, valid, recipe.pass_tokens)

    base.model.train()
    try:
        with recompute_activations(base.model, adapter.training.gradient_checkpointing):
            torch.manual_seed(seed)
            adapter.prepare_training(session)
            parameters = core.trainable_parameters(base.model)
            prepared = perf_counter() - started
            with Feed(session.read_step, session.collate_step, recipe.steps, steps_ahead([train], recipe)) as feed:
                curve = train_model(
                    parameters,
                    feed,
                    loss,
                    recipe,
                    seed,
                    *job.folder_and_title,
                    validate_adapter,
                    session,
                    job.made_with,
                )
            base.model.eval()
            peak, positions = memory.peak_bytes(), sum(point["positions"] for point in curve)
            found, lost = export_adapter(base, adapter, linear)
            operations = costs.total_flops(session, positions)
    finally:
        base.model.eval()
        core.detach(base.model)
        base.model.requires_grad_(False)
    if peak is not None:
        print(f"{job.title}: at most {peak / 1e6:,.0f} MB on the GPU", flush=True)
    return {
        "adapter": found,
        "curve": curve,
        "valid_loss": kept_point(curve)["valid_loss"],
        "best_step": kept_point(curve)["step"],
        "steps": len(curve),
        "validation_time": sum(point.get("validation_seconds", 0.0) for point in curve),
        "transposed": any(linear.values()),
        "lost": lost,
        "prepare_time": prepared,
        "train_time": sum(point["seconds"] for point in curve),
        "data_wait_time": sum(point["waited"] for point in curve),
        "accelerator_memory_max": peak,
        "num_trainable_params": sum(p.numel() for p in parameters.values()),
        "num_stored_params": found.parameters,
        "optimizer_state": sum(
            t.numel() for state in session.optimizing.state.values() for t in optimizer_moments(state)
        ),
        "examples": len(sets["train"]),
        "adapted_modules": len(session.layers),
        "positions": positions,
        "other_positions": session.positions,
        "flops": operations,
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
    """Loss per target over all items, in eval mode."""
    training, (total, count) = model.training, (0.0, 0)
    model.eval()
    for batch in batching.batches_by_length(example_lengths(items), budget):
        loss, n = base.loss(model, base.collate([items[i] for i in batch]))
        total, count = total + float(loss), count + n
    model.train(training)
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
    "best_step",
    "steps",
    "lost",
)


def describe_run(base: Base, domain: str, adapter: Any, seed: int, trial: dict, data: list[str]) -> dict[str, Any]:
    """What is known of a run, in the groups of PEFT's method comparison: configuration, cost and outcome, provenance.

    Times leave validation and storage out, and are whole for a run that was resumed too.
    """
    name, points, kept = base.manifest["name"], trial["curve"], kept_point(trial["curve"])
    shown = [{"step": kept["step"], "train loss": kept["loss"], "valid loss": trial["valid_loss"]}]
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
            "data_wait_time": round(trial["data_wait_time"], 3),
            "validation_time": round(trial["validation_time"], 3),
            "num_total_params": base.model.num_parameters(),  # of packed layers too
            "targets": sum(point["targets"] for point in points),
            "metrics": shown,
        },
        "meta_info": {
            "model_info": {
                "name": name,
                "sha256": base.fingerprint,
                "precision": base.manifest.get("precision", "fp32"),
            },
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
