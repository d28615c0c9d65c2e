"""What a base among results can answer as: what was trained on it, and which of it shares batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from loratory.adapters.core import check_fit
from loratory.adapters.deltas import RUN
from loratory.adapters.reading import open_options
from loratory.bases.checks import read_object
from loratory.bases.families.causal import Family as CausalBase
from loratory.errors import InputError
from loratory.mixers.generation import check_attention
from loratory.mixers.store import MANIFEST, has_constant_weights, open_as_adapter, read_manifest
from loratory.serving.adapters import refusal_reason


@dataclass
class Catalog:
    """Models by their names, each in one of these.

    Attributes:
        shared: {name: folder} of those that share batches; the folder of the bare base is None. alone: of those that
            answer one request after another. reasons: why each of these does not share. refused: {name: why it
            answers nothing}.
    """

    shared: dict[str, Path | None] = field(default_factory=dict)
    alone: dict[str, Path | None] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    refused: dict[str, InputError] = field(default_factory=dict)


def find_models(base_folder: Path) -> dict[str, Path]:
    """{name as in tables, `:seed{n}` behind it for all seeds but the first: folder} of all adapters of a base among
    results, then of all mixtures on it."""
    results, found = base_folder.parents[1], dict[str, Path]()
    for run in sorted(results.glob(f"adapters/*/{base_folder.name}/*/seed*/{RUN}")):
        add_model(found, f"{run.parents[1].name}@{run.parents[3].name}", run.parent)
    for manifest in sorted(results.glob(f"mixtures/*/seed*/{MANIFEST}")):
        if read_object(manifest).get("base") == base_folder.name:
            add_model(found, manifest.parents[1].name, manifest.parent)
    return found


def add_model(found: dict[str, Path], name: str, folder: Path) -> None:
    found[f"{name}:{folder.name}" if name in found else name] = folder


def sort_models(base: CausalBase, folders: Mapping[str, Path]) -> Catalog:
    """The bare base by its own name, and the models in these folders by theirs."""
    catalog = Catalog()
    for name, folder in {base.manifest["name"]: None, **folders}.items():
        try:
            reason = reason_alone(base, name, folder)
        except InputError as error:
            catalog.refused[name] = error
            continue
        if reason is None:
            catalog.shared[name] = folder
        else:
            catalog.alone[name], catalog.reasons[name] = folder, reason
    return catalog


def reason_alone(base: CausalBase, name: str, folder: Path | None) -> str | None:
    """Why a model shares no batches; None if it does.

    Raises:
        InputError: its folder is damaged or of another base, or it cannot continue a prompt of an unknown domain.
    """
    reason = None
    if folder is not None and (folder / MANIFEST).is_file() and not has_constant_weights(read_manifest(folder).mixer):
        reason = mixture_reason(name, folder)
    elif folder is not None:
        adapter = open_as_adapter(folder, base.fingerprint)
        check_fit(base.model, adapter, folder)
        reason = refusal_reason(base.model, adapter)
        if adapter.heads and reason is None:
            reason = f"{next(iter(adapter.heads))} is trained whole"
    try:
        check_attention(base.model.config)
    except InputError:
        reason = reason or "the base's layers attend to a part of the text alone"
    return reason


def mixture_reason(name: str, folder: Path) -> str:
    """Raises:
    InputError: the mixture needs more than a prompt.
    """
    manifest = read_manifest(folder)
    mixer = open_options(f"{folder / MANIFEST}: options", "mixer", manifest.mixer, manifest.options)
    if mixer.needs_domain:
        raise InputError(f"request: model: {name}", "the mixer must know its input's domain", manifest.mixer)
    if mixer.needs_whole_batch:
        raise InputError(f"request: model: {name}", "the mixer weighs a whole batch, not a token", manifest.mixer)
    return f"its mixer weighs experts by the input ({manifest.mixer})"
