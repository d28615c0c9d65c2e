"""All runs of one adapter on one loaded base: a learning-rate grid on the first seed, then the other seeds."""

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from time import perf_counter

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from loratory.adapters import core, deltas
from loratory.bases.core import load_base
from loratory.data import batching
from loratory.data.files import sha256, whole
from loratory.data.splits import SPLITS
from loratory.domains.questions import examples, read_records
from loratory.training.fit import MicroBatch, fit
from loratory.training.job import Job, recipe
from loratory.training.session import Session

VERSIONS = ("torch", "transformers", "peft", "safetensors")


def train_sweep(domain, data, task, base_folder, adapter, seeds, device, checkpoints, max_valid, out) -> None:
    """Writes `runs.parquet` (every learning curve) and `seed{n}/` (a PEFT folder and `run.json` for each seed).

    Args:
        adapter: config entry: the method with its hyper-parameters, and `training`.
        max_valid: valid records that choose between learning rates.
    """
    base, out = load_base(base_folder, device), Path(out)
    sets = {
        "train": encoded(base, domain, data, task, "train"),
        "valid": encoded(base, domain, data, task, "valid", max_valid),
    }
    facts = {"domain": domain, "base": base.fingerprint, "data": data_digest(data), "task": task.model_dump_json()}
    runs, jobs, chosen = [], [], None
    for seed in seeds:
        rates = adapter.training.learning_rates if chosen is None else (chosen,)
        trials = []
        for rate in rates:
            title = f"{domain} {base.manifest['name']} {adapter.method} seed {seed} lr {rate:g}"
            entry = adapter.model_dump(mode="json")
            job = Job(
                device, checkpoints, title, adapter=entry, rate=rate, seed=seed, version=version("torch"), **facts
            )
            trials.append(train_one(base, sets, adapter, seed, rate, job) | {"rate": rate, "job": job})
        best = min(trials, key=lambda trial: trial["valid_loss"])
        chosen = best["rate"]
        run = describe(base, domain, adapter, seed, best, facts)
        stored = replace(best["adapter"], run=run)
        deltas.save_adapter(out / f"seed{seed}", stored, causal=base.family == "causal", transposed=best["transposed"])
        runs += [row | {"seed": seed, "run": f"seed {seed}, lr {t['rate']:g}"} for t in trials for row in t["curve"]]
        jobs += [trial["job"] for trial in trials]
    write_runs(out / "runs.parquet", runs)
    for job in jobs:
        job.done()


def encoded(base, domain: str, data, task, split: str, limit: int | None = None):
    """The examples of a split as the base reads them."""
    records = read_records(data, split, limit)
    return [base.encode(example) for example in examples(domain, records, task, base.family)]


def train_one(base, sets, adapter, seed: int, rate: float, job: Job) -> dict:
    """One run: attaches, trains, exports and detaches."""
    started = perf_counter()
    layers = core.attach(base.model, adapter, seed, base.heads)
    steps = recipe(adapter.training, rate)
    session = Session(base, adapter, layers, sets["train"], adapter.training, steps, seed)

    def micro_batches(step):
        return [MicroBatch("train", session.batch(step))]

    def validate():
        return mean_loss(base, base.model.eval(), sets["valid"], adapter.training.batch_tokens)

    base.model.train()
    try:
        torch.manual_seed(seed)
        adapter.prepare(session)
        parameters = core.trainable(base.model)
        loss = lambda micro: base.loss(base.model, micro.batch)  # noqa: E731
        curve = fit(parameters, micro_batches, loss, steps, seed, *job.place, validate, session)
        found = core.export(base.model, base.heads, {})
    finally:
        base.model.eval()
        core.detach(base.model)
        base.model.requires_grad_(False)
    return {
        "adapter": found,
        "curve": curve,
        "valid_loss": curve[-1]["valid_loss"],
        "parameters": sum(p.numel() for p in parameters.values()),
        "stored": found.parameters,
        "optimizer_state": sum(t.numel() for state in session.optimizing.state.values() for t in moments(state)),
        "other_positions": session.positions,
        "modules": len(session.layers),
        "transposed": any(isinstance(layer.base, core.Conv1D) for layer in layers.values()),
        "seconds": perf_counter() - started,
    }


def moments(state: dict) -> list[torch.Tensor]:
    """What an optimizer remembers of one parameter, without counters."""
    return [value for value in state.values() if torch.is_tensor(value) and value.dim()]


@torch.no_grad()
def mean_loss(base, model, items, budget: int) -> float:
    """Loss per target over all items."""
    total = count = 0
    for batch in batching.by_length([item.length for item in items], budget):
        loss, n = base.loss(model, base.collate([items[i] for i in batch]))
        total, count = total + float(loss), count + n
    return total / count


def describe(base, domain: str, adapter, seed: int, trial: dict, facts: dict) -> dict:
    """What is known of a run: configuration, cost, provenance."""
    return {
        "domain": domain,
        "base": base.manifest["name"],
        "base_sha256": base.fingerprint,
        "data_sha256": facts["data"],
        "adapter": adapter.model_dump(mode="json"),
        "seed": seed,
        "learning_rate": trial["rate"],
        "adapted_modules": trial["modules"],
        "trainable_parameters": trial["parameters"],
        "stored_parameters": trial["stored"],
        "optimizer_state": trial["optimizer_state"],
        "other_positions": trial["other_positions"],
        "targets": sum(point["targets"] for point in trial["curve"]),
        "valid_loss": trial["valid_loss"],
        "seconds": round(trial["seconds"], 3),
        "versions": {name: version(name) for name in VERSIONS},
    }


def data_digest(data) -> list[str]:
    """Digests of the splits that training may look at."""
    return [sha256(Path(data) / f"{split}.parquet") for split in SPLITS if split != "test"]


def write_runs(path, runs: list[dict]) -> None:
    columns = ("run", "seed", "learning_rate", "step", "loss", "valid_loss", "targets", "seconds")
    table = pa.table({name: [row.get(name) for row in runs] for name in columns})
    with whole(path) as aside:
        pq.write_table(table, aside)
