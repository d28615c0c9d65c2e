"""Bringing a base from a folder or the hub into the workflow's own folder, with a manifest of what it is."""

from __future__ import annotations

from pathlib import Path
from shutil import copy2
from typing import TYPE_CHECKING, Any, cast

from loratory.bases.checks import INDEX, WEIGHTS, check_links, check_model_folder, check_opening, weight_paths
from loratory.bases.core import MANIFEST, family_class, read_object, settings_digest, weights_digest
from loratory.bases.hub import download_files
from loratory.data.files import atomic_write, read_json, write_json
from loratory.errors import InputError
from loratory.registry import outside_packages

if TYPE_CHECKING:
    from loratory.bases.options import BaseEntry

COPIED_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.md", "LICENSE*")  # besides weights; no pickles, no code


def prepare_folder(source: Path | str, name: str, entry: BaseEntry, out: Path | str) -> None:
    """Checks a local model folder and copies weights, config and tokenizer.

    Raises:
        InputError: as `check_model_folder`; or a link leads out of the folder.
    """
    check_links(source)
    prepare_files(Path(source), name, entry, out, taken_from=str(source))


def prepare_hub(repository: str, name: str, entry: BaseEntry, out: Path | str) -> None:
    """Downloads one commit of a hub repository (safetensors, config, tokenizer) and prepares it.

    Raises:
        InputError: as `download_files` and `check_model_folder`.
    """
    folder = download_files(repository, cast(str, entry.revision), ["*.safetensors", *COPIED_FILES])
    prepare_files(folder, name, entry, out, taken_from="hub")


def prepare_files(source: Path, name: str, entry: BaseEntry, out: Path | str, taken_from: str) -> None:
    """Checks and copies the files of one model; weights in formats other than safetensors are not copied."""
    check_model_folder(source, entry.family)
    declared = declared_weights(source)
    kept = {path for pattern in COPIED_FILES for path in source.glob(pattern) if path.name != INDEX}
    kept |= {path for pattern in (*COPIED_FILES, "*.safetensors") for path in (source / "audio").glob(pattern)}
    weights = weight_paths(source)
    kept |= {*weights} if weights[0].name == WEIGHTS else {*weights, source / INDEX}
    with atomic_write(out) as aside:
        for path in sorted(filter(Path.is_file, kept)):
            target = aside / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            copy2(path, target)
        family_class(entry.family).complete_folder(aside)
        write_manifest(aside, name, entry, origin=entry.hub or taken_from, taken_from=taken_from, **declared)
        check_opening(aside, source)


def declared_weights(source: Path) -> dict[str, Any]:
    """The mark of random weights in the folder's manifest, which is kept so that no result of them is reported.

    Raises:
        InputError: the manifest is broken.
    """
    manifest = source / MANIFEST
    mark = read_object(manifest).get("weights") if manifest.is_file() else None
    if not isinstance(mark, str | None):
        raise InputError(manifest, "`weights` is no word", mark, "trained or random")
    return {"weights": mark} if mark else {}


def write_manifest(folder: Path, name: str, entry: BaseEntry, origin: str, **facts: Any) -> None:
    """`base.json`: where the base comes from and the digest that adapters will remember."""
    manifest = {
        "name": name,
        "family": entry.family,
        "origin": origin,
        "revision": entry.revision,
        "precision": entry.precision,
        "licence": entry.licence,
        "note": entry.note,
        "weights": "trained",
        "packages": outside_packages(family=entry.family),
        **file_digests(folder),
    }
    write_json(folder / MANIFEST, manifest | facts | family_class(entry.family).manifest_facts(entry))


def note_training(folder: Path, **facts: Any) -> None:
    """What was trained here of a prepared base, and the digest of its weights since."""
    manifest = read_json(folder / MANIFEST)
    write_json(folder / MANIFEST, manifest | facts | file_digests(folder))


def file_digests(folder: Path) -> dict[str, str]:
    """What `load_base` compares: the digest of the weights, which adapters remember too, and that of all else."""
    return {"weights_sha256": weights_digest(folder), "settings_sha256": settings_digest(folder)}
