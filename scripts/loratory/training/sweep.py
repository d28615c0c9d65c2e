"""All runs of one adapter on one loaded base: a learning-rate grid on the first seed, then the other seeds."""

import platform
from collections.abc import Callable, Mapping, Sequence
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
from loratory.training import costs, encoding
from loratory.training.encoding import DrawnExamples, EncodedExamples, Examples, example_lengths, round_examples
from loratory.training.feeding import Feed, known_sizes, steps_ahead
from loratory.training.fit import Loss, MicroBatch, divergence_error, train_model
from loratory.training.grid import best_trial, curve_rows, write_curves
from loratory.training.job import Job
from loratory.training.memory import Sharing, require_training_room
from loratory.training.processes import is_main_process
from loratory.training.progress import announce_trainings
from loratory.training.recompute import recompute_activations
from loratory.training.session import AdapterSession
from loratory.training.sharding import load_shared_base
from loratory.training.together import Run, train_together
from loratory.training.validation import describe_validation, kept_point


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
    base, out = open_base(base_folder, adapter, device, len(seeds)), Path(out)
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
    together = runs_together(base, adapter, sets["train"])
    train_ahead([(seeds[0], rate) for rate in rates])
    for seed in seeds:
        best, trials = best_trial(rates, partial(train_trial, seed))
        if seed == seeds[0]:
            rates = (best["rate"],)
            train_ahead([(each, best["rate"]) for each in seeds[1:]])
        runs += curve_rows(seed, trials)
        if not is_main_process():
            continue
        run = describe_run(base, domain, adapter, seed, best, facts["data"])
        stored = replace(best["adapter"], run=run)
        deltas.save_adapter(out / f"seed{seed}", stored, causal=base.family == "causal", transposed=best["transposed"])
    if is_main_process():
        write_curves(out / "runs.parquet", runs)
        best["job"].remove_checkpoints()


def open_base(folder: Path | str, adapter: Any, device: str, seeds: int) -> Base:
    """The base of a sweep over so many seeds, or this process's part of it.

    Raises:
        InputError: as `load_base` and `require_training_room`.
    """
    training = adapter.training
    is_shared = training.sharding == "fsdp"
    in_turn = torch.device(device).type == "cpu" or training.processes > 1 or training.micro_batch_tokens is not None
    how = Sharing(
        recompute=training.gradient_checkpointing,
        processes=training.processes if is_shared else 1,
        runs=1 if in_turn else min(training.together, max(len(training.learning_rates), seeds - 1)),
    )
    require_training_room(folder, adapter, training.at_rate(training.learning_rates[0]), device, how)
    return load_shared_base(folder, device) if is_shared else load_base(folder, device)


def runs_together(base: Base, adapter: Any, examples: Examples) -> int:
    """How many trainings of an adapter share their passes: as the config says, or 1 where that cannot be."""
    wanted = adapter.training.together
    reason = together_refusal(base, adapter, examples) if wanted > 1 else ""
    if reason:
        print(f"note: trained one after the other: {reason}", flush=True)
    return 1 if reason else wanted


def together_refusal(base: Base, adapter: Any, examples: Examples) -> str:
    """Why trainings cannot share their passes; "" if they can."""
    if base.device.type == "cpu":
        return "a CPU gains nothing by it"
    if adapter.training.processes > 1:
        return "processes share each of them already"
    if adapter.training.micro_batch_tokens is not None:
        return "their batches are learnt from in parts"
    if isinstance(examples, DrawnExamples):
        return "seeds draw other rounds of a split this large"
    return stack_refusal(base, adapter)


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
    memory = costs.PeakMemory(base.model)

    def loss(micro: MicroBatch) -> Loss:
        if micro.is_fixed:
            return Loss(base.summed_nll(base.model, micro.batch), micro.targets)
        return Loss(*base.loss(base.model, micro.batch))

    try:
        with recompute_activations(base.model, adapter.training.gradient_checkpointing):
            opened = open_training(base, sets, adapter, seed, rate, job)
            session, recipe = opened.session, opened.session.recipe
            ahead = steps_ahead([sets["train"]], recipe)
            with Feed(session.read_step, session.collate_replayed, recipe.steps, ahead) as feed:
                curve = train_model(
                    opened.parameters,
                    feed,
                    loss,
                    recipe,
                    seed,
                    *job.folder_and_title,
                    opened.validate,
                    session,
                    job.made_with,
                )
            peak = memory.peak_bytes()
            print_peak(job.title, peak)
            return describe_outcome(base, sets, adapter, opened, curve, peak)
    finally:
        close_training(base)


def train_alongside(
    base: Base, sets: Mapping[str, Examples], adapter: Any, jobs: Mapping[tuple[int, float], Job]
) -> dict[tuple[int, float], dict[str, Any] | InputError]:
    """As `train_one` for each (seed, rate), in one pass for all; what has diverged is its error.

    Peak memory is that of all runs together. Nothing is returned where their adapters have not the same shapes.
    """
    memory, opened = costs.PeakMemory(base.model), {}
    try:
        with recompute_activations(base.model, adapter.training.gradient_checkpointing):
            for pair, job in jobs.items():
                opened[pair] = open_training(base, sets, adapter, *pair, job)
                core.detach(base.model)
            if not are_alike([own.session.layers for own in opened.values()]):
                print("note: trained one after the other: adapters of unequal shapes", flush=True)
                return {}
            base.model.train()
            runs = {pair: Run(own.session, own.parameters, own.validate, jobs[pair]) for pair, own in opened.items()}
            title = f"{len(runs)} trainings of {next(iter(jobs.values())).title}"
            train_together(base, [*runs.values()], title, sets["train"])
            peak, found = memory.peak_bytes(), dict[tuple[int, float], dict[str, Any] | InputError]()
            print_peak(title, peak)
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
    """An adapter that is about to be trained.

    Attributes:
        validate: its loss on `valid`, while its layers are on the model.
        transposed: of each linear layer of the base, whether it stores its weight so.
        seconds: what its preparation took.
    """

    session: AdapterSession
    parameters: dict[str, torch.nn.Parameter]
    validate: Callable[[], float]
    transposed: dict[str, bool]
    seconds: float


def open_training(
    base: Base, sets: Mapping[str, Examples], adapter: Any, seed: int, rate: float, job: Job
) -> OpenTraining:
    """Puts a new adapter on the base and prepares it."""
    started = perf_counter()
    transposed = {name: isinstance(layer, core.Conv1D) for name, layer in core.linear_layers(base.model).items()}
    layers = core.attach(base.model, adapter, seed, base.heads)
    recipe = adapter.training.at_rate(rate)
    train, valid = sets["train"], round_examples(sets["valid"], seed, 0)
    session = AdapterSession(
        base, adapter, layers, train, recipe, seed, adapter.training.augmentation, known_sizes(train, job)
    )

    def validate() -> float:
        return mean_loss(base, base.model, valid, recipe.pass_tokens)

    base.model.train()
    torch.manual_seed(seed)
    adapter.prepare_training(session)
    parameters = core.trainable_parameters(base.model)
    return OpenTraining(session, parameters, validate, transposed, perf_counter() - started)


def close_training(base: Base) -> None:
    base.model.eval()
    core.detach(base.model)
    base.model.requires_grad_(False)


def print_peak(title: str, peak: int | None) -> None:
    if peak is not None:
        print(f"{title}: at most {peak / 1e6:,.0f} MB on the GPU", flush=True)


def describe_outcome(
    base: Base,
    sets: Mapping[str, Examples],
    adapter: Any,
    opened: OpenTraining,
    curve: list[dict],
    peak: int | None,
) -> dict[str, Any]:
    """What has come of the training whose adapter is on the model, with what it cost."""
    session, positions = opened.session, sum(point["positions"] for point in curve)
    base.model.eval()
    found, lost = export_adapter(base, adapter, opened.transposed)
    return {
        "adapter": found,
        "curve": curve,
        "valid_loss": kept_point(curve)["valid_loss"],
        **describe_validation(curve),
        "transposed": any(opened.transposed.values()),
        "lost": lost,
        "prepare_time": opened.seconds,
        "train_time": sum(point["seconds"] for point in curve),
        "data_wait_time": sum(point["waited"] for point in curve),
        "accelerator_memory_max": peak,
        "num_trainable_params": sum(p.numel() for p in opened.parameters.values()),
        "num_stored_params": found.parameters,
        "optimizer_state": sum(
            t.numel() for state in session.optimizing.state.values() for t in optimizer_moments(state)
        ),
        "examples": len(sets["train"]),
        "adapted_modules": len(session.layers),
        "positions": positions,
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
    "validation_time",
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
