"""Bringing a base from a folder or the hub into the workflow's own folder, with a manifest of what it is."""

from pathlib import Path
from shutil import copy2

import torch
from transformers import AutoModelForSequenceClassification

from loratory.bases.checks import HEADS, INDEX, WEIGHTS, check_links, check_model_folder, read_object, weight_paths
from loratory.bases.core import MANIFEST, open_model, open_tokenizer, weights_digest
from loratory.bases.hub import download_files
from loratory.bases.options import WhisperOptions
from loratory.data.files import atomic_write, read_json, write_json

COPIED_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.md", "LICENSE*")  # besides weights; no pickles, no code


def prepare_folder(source, name: str, entry, out) -> None:
    """Checks a local model folder and copies weights, config and tokenizer.

    Raises:
        InputError: as `check_model_folder`; or a link leads out of the folder.
    """
    check_links(source)
    prepare_files(Path(source), name, entry, out, taken_from=str(source))


def prepare_hub(repository: str, name: str, entry, out) -> None:
    """Downloads one commit of a hub repository (safetensors, config, tokenizer) and prepares it.

    Raises:
        InputError: as `download` and `check_model_folder`.
    """
    folder = download_files(repository, entry.revision, ["*.safetensors", *COPIED_FILES])
    prepare_files(folder, name, entry, out, taken_from="hub")


def prepare_files(source: Path, name: str, entry, out, taken_from: str) -> None:
    """Checks and copies the files of one model; weights that are not the model's stay behind."""
    check_model_folder(source, entry.family)
    said = declared_weights(source)
    kept = {path for pattern in COPIED_FILES for path in source.glob(pattern) if path.name != INDEX}
    kept |= {path for pattern in (*COPIED_FILES, "*.safetensors") for path in (source / "audio").glob(pattern)}
    weights = weight_paths(source)
    kept |= {*weights} if weights[0].name == WEIGHTS else {*weights, source / INDEX}
    with atomic_write(out) as aside:
        for path in sorted(kept):
            target = aside / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            copy2(path, target)
        if entry.family == "encoder":
            add_head(aside)
        write_manifest(aside, name, entry, origin=entry.hub or taken_from, taken_from=taken_from, **said)


def declared_weights(source: Path) -> dict:
    """What the folder says of its weights: random ones stay marked as random, so that nothing reports them."""
    manifest = source / MANIFEST
    said = read_object(manifest).get("weights") if manifest.is_file() else None
    return {"weights": said} if said else {}


def add_head(folder) -> None:
    """Stores the encoder with its (untrained) pooler and classifier, so that every reader starts from the same."""
    torch.manual_seed(0)
    model = open_model(AutoModelForSequenceClassification, folder, new=HEADS, num_labels=2)
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    model.save_pretrained(folder)
    open_tokenizer(folder).save_pretrained(folder)


def write_manifest(folder, name: str, entry, origin: str, **facts) -> None:
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
        "weights_sha256": weights_digest(folder),
    }
    if entry.family == "whisper":
        facts["whisper"] = (entry.whisper or WhisperOptions()).model_dump()
    write_json(folder / MANIFEST, manifest | facts)


def note_training(folder, **facts) -> None:
    """What was trained here of a prepared base, and the digest of its weights since."""
    manifest = read_json(folder / MANIFEST)
    write_json(folder / MANIFEST, manifest | facts | {"weights_sha256": weights_digest(folder)})
