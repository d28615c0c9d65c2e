"""Bringing a base from a folder or the hub into the workflow's own folder, with a manifest of what it is."""

from pathlib import Path
from shutil import copy2

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from loratory.bases.core import MANIFEST, open_model, weights_digest
from loratory.bases.options import WhisperOptions
from loratory.data.files import read_json, whole, write_json
from loratory.errors import InputError

KEPT = ("*.json", "*.safetensors", "*.txt", "*.model", "*.md", "LICENSE*")  # no pickles, no code


def prepare_folder(source, name: str, entry, out) -> None:
    """Copies weights, config and tokenizer of a local model folder.

    Raises:
        InputError: no folder, no safetensors, or no config.
    """
    source = Path(source)
    if not (source / "config.json").is_file():
        raise InputError(source, "no config.json", expected="a Hugging Face model folder")
    weights_digest(source)
    with whole(out) as aside:
        aside.mkdir(parents=True)
        for path in sorted({path for pattern in KEPT for path in source.rglob(pattern)}):
            target = aside / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            copy2(path, target)
        if entry.family == "encoder":
            add_head(aside)
        write_manifest(aside, name, entry, origin=entry.hub or str(source), **declared(source))


def declared(source: Path) -> dict:
    """What the folder says of its weights: random ones stay marked as random, so that nothing reports them."""
    manifest = source / MANIFEST
    return {"weights": read_json(manifest)["weights"]} if manifest.is_file() else {}


def prepare_hub(repository: str, name: str, entry, out) -> None:
    """Downloads one commit of a hub repository (safetensors, config, tokenizer) and prepares it."""
    from huggingface_hub import snapshot_download

    folder = snapshot_download(repository, revision=entry.revision, allow_patterns=list(KEPT))
    prepare_folder(folder, name, entry, out)


def add_head(folder) -> None:
    """Stores the encoder with its (untrained) pooler and classifier, so that every reader starts from the same."""
    torch.manual_seed(0)
    model = open_model(AutoModelForSequenceClassification, folder, new=("pooler", "classifier"), num_labels=2)
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)


def write_manifest(folder, name: str, entry, origin: str, **facts) -> None:
    """`base.json`: where the base comes from and the digest that adapters will remember."""
    manifest = {
        "name": name,
        "family": entry.family,
        "origin": origin,
        "revision": entry.revision,
        "licence": entry.licence,
        "note": entry.note,
        "weights": "trained",
        "weights_sha256": weights_digest(folder),
    }
    if entry.family == "whisper":
        facts["whisper"] = (entry.whisper or WhisperOptions()).model_dump()
    write_json(folder / MANIFEST, manifest | facts)
