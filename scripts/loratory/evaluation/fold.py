"""Folding samples and scoring the structures: one PDB file for each sample, one row for each sample."""

import re
from collections.abc import Sequence
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from loratory import registry
from loratory.bases import folding
from loratory.data.files import sha256, whole
from loratory.errors import InputError
from loratory.evaluation.structure import SHORTEST, first_chain, mean_plddt, nearest_reference, read_references

SCORES = "scores.parquet"
SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "plddt": pa.float64(),  # mean over residues, 0–100
        "plddt_atoms": pa.string(),  # which atoms `plddt` is read from: always "ca"
        "tm": pa.float64(),  # to the nearest reference; null without references or below 20 residues
        "tm_reference": pa.string(),
        "tm_normalised_by": pa.string(),  # always "reference"
        "rmsd": pa.float64(),  # Å, over `aligned_length` Cα pairs
        "aligned_length": pa.int64(),
        "length": pa.int64(),
    }
)


def fold_samples(
    samples: Sequence[tuple[str, str]],
    references,
    model_folder,
    out,
    device: str = "cpu",
    chunk_size: int = 64,
    max_length: int | None = None,
    tool: str = "search",
    allow_random: bool = False,
) -> Path:
    """Writes `{id}.pdb` for each sample and `scores.parquet` (SCHEMA, sorted by id) into the folder `out`.

    A structure that is there already is kept if the same model made it from the same sequence, so that an interrupted
    call goes on where it stopped. Scores are read from the files, whoever made them.

    Args:
        samples: (id, sequence) pairs; an id is also a file name.
        references: folder of PDB or mmCIF files that TM-scores are computed against, or None.
        model_folder: see `bases.folding.load_folding_model`, also for `device` and `allow_random`.
        max_length: longest chain that fits into memory, in residues.
        tool: see `structure.tm_score`.

    Returns:
        The path of the scores.

    Raises:
        InputError: before anything is folded, for ids, sequences, references or a model that will not do.
    """
    samples, out = sorted(samples), Path(out)
    check_samples(samples, max_length)
    chains = read_references(references) if references else {}
    folding.check_folder(Path(model_folder), allow_random)
    digest = folder_digest(Path(model_folder))
    todo = [(id, sequence) for id, sequence in samples if made_by(out / f"{id}.pdb") != mark(digest, sequence)]
    if todo:
        model = folding.load_folding_model(model_folder, device, allow_random)
        for id, sequence in sorted(todo, key=lambda sample: (len(sample[1]), sample[0])):
            text = folding.pdb_text(folding.fold(model, sequence, chunk_size))
            with whole(out / f"{id}.pdb") as aside:
                aside.write_text(f"{mark(digest, sequence)}\n{text}")
    rows = [score(id, sequence, out / f"{id}.pdb", chains, tool) for id, sequence in samples]
    with whole(out / SCORES) as aside:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), aside, compression="zstd")
    return out / SCORES


def fold_predictions(domain, predictions, references, model_folder, out, device: str = "cpu") -> None:
    """Folds every chain that any system finished; all rows in `{out}/scores.parquet`, with `seed` and `system`.

    Args:
        predictions: (training seed, parquet file of `evaluation.predict`) pairs.
    """
    out, rows, chain = Path(out), [], registry.load("domain", domain, "task").chain
    for seed, path in predictions:
        table = pq.read_table(path, columns=["split", "system", "id", "text"], filters=[("split", "==", "sample")])
        systems: dict[str, list[tuple[str, str]]] = {}
        for row in table.to_pylist():
            if sequence := chain(row["text"] or ""):
                systems.setdefault(row["system"], []).append((row["id"], sequence))
        for system, samples in sorted(systems.items()):
            folder = out / f"seed{seed}" / re.sub(r"\W+", "_", system)
            scores = pq.read_table(fold_samples(samples, references, model_folder, folder, device)).to_pylist()
            rows += [{"seed": seed, "system": system} | row for row in scores]
    schema = pa.schema([("seed", pa.int64()), ("system", pa.string()), *SCHEMA])
    with whole(out / SCORES) as aside:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), aside, compression="zstd")


def check_samples(samples: list[tuple[str, str]], max_length: int | None):
    """Raises: InputError for ids that cannot name files and sequences that cannot be folded."""
    for (id, _), (following, _) in pairwise(samples):
        if id == following:
            raise InputError(f"samples:{id}", "duplicate id", expected="unique ids", reason="duplicate_id")
    for id, sequence in samples:
        if not re.fullmatch(r"\w[\w.-]*", id, re.ASCII):
            raise InputError("samples", "an id that cannot name a file", id, "letters, digits, `_ . -`", reason="id")
        folding.check_sequence(f"samples:{id}", sequence, max_length)


def folder_digest(folder: Path) -> str:
    """Stands for the model: its config and weights, by content."""
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    return " ".join(sha256(path) for path in files)


def mark(digest: str, sequence: str) -> str:
    """First line of a PDB file: who made it from what (REMARK 6 is free text in the format)."""
    return f"REMARK   6 LORATORY {blake2b(f'{digest} {sequence}'.encode(), digest_size=16).hexdigest()}"


def made_by(path: Path) -> str:
    if not path.is_file():
        return ""
    with open(path, errors="replace") as lines:
        return next(lines, "").rstrip("\n")


def score(id: str, sequence: str, path: Path, references: dict, tool: str) -> dict:
    row = {"id": id, "plddt": mean_plddt(path), "plddt_atoms": "ca", "length": len(sequence)}
    row["tm_normalised_by"] = "reference"
    if references and len(sequence) >= SHORTEST:
        name, tm = nearest_reference(first_chain(path), references, tool)
        row |= {"tm": tm.norm_reference, "tm_reference": name, "rmsd": tm.rmsd, "aligned_length": tm.aligned_length}
    return row
