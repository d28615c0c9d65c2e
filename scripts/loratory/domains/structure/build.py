"""Structure files → chains without a break, with the backbone of the twenty standard residues, grouped by homology.

A modified residue counts as its parent. A residue that is absent from a file leaves a gap. Where the Cα atoms on both
sides are farther apart than the residues between them can reach, the chain is cut: its longest piece is the record,
the others are rejected as `chain_break`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from loratory.data.files import read_blocks, read_lines
from loratory.data.json_lines import parse_json
from loratory.data.ledger import Ledger
from loratory.data.origins import ORIGINS
from loratory.data.records import Records
from loratory.data.sampling import file_and_record
from loratory.data.structures import BACKBONE, REACH, read_protein, unflatten_backbone
from loratory.domains.contract import random_split
from loratory.domains.protein import build as protein
from loratory.domains.structure.sources import Dataset, Files
from loratory.errors import InputError, one_error

DISTINCT = "sequence"
COLUMNS = {
    "sequence": "string",
    "length": "int32",
    "backbone": pa.list_(pa.float32()),  # length × 4 × 3, flat: N, CA, C, O of each residue in Å; NaN: unresolved
    "origin": "string",  # one of ORIGINS
}

group, find_leaks, proof = protein.group, protein.find_leaks, protein.proof
count_overlaps = protein.count_overlaps
split = partial(random_split, "structure")


@dataclass(frozen=True)
class Chain:
    """A chain as a file gives it: `atoms` (residues, 4, 3) in Å, NaN where unresolved."""

    where: str
    id: str
    sequence: str
    atoms: np.ndarray
    origin: str


def read(files: Files, dataset: Dataset, ledger: Ledger) -> Iterator[dict]:
    """Yields records whose backbones are within the policy, as they are read.

    Raises:
        InputError: a location is missing; with `on_error: fail` also for the first malformed file or record.
    """
    for location in files.chains:
        if not Path(location).exists():
            raise InputError(location, "no such file or folder", expected="structures", reason="missing")
    for path in files.file_paths():
        for chain in raw_chains(path, files.origin, ledger):
            if record := chain_record(chain, dataset, ledger):
                yield record


def chain_record(chain: Chain, dataset: Dataset, ledger: Ledger) -> dict | None:
    """The record of a chain, or None if it went to the ledger."""
    chain = longest_piece(chain, ledger)
    sequence = protein.accepted_sequence(chain.where, chain.id, chain.sequence.encode(), dataset, ledger)
    if sequence is None:
        return None
    resolved = np.isfinite(chain.atoms).all(axis=(1, 2)).mean()
    if resolved < dataset.resolved:
        detail = f"{resolved:.0%} of {len(sequence)} residues, expected at least {dataset.resolved:.0%}"
        ledger.drop_record(*file_and_record(chain.where), chain.id, "unresolved", detail)
        return None
    return {
        "id": chain.id,
        "sequence": sequence,
        "length": len(sequence),
        "backbone": chain.atoms.astype(np.float32).ravel(),
        "origin": chain.origin,
        "where": chain.where,
    }


def longest_piece(chain: Chain, ledger: Ledger) -> Chain:
    """The chain cut to the longest piece between two breaks; the other pieces are noted, each as a record."""
    bounds = [0, *chain_breaks(chain.atoms), len(chain.atoms)]
    pieces = list(pairwise(bounds))
    start, stop = max(pieces, key=lambda piece: piece[1] - piece[0])
    for first, end in pieces:
        if (first, end) != (start, stop):
            ledger.count_record()
            detail = f"residues {first + 1} to {end}, beyond a gap; kept: {start + 1} to {stop}"
            ledger.drop_record(*file_and_record(chain.where), chain.id, "chain_break", detail)
    return replace(chain, sequence=chain.sequence[start:stop], atoms=chain.atoms[start:stop])


def chain_breaks(atoms: np.ndarray) -> list[int]:
    """The residues before which a chain is broken, counted from 0."""
    alpha = atoms[:, BACKBONE.index("CA")]
    known = np.flatnonzero(np.isfinite(alpha).all(axis=1))
    distance = np.linalg.norm(np.diff(alpha[known], axis=0), axis=1)
    return (known[:-1][distance > REACH * np.diff(known)] + 1).tolist()


def raw_chains(path: str, origin: str | None, ledger: Ledger) -> Iterator[Chain]:
    """Every chain of a file in any of the formats, which its first letter tells apart.

    Args:
        origin: of chains whose file does not say it.
    """
    try:
        start = next(read_blocks(path), b"").lstrip()[:1]
        read_format = {b"[": json_list_chains, b"{": jsonl_chains}.get(start, model_chains)
        yield from read_format(path, origin, ledger)
    except InputError as error:  # of the whole file; a record's own went to the ledger where it stands
        ledger.count_record()
        whole = error.where == path
        ledger.note_error(InputError(f"{path}:1", error.detail, reason=error.reason) if whole else error)


def model_chains(path: str, origin: str | None, ledger: Ledger) -> Iterator[Chain]:
    """The chains of a PDB or mmCIF file."""
    name = Path(path).name.removesuffix(".gz")
    name = name.rpartition(".")[0] or name
    model = read_protein(path)
    known = origin if origin and model.origin == "unknown" else model.origin
    for chain in model.chains:
        ledger.count_record()
        yield Chain(f"{path}:{chain.id}", f"{name}.{chain.id}".rstrip(". "), chain.sequence, chain.backbone, known)


def jsonl_chains(path: str, origin: str | None, ledger: Ledger) -> Iterator[Chain]:
    """The records of `chain_set.jsonl` (Ingraham et al. 2019, https://github.com/jingraham/neurips19-graph-protein-design)."""
    for number, line in read_lines(path):
        if line.strip():
            yield from parse_chain(f"{path}:{number}", line, origin, ledger)


def json_list_chains(path: str, origin: str | None, ledger: Ledger) -> Iterator[Chain]:
    """The records of one JSON list, such as TS50's."""
    text = "\n".join(line for _, line in read_lines(path))
    for number, record in enumerate(parse_json(f"{path}:1", text), start=1):
        yield from parse_chain(f"{path}:{number}", record, origin, ledger)


def parse_chain(where: str, record: Any, origin: str | None, ledger: Ledger) -> Iterator[Chain]:
    """The chain of a JSON record; none if it is malformed."""
    ledger.count_record()
    try:
        record = parse_json(where, record) if isinstance(record, str) else record
        yield json_chain(where, record, origin or "experiment")  # as all chains of both data sets are
    except InputError as error:
        ledger.note_error(error)


def json_chain(where: str, record: Any, origin: str) -> Chain:
    """A chain from `name`, `seq` and `coords`: {N, CA, C, O: a point a residue}, or four points a residue.

    Args:
        origin: of a record that does not say it.

    Raises:
        InputError: a key is missing, or sequence and coordinates do not fit.
    """
    keys = ("name", "seq", "coords")
    missing = [key for key in keys if not isinstance(record, dict) or key not in record]
    if missing:
        raise InputError(where, "keys are missing", ", ".join(missing), ", ".join(keys), reason="keys")
    for key in keys[:2]:
        if not isinstance(record[key], str) or not record[key].strip():
            raise InputError(where, f"`{key}` is no text", record[key], "letters", reason="keys")
    origin, coords = record.get("origin", origin), record["coords"]
    if origin not in ORIGINS:
        raise InputError(where, "unknown origin", origin, " or ".join(ORIGINS), reason="keys")
    what, expected = "coordinates that cannot be read", "N, CA, C and O of every residue, numbers in Å"
    with one_error(where, what, expected, reason="coordinates", of=(KeyError, OverflowError, TypeError, ValueError)):
        points = [coords[atom] for atom in BACKBONE] if isinstance(coords, dict) else coords
        atoms = np.array(points, dtype=float)  # null becomes NaN
    atoms = atoms.swapaxes(0, 1) if isinstance(coords, dict) else atoms
    sequence = record["seq"].removesuffix("*")
    if "*" in sequence:  # a cut before the check of letters would make it an end again
        fix = "remove it; only one `*` at the very end is understood"
        raise InputError(where, "`*` within the sequence", None, "one-letter residue codes", fix, "residue")
    if atoms.shape != (len(sequence), len(BACKBONE), 3):
        expected = f"({len(sequence)}, {len(BACKBONE)}, 3) for a sequence of {len(sequence)}"
        raise InputError(where, "sequence and coordinates do not fit", atoms.shape, expected, reason="coordinates")
    if np.isinf(atoms).any():
        raise InputError(
            where, "an infinite coordinate", expected="numbers, or NaN where unresolved", reason="coordinates"
        )
    return Chain(where, record["name"], sequence, atoms, origin)


def summary(records: Records) -> dict:
    lengths = sorted(record["length"] for record in records)
    unresolved = sum(
        int(np.isnan(unflatten_backbone(record["backbone"])).any(axis=(1, 2)).sum()) for record in records
    )
    return {
        "residues": sum(lengths),
        "unresolved_residues": unresolved,
        "length": {"min": lengths[0], "median": lengths[len(lengths) // 2], "max": lengths[-1]},
        "origins": {origin: sum(record["origin"] == origin for record in records) for origin in ORIGINS},
    }
