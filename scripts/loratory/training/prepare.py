"""Preparing any base: from a folder, from the hub, or trained here."""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from loratory import registry
from loratory.bases.architecture import check_architecture
from loratory.bases.core import weights_digest
from loratory.bases.fair_esm import import_fair_esm
from loratory.bases.openai_whisper import import_openai
from loratory.bases.pickles import prepare_pickle
from loratory.bases.prepare import note_training, prepare_folder, prepare_hub
from loratory.data.files import atomic_write, file_sha256
from loratory.domains.contract import TaskOptions
from loratory.domains.examples import read_records
from loratory.provenance import base_code
from loratory.training.job import Job
from loratory.training.pretrain import pretrain_base, train_projector

CONVERTERS = {"masked": import_fair_esm, "whisper": import_openai}  # of `options.CHECKPOINTS`


def prepare_base(
    name: str,
    entry: Any,
    general: Mapping[str, Path | str],
    tasks: Mapping[str, TaskOptions],
    audio_encoder: Path | str | None,
    device: str,
    checkpoints: Path | str,
    out: Path | str,
    folder: Path | str | None = None,
) -> None:
    """Writes the base's folder, whole.

    Args:
        entry: `config.BaseEntry`. general: {domain: folder of general data}; tasks: {domain: its task options}.
        audio_encoder: folder of the Whisper base whose encoder becomes a causal base's audio encoder, or None.
        folder: where the files of a base with `hub` lie already; None means to download them.
    """
    corpora = {d: read_corpus(d, general[d], tasks[d], entry.family) for d in entry.corpora}
    facts = {
        "data_sha256": {d: file_sha256(f"{general[d]}/train.parquet") for d in corpora},
        "torch": version("torch"),
        "audio_encoder_sha256": weights_digest(audio_encoder) if audio_encoder else None,
    }
    asked = {"entry": entry.model_dump(mode="json"), "tasks": {d: tasks[d].model_dump(mode="json") for d in corpora}}
    job = Job(device, checkpoints, f"base {name}", out, code=base_code(entry.family, corpora), **asked, **facts)
    if entry.pretrain:
        check_architecture(f"bases.{name}.pretrain.architecture", entry.family, entry.pretrain.architecture)
        pretrain_base(name, entry, corpora, audio_encoder, job, out, **facts)
        return
    with atomic_write(out) as aside:
        if folder := entry.path or folder:
            if str(folder).endswith(".pt"):
                prepare_pickle(CONVERTERS[entry.family], folder, name, entry, aside)
            else:
                prepare_folder(folder, name, entry, aside)
        else:
            prepare_hub(entry.hub, name, entry, aside)
        if audio_encoder:
            train_projector(aside, corpora[entry.audio.corpus], entry.audio, audio_encoder, job)
            note_training(aside, **facts)
    job.remove_checkpoints()


def read_corpus(domain: str, folder: Path | str, task: TaskOptions, family: str) -> list:
    """What a base of the family learns from."""
    return registry.load_module("pretraining", family).read_corpus(domain, read_records(folder, "train"), task)
