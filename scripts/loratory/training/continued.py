"""A base that learns on: an adapter is trained on a corpus of general data and added to the base's weights.

Stage 1 of ProLLaMA (https://github.com/PKU-YuanGroup/ProLLaMA), whose stage 2 starts from what stage 1 made.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.pytorch_utils import Conv1D

from loratory.adapters import core
from loratory.bases.core import CURVE, family_class, load_base
from loratory.bases.prepare import write_manifest
from loratory.data.files import atomic_write, file_sha256, write_json
from loratory.errors import InputError
from loratory.training.grid import best_trial
from loratory.training.job import Job
from loratory.training.processes import is_main_process
from loratory.training.progress import announce_trainings
from loratory.training.sweep import encode_split, train_one, training_split

if TYPE_CHECKING:
    from loratory.adapters.deltas import Adapter
    from loratory.bases.options import BaseEntry
    from loratory.domains.contract import TaskOptions


def continue_base(
    name: str,
    entry: BaseEntry,
    start: Path | str,
    adapter: Any,
    data: Path | str,
    task: TaskOptions,
    *,
    max_valid: int,
    device: str,
    checkpoints: Path | str,
    code: str,
    out: Path | str,
) -> None:
    """Writes the folder of a base that has learnt on, whole: safetensors, config, tokenizer, manifest, learning curve.

    Args:
        entry: config entry, with `continued`. start: folder of the base that it begins as.
        adapter: config entry; the learning rate with the lowest loss on `max_valid` valid records is taken.
        data, task: general data, and how it is put to the base.

    Raises:
        InputError: as `training_split`, or the adapter's change is no change of weights.
    """
    assert entry.continued is not None
    corpus, seed = entry.continued.corpus, entry.continued.seed
    base = load_base(start, device, "fp32")  # a sum in half precision would round a small change away
    digests = {split: file_sha256(f"{data}/{split}.parquet") for split in ("train", "valid")}
    facts = {"start_sha256": base.fingerprint, "data_sha256": {corpus: digests}, "torch": version("torch")}
    parts = {"entry": entry, "adapter": adapter, "task": task}
    asked = {part: options.model_dump(mode="json") for part, options in parts.items()}
    job = Job(device, checkpoints, f"base {name}", out, code=code, **asked, **facts)
    sets = {
        "train": training_split(base, corpus, data, task, "train"),
        "valid": encode_split(base, corpus, data, task, "valid", max_valid),
    }
    rates = adapter.training.learning_rates
    announce_trainings(len(rates))
    best, _ = best_trial(rates, lambda rate: train_one(base, sets, adapter, seed, rate, job.at_rate(rate)))
    if not is_main_process():
        return
    merge_adapter(base.model, best["adapter"], f"adapters.{entry.continued.adapter}")
    with atomic_write(out) as aside:
        aside.mkdir(parents=True)
        base.model.save_pretrained(aside)
        base.tokenizer.save_pretrained(aside)
        family_class(entry.family).complete_folder(aside)
        write_json(aside / CURVE, best["curve"])
        write_manifest(aside, name, entry, origin="continued", learning_rate=best["rate"], **facts)
    job.remove_checkpoints()


def merge_adapter(model: torch.nn.Module, adapter: Adapter, where: str) -> None:
    """Adds a stored adapter's changes to the weights of the model that it was trained on, for good.

    Raises:
        InputError: one of them depends on the input.
    """
    if adapter.own:
        what, fix = (
            "a change that depends on the input cannot be added to weights",
            "name an adapter of another method",
        )
        raise InputError(where, what, next(iter(adapter.own)), fix=fix)
    core.check_fit(model, adapter, where)
    layers, parameters = core.adaptable_layers(model), dict(model.named_parameters())
    for name, delta in adapter.deltas.items():
        change, weight = delta.to_dense(), layers[name].weight
        add_change(weight, (change.T if isinstance(layers[name], Conv1D) else change).reshape(weight.shape))
    for name, change in adapter.dense.items():
        add_change(parameters[name], change)
    for name, trained in adapter.heads.items():
        parameters[name].data.copy_(trained)


def add_change(weight: torch.Tensor, change: torch.Tensor) -> None:
    weight.data.add_(change.to(weight.device, weight.dtype))
