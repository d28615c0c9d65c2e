"""Saving a mixture whole (gate, order of experts, the experts themselves) and opening it again on its base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import save_file
from transformers.pytorch_utils import Conv1D

from loratory import registry
from loratory.adapters.core import check_tensors
from loratory.adapters.deltas import Adapter, copy_adapter, cpu_tensor, load_adapter, save_adapter
from loratory.adapters.reading import open_options, read_tensors
from loratory.bases.checks import check_links, read_object
from loratory.data.files import atomic_write, write_json
from loratory.errors import InputError
from loratory.mixers import contract
from loratory.mixers.core import Mixture
from loratory.mixers.merging import MERGED_NAME, Merger
from loratory.mixers.methods.weighted_merge import Mixer as WeightedMerge
from loratory.problems import read_fields

if TYPE_CHECKING:
    from loratory.bases.core import Base

MANIFEST, GATE, EXPERTS = "mixture.json", "gate.safetensors", "experts"
CONSTANT = ("uniform", "pooled")  # mixers that weigh every token alike, besides those that merge


class Manifest(BaseModel):
    """What `mixture.json` must say for the mixture to be opened; what else it says is of its making."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    mixer: str
    options: dict[str, Any]
    experts: list[str] = Field(min_length=1)
    domains: list[str]
    base_sha256: str
    adapters: dict[str, str] = {}  # {domain: adapter} of the experts


def open_experts(folders: Mapping[str, Path | str], fingerprint: str) -> dict[str, Adapter]:
    """Loads adapters of one base.

    Raises:
        InputError: as `open_expert`.
    """
    return {name: open_expert(folder, fingerprint) for name, folder in folders.items()}


def open_expert(folder: Path | str, fingerprint: str) -> Adapter:
    """Loads an adapter of a base.

    Raises:
        InputError: the folder is damaged, or the adapter was trained on another base.
    """
    adapter = load_adapter(folder)
    trained_on = str(adapter.run.get("base_sha256", fingerprint))
    if trained_on != fingerprint:
        what = "the expert was trained on another base"
        raise InputError(folder, what, trained_on[:12], f"base {fingerprint[:12]}", "train it on this base")
    return adapter


def open_as_adapter(folder: Path | str, fingerprint: str) -> Adapter:
    """Loads an adapter of a base, or a mixture on it whose experts always have the same weights: their mean, of which
    there is one if they were merged.

    Raises:
        InputError: as `open_expert`; or the mixture weighs by its input, or an expert is not of low rank.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        return open_expert(folder, fingerprint)
    manifest = read_manifest(folder)
    if not has_constant_weights(manifest.mixer):
        raise InputError(folder, "the mixture weighs its experts by its input", manifest.mixer, "an adapter")
    experts = open_experts({name: folder / EXPERTS / name for name in manifest.experts}, fingerprint)
    return WeightedMerge().prepare_experts(experts, 0)[MERGED_NAME]


def has_constant_weights(kind: str) -> bool:
    """Whether a registered mixer gives its experts the same weight at every token."""
    if kind not in registry.registered_names("mixer"):
        return False
    return kind in CONSTANT or issubclass(registry.load_module("mixer", kind).Mixer, Merger)


def save_mixture(
    folder: Path | str, mixture: Mixture, kind: str, expert_folders: Mapping[str, Path | str], run: dict[str, Any]
) -> None:
    """Everything that is needed besides the base: gate, experts in order, and what they were trained on.

    Raises:
        InputError: the mixer is of a published gate alone: its meaning has no place in a saved mixture.
    """
    if mixture.mixer.needs_whole_batch:
        what = "weights that depend on the whole batch cannot be saved as a mixture"
        raise InputError(folder, what, type(mixture.mixer).__name__, fix="open the published folder again")
    with atomic_write(folder) as aside:
        aside.mkdir(parents=True)
        gate = {} if mixture.gate is None else mixture.gate.state_dict()
        save_file({name: cpu_tensor(tensor) for name, tensor in gate.items()}, aside / GATE, metadata={"format": "pt"})
        save_experts(aside / EXPERTS, mixture, expert_folders, run)
        own = set(registry.load_module("mixer", kind).Mixer.model_fields)
        options = mixture.mixer.model_dump(mode="json", include=own)
        manifest = {"mixer": kind, "options": options, "experts": mixture.names, "domains": mixture.domains}
        write_json(aside / MANIFEST, manifest | run)


def save_experts(folder: Path, mixture: Mixture, given: Mapping[str, Path | str], run: dict[str, Any]) -> None:
    """Copies of the experts that were given, or what the mixer made of them."""
    mixer, model = mixture.mixer, mixture.model
    if type(mixer).prepare_experts is contract.Mixer.prepare_experts and not mixer.trains_experts:
        for name in mixture.names:
            copy_adapter(given[name], folder / name)
        return
    causal = model.can_generate() and not model.config.is_encoder_decoder
    transposed = any(isinstance(layer.base, Conv1D) for layer in mixture.layers.values())
    known = {key: run[key] for key in ("base", "base_sha256", "seed") if key in run}
    for name, adapter in mixture.current_experts().items():
        save_adapter(folder / name, replace(adapter, run=known), causal=causal, transposed=transposed)


def open_mixture(folder: Path | str, base: Base) -> Mixture:
    """Puts a saved mixture on a loaded base (see `bases.core.load_base`); the experts' order is the saved one.

    Raises:
        InputError: the mixture belongs to another base, or its folder is damaged, incomplete or linked elsewhere.
    """
    folder = Path(folder)
    check_links(folder)
    manifest = read_manifest(folder)
    if manifest.base_sha256 != base.fingerprint:
        raise InputError(folder, "the mixture belongs to another base", manifest.base_sha256[:12])
    mixer = open_options(f"{folder / MANIFEST}: options", "mixer", manifest.mixer, manifest.options)
    experts = open_experts({name: folder / EXPERTS / name for name in manifest.experts}, base.fingerprint)
    gate = read_tensors(folder / GATE)
    mixture = Mixture(base.model, experts, mixer, folder, manifest.domains)
    try:
        fill_gate(mixture, gate, folder / GATE)
    except InputError:
        mixture.remove_experts()
        raise
    return mixture.eval()


def read_manifest(folder: Path) -> Manifest:
    """Raises:
    InputError: `mixture.json` is missing or not one, or an expert that it names is not in the folder.
    """
    given, where = read_object(folder / MANIFEST), folder / MANIFEST
    manifest = read_fields(Manifest, given, where)
    stored = {path.name for path in (folder / EXPERTS).glob("*")}
    for place, name in enumerate(manifest.experts):
        if name not in stored or name in manifest.experts[:place]:
            raise registry.unknown_name_error(where, "expert", name, stored - {*manifest.experts[:place]})
    return manifest


def fill_gate(mixture: Mixture, tensors: dict[str, torch.Tensor], where: Path) -> None:
    """Raises:
    InputError: the tensors are not those of the mixture's gate.
    """
    expected = mixture.gate.state_dict() if mixture.gate is not None else {}
    check_tensors(where, "the gate does not fit", tensors, expected)
    if mixture.gate is not None:
        mixture.gate.load_state_dict(tensors)
