"""Folding samples and scoring the structures: one PDB file for each sample, one row for each sample."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from shutil import copy2, rmtree
from typing import TYPE_CHECKING, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from loratory import registry
from loratory.bases.families import folding
from loratory.data.files import atomic_write, file_sha256
from loratory.data.structures import BACKBONE
from loratory.domains.contract import FoldedTaskModule
from loratory.errors import InputError
from loratory.evaluation.foldseek import is_installed, promising_references
from loratory.evaluation.structure import (
    MAX_ALIGNED,
    SHORTEST,
    KnownChain,
    first_chain,
    mean_plddt,
    nearest_reference,
    read_references,
    structure_folder,
)

if TYPE_CHECKING:
    from transformers import EsmForProteinFolding

SCORES = "scores.parquet"
UNFOLDED = ("length", "memory")  # reasons of errors that are of one sample and leave the others as they are
SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "plddt": pa.float64(),  # mean over residues, 0–100; null where the sample was not folded
        "plddt_atoms": pa.string(),  # which atoms `plddt` is read from: always "ca"
        "reference": pa.string(),  # the nearest; null, as are the next seven, without references or below 20 residues
        "reference_length": pa.int64(),  # resolved residues
        "search": pa.string(),  # what said which references are promising: "foldseek", or "coarse" superpositions
        "tm_longer": pa.float64(),  # TM-score to it, normalised by the longer of both, by which it is the nearest
        "tm_query": pa.float64(),  # normalised by the sample's length
        "tm_reference": pa.float64(),  # normalised by the reference's length
        "rmsd": pa.float64(),  # Å, over `aligned_length` Cα pairs
        "aligned_length": pa.int64(),
        "length": pa.int64(),
        "unfolded": pa.string(),  # why the sample was not folded; null where it was
    }
)


def fold_samples(
    samples: Sequence[tuple[str, str]],
    references: Mapping[str, np.ndarray],
    model_folder: Path | str,
    out: Path | str,
    device: str = "cpu",
    chunk_size: int = 64,
    max_length: int | None = None,
    tool: str = "search",
    allow_random: bool = False,
    known: Mapping[str, KnownChain] | None = None,
) -> Path:
    """Writes `{id}.pdb` for each sample and `scores.parquet` (SCHEMA, sorted by id) into the folder `out`.

    A structure that is there already is kept if the same model made it from the same sequence, so that an interrupted
    call goes on where it stopped. Scores are read from the files, whoever made them. A sample that is too long, for
    `max_length` or for the memory, has a row that says so and no numbers; a warning counts them.

    Args:
        samples: (id, sequence) pairs; an id is also a file name.
        references: {name: Cα coordinates} of the chains that TM-scores are computed against; may be empty.
        model_folder: see `bases.folding.load_folding_model`, also for `device` and `allow_random`.
        max_length: longest chain that is folded, in residues.
        tool: see `structure.tm_score`.
        known: the same references, to be searched by Foldseek; None: by coarse superpositions.

    Returns:
        The path of the scores.

    Raises:
        InputError: before anything is folded, for ids, sequences or a model that will not do.
    """
    samples, out = sorted(samples), Path(out)
    check_samples(samples)
    folding.check_folder(Path(model_folder), allow_random)
    digest = folder_digest(Path(model_folder))
    todo = [
        (id, sequence) for id, sequence in samples if read_remark(out / f"{id}.pdb") != pdb_remark(digest, sequence)
    ]
    unfolded: dict[str, str] = {}
    if todo:
        model = cached_model(model_folder, digest, device, allow_random)
        todo.sort(key=lambda sample: (len(sample[1]), sample[0]))
        unfolded = write_structures(model, todo, digest, out, chunk_size, max_length)
    scored = {id: out / f"{id}.pdb" for id, sequence in samples if id not in unfolded and len(sequence) >= SHORTEST}
    near = promising_references(scored, known, MAX_ALIGNED) if known and scored else {}
    rows = [
        {"id": id, "length": len(sequence), "unfolded": unfolded[id]}
        if id in unfolded
        else score_structure(id, sequence, out / f"{id}.pdb", references, tool, near.get(id, ()))
        for id, sequence in samples
    ]
    with atomic_write(out / SCORES) as aside:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), aside, compression="zstd")
    return out / SCORES


def write_structures(
    model: EsmForProteinFolding,
    samples: Sequence[tuple[str, str]],
    digest: str,
    out: Path,
    chunk_size: int,
    max_length: int | None,
) -> dict[str, str]:
    """Writes the PDB files of samples, the shortest first; returns {id: why} of those that are too long."""
    unfolded = {}
    for id, sequence in samples:
        try:
            folding.check_sequence(f"samples:{id}", sequence, max_length)
            structure = folding.fold_sequence(model, sequence, chunk_size)
        except InputError as error:
            if error.reason not in UNFOLDED:
                raise
            unfolded[id] = error.detail
            if error.reason == "memory":  # all that follow are as long or longer
                max_length = len(sequence) - 1
            continue
        with atomic_write(out / f"{id}.pdb") as aside:
            aside.write_text(f"{pdb_remark(digest, sequence)}\n{folding.pdb_text(structure)}")
    if unfolded:
        id = min(unfolded)
        warnings.warn(f"{out}: {len(unfolded)} samples are not folded, such as {id}: {unfolded[id]}", stacklevel=3)
    return unfolded


def fold_predictions(
    domain: str,
    predictions: Mapping[int, Path | str],
    baselines: Path | str,
    references: Path | str | None,
    limit: int | None,
    model_folder: Path | str,
    out: Path | str,
    begun: Path | str,
    device: str = "cpu",
    max_length: int | None = None,
) -> None:
    """Folds what every system wrote; all rows in `{out}/scores.parquet`, with `seed` and `system`.

    Args:
        begun: folder of the structures until all are there, from which a job that was stopped goes on; it may be lost.
        predictions: {training seed: parquet file of `evaluation.predict`}.
        baselines: parquet file of `evaluation.baselines`; its systems have no seed.
        references: parquet file of records with a backbone, or None: no TM-score.
        limit: how many finished samples of each system are folded, the first by id; None: all.
        max_length: see `fold_samples`.
    """
    begun, rows, made = Path(begun), [], list[Path]()
    known = read_references(references) if references else {}
    chains = {id: chain.backbone[:, BACKBONE.index("CA")].astype(float) for id, chain in known.items()}
    searched = known if is_installed() else None
    sources: list[tuple[int | None, Path | str]] = [*predictions.items(), (None, baselines)]
    for seed, path in sources:
        for system, samples in finished_samples(domain, path).items():
            folder = structure_folder(begun, seed, system)
            scores = fold_samples(
                samples[:limit], chains, model_folder, folder, device, max_length=max_length, known=searched
            )
            found = pq.read_table(scores).to_pylist()
            rows += [{"seed": seed, "system": system} | row for row in found]
            made += [scores, *(folder / f"{row['id']}.pdb" for row in found if row["unfolded"] is None)]
    schema = pa.schema([("seed", pa.int64()), ("system", pa.string()), *SCHEMA])
    with atomic_write(out) as aside:
        for path in made:  # a job that was stopped may have begun what is asked for no longer
            place = aside / path.relative_to(begun)
            place.parent.mkdir(parents=True, exist_ok=True)
            copy2(path, place)
        aside.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), aside / SCORES, compression="zstd")
    rmtree(begun, ignore_errors=True)  # there is none without a sample


def finished_samples(domain: str, path: Path | str) -> dict[str, list[tuple[str, str]]]:
    """The (id, sequence) pairs of each system's samples that are whole chains, in id order."""
    task = cast(FoldedTaskModule, registry.load_module("domain", domain, "task"))
    systems: dict[str, list[tuple[str, str]]] = {}
    table = pq.read_table(path, columns=["split", "system", "id", "text"], filters=[("split", "==", "sample")])
    for row in sorted(table.to_pylist(), key=lambda row: (row["system"], row["id"])):
        if sequence := task.sample_residues(row["text"] or ""):
            systems.setdefault(row["system"], []).append((row["id"], sequence))
    return systems


def check_samples(samples: list[tuple[str, str]]) -> None:
    """Raises: InputError for ids that cannot name files and sequences that cannot be folded."""
    for (id, _), (following, _) in pairwise(samples):
        if id == following:
            raise InputError(f"samples:{id}", "duplicate id", expected="unique ids", reason="duplicate_id")
    for id, sequence in samples:
        if not re.fullmatch(r"\w[\w.-]*", id, re.ASCII):
            raise InputError("samples", "an id that cannot name a file", id, "letters, digits, `_ . -`", reason="id")
        folding.check_sequence(f"samples:{id}", sequence)


def folder_digest(folder: Path) -> str:
    """Stands for the model: its config and weights, by content."""
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    return " ".join(file_sha256(path) for path in files)


@lru_cache(maxsize=1)
def cached_model(folder: Path | str, digest: str, device: str, allow_random: bool) -> EsmForProteinFolding:
    """The model with this digest, read once for all systems."""
    return folding.load_folding_model(folder, device, allow_random)


def pdb_remark(digest: str, sequence: str) -> str:
    """First line of a PDB file: who made it from what (REMARK 6 is free text in the format)."""
    return f"REMARK   6 LORATORY {blake2b(f'{digest} {sequence}'.encode(), digest_size=16).hexdigest()}"


def read_remark(path: Path) -> str:
    if not path.is_file():
        return ""
    with open(path, errors="replace") as lines:
        return next(lines, "").rstrip("\n")


def score_structure(
    id: str, sequence: str, path: Path, references: Mapping[str, np.ndarray], tool: str, promising: Sequence[str]
) -> dict:
    row = {"id": id, "plddt": mean_plddt(path), "plddt_atoms": "ca", "length": len(sequence)}
    if references and len(sequence) >= SHORTEST:
        name, tm = nearest_reference(first_chain(path), references, tool, promising)
        row |= {"reference": name, "reference_length": len(references[name])}
        row |= {"search": "foldseek" if promising else "coarse"}
        row |= {"tm_longer": tm.norm_longer, "tm_query": tm.norm_model, "tm_reference": tm.norm_reference}
        row |= {"rmsd": tm.rmsd, "aligned_length": tm.aligned_length}
    return row
