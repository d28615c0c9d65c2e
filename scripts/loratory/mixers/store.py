"""Saving a mixture whole (gate, order of experts, the experts themselves) and opening it again on its base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file
from transformers.pytorch_utils import Conv1D

from loratory import registry
from loratory.adapters.deltas import Adapter, cpu_tensor, load_adapter, save_adapter
from loratory.data.files import atomic_write, read_json, write_json
from loratory.errors import InputError
from loratory.mixers import contract
from loratory.mixers.core import Mixture

if TYPE_CHECKING:
    from loratory.bases.core import Base

MANIFEST, GATE, EXPERTS = "mixture.json", "gate.safetensors", "experts"


def open_experts(folders: Mapping[str, Path | str], fingerprint: str) -> dict[str, Adapter]:
    """Loads adapters of one base.

    Raises:
        InputError: an adapter was trained on another base.
    """
    experts = {name: load_adapter(folder) for name, folder in folders.items()}
    for name, adapter in experts.items():
        trained_on = adapter.run.get("base_sha256", fingerprint)
        if trained_on != fingerprint:
            what = "the expert was trained on another base"
            raise InputError(folders[name], what, trained_on[:12], f"base {fingerprint[:12]}", "train it on this base")
    return experts


def save_mixture(
    folder: Path | str, mixture: Mixture, kind: str, expert_folders: Mapping[str, Path | str], run: dict[str, Any]
) -> None:
    """Everything that is needed besides the base: gate, experts in order, and what they were trained on."""
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
            copytree(given[name], folder / name)
        return
    causal = model.can_generate() and not model.config.is_encoder_decoder
    transposed = any(isinstance(layer.base, Conv1D) for layer in mixture.layers.values())
    known = {key: run[key] for key in ("base", "base_sha256", "seed") if key in run}
    for name, adapter in mixture.current_experts().items():
        save_adapter(folder / name, replace(adapter, run=known), causal=causal, transposed=transposed)


def open_mixture(folder: Path | str, base: Base) -> Mixture:
    """Puts a saved mixture on a loaded base (see `bases.core.load_base`); the experts' order is the saved one.

    Raises:
        InputError: the mixture belongs to another base.
    """
    folder = Path(folder)
    manifest = read_json(folder / MANIFEST)
    if manifest["base_sha256"] != base.fingerprint:
        raise InputError(folder, "the mixture belongs to another base", manifest["base_sha256"][:12])
    folders = {name: folder / EXPERTS / name for name in manifest["experts"]}
    mixer = registry.load_module("mixer", manifest["mixer"]).Mixer(**manifest["options"])
    mixture = Mixture(base.model, open_experts(folders, base.fingerprint), mixer, folder, manifest["domains"])
    if mixture.gate is not None:
        mixture.gate.load_state_dict(load_file(folder / GATE))
    return mixture.eval()
