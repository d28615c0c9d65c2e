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
from loratory.training.processes import is_main_process
from loratory.training.progress import announce_trainings
from loratory.training.session import AdapterSession
from loratory.training.sharding import load_shared_base


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
    load = load_shared_base if adapter.training.sharding == "fsdp" else load_base
    base, out = load(base_folder, device), Path(out)
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
        return mean_loss(base, base.model.eval(), valid, adapter.training.batch_tokens)

    base.model.train()
    try:
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
        peak, positions = memory.peak_bytes(), sum(point["positions"] for point in curve)
        found, lost = export_adapter(base, adapter, linear)
        operations = costs.total_flops(session, positions)
    finally:
        base.model.eval()
        core.detach(base.model)
        base.model.requires_grad_(False)
    return {
        "adapter": found,
        "curve": curve,
        "valid_loss": curve[-1]["valid_loss"],
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
            "data_wait_time": round(trial["data_wait_time"], 3),
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
