"""Reading PDB and mmCIF files: the protein chains of the first model, their backbones, and whether they were measured.

Both formats are read here (`pdb`, `mmcif`), column by column, because the libraries refuse or lose what files in use
have: Biopython and biotite want columns that mmCIF leaves optional, Biopython drops a second chain of the same id, and
neither keeps modified residues in the chain by their parents. What residues are is in biotite's chemical component
dictionary.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from loratory.data.atoms import AtomRow
from loratory.data.cif import is_cif
from loratory.data.files import read_blocks
from loratory.data.mmcif import read_cif_model
from loratory.data.origins import has_residue_confidence
from loratory.data.pdb import read_pdb_model
from loratory.data.residues import residue_letter
from loratory.errors import InputError

BACKBONE = ("N", "CA", "C", "O")  # atoms of a residue, in the order of every (residues, 4, 3) array
REACH = 4.2  # Å from a Cα to the next: 3.8 when trans, and what crystallographers let pass


@dataclass(frozen=True)
class ModelChain:
    """A protein chain of a file.

    Attributes:
        id: as the file has it; a second chain of the same id is `A_2`.
        sequence: n letters (`residues.LETTERS`); a modified residue counts as its parent.
        backbone: (n, 4, 3) in Å; NaN where the file has no such atom.
        b_factors: (n,) of the Cα atoms; NaN where the file has none.
    """

    id: str
    sequence: str
    backbone: np.ndarray
    b_factors: np.ndarray


@dataclass(frozen=True)
class ProteinModel:
    """The chains of a file's first model, at least one, and where they come from: one of `origins.ORIGINS`."""

    origin: str
    chains: tuple[ModelChain, ...]


def read_protein(path: Path | str) -> ProteinModel:
    """The protein chains of the first model of a PDB or mmCIF file, plain or compressed.

    Its content says which of both it is. Of alternative locations, that with the highest occupancy at Cα counts, the
    first of equals. A residue counts if it has a Cα atom and a letter: as one of the twenty, by the parent that the
    file names (MODRES, `_pdbx_struct_mod_residue`), by the chemical component dictionary, or as a state that
    simulation packages name. HETATM residues must lie within REACH of a neighbour: others are ligands. In PDB files
    TER ends a chain. Several models bring a warning.

    Raises:
        InputError: missing, empty or malformed file, or no Cα atom.
    """
    text = b"".join(read_blocks(path)).decode("utf-8", "replace").replace("\r\n", "\n")
    atoms, parents, origin = (read_cif_model if is_cif(text) else read_pdb_model)(path, text)
    chains = tuple(protein_chains(path, atoms, parents))
    if not chains:
        raise InputError(path, "no Cα atom", expected="a PDB or mmCIF file of a protein", reason="no_atoms")
    return ProteinModel("predicted" if origin == "unknown" and has_residue_confidence(atoms) else origin, chains)


def unflatten_backbone(numbers: ArrayLike) -> np.ndarray:
    """A backbone as datasets store it, shape (residues, 4, 3) again."""
    return np.asarray(numbers, dtype=np.float32).reshape(-1, len(BACKBONE), 3)


def alpha_carbons(numbers: ArrayLike) -> np.ndarray:
    """The Cα atoms of such a backbone in Å, shape (residues, 3); NaN where unresolved."""
    return unflatten_backbone(numbers)[:, BACKBONE.index("CA")].astype(float)


def protein_chains(path: Path | str, atoms: Iterable[AtomRow], parents: Mapping[str, str]) -> Iterator[ModelChain]:
    """The chains with at least one residue, in file order."""
    chains: dict[tuple[str, ...], dict[str, list[AtomRow]]] = {}
    for atom in atoms:
        if atom.name in BACKBONE and residue_letter(atom.residue, atom.hetero, parents):
            chains.setdefault(atom.chain, {}).setdefault(atom.number, []).append(atom)
    copies: dict[str, int] = {}
    for (id, *_), numbers in chains.items():
        found = [located_atoms(path, residue) for residue in numbers.values()]
        residues = bound_residues([residue for residue in found if "CA" in residue])
        if residues:
            copies[id] = copies.get(id, 0) + 1
            yield model_chain(id if copies[id] == 1 else f"{id}_{copies[id]}", residues, parents)


def located_atoms(path: Path | str, residue: list[AtomRow]) -> dict[str, AtomRow]:
    """{name: atom} of a residue at the location that counts; of a point mutation one of its residues.

    Raises:
        InputError: an atom stands twice at one location.
    """
    check_distinct_atoms(path, residue)
    alphas = [atom for atom in residue if atom.name == "CA"]
    if not alphas:
        return {}
    alpha = max(alphas, key=lambda atom: atom.occupancy)
    own = [atom for atom in residue if atom.residue == alpha.residue]
    # where an atom does not stand at the location of its Cα, the likeliest of its own locations counts
    own.sort(key=lambda atom: (atom.place == alpha.place, atom.occupancy), reverse=True)
    return {atom.name: atom for atom in reversed(own)}


def check_distinct_atoms(path: Path | str, residue: list[AtomRow]) -> None:
    known = set()
    for atom in residue:
        key = atom.residue, atom.name, atom.place
        if key in known:
            what, expected = f"atom {atom.name} stands twice in residue {atom.residue} {atom.number}", "it once"
            fix = "give each chain its own id, or end each by TER"
            raise InputError(f"{path}:{atom.chain[0]}{atom.number}", what, None, expected, fix, "structure")
        known.add(key)


def bound_residues(residues: list[dict[str, AtomRow]]) -> list[dict[str, AtomRow]]:
    """Those that belong to the chain: all of ATOM records, and those of HETATM that a neighbour can be bound to."""
    alphas = np.array([residue["CA"].point for residue in residues]).reshape(-1, 3)
    near = np.linalg.norm(np.diff(alphas, axis=0), axis=1) <= REACH
    bound = np.concatenate([[False], near]) | np.concatenate([near, [False]])
    return [residue for residue, is_bound in zip(residues, bound) if is_bound or not residue["CA"].hetero]


def model_chain(id: str, residues: list[dict[str, AtomRow]], parents: Mapping[str, str]) -> ModelChain:
    missing = (float("nan"),) * 3
    points = [[residue[name].point if name in residue else missing for name in BACKBONE] for residue in residues]
    alphas = [residue["CA"] for residue in residues]
    letters = [residue_letter(atom.residue, atom.hetero, parents) or "" for atom in alphas]
    return ModelChain(id, "".join(letters), np.array(points), np.array([atom.b_factor for atom in alphas]))
