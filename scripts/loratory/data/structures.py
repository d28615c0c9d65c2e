"""Reading PDB and mmCIF files: the protein residues of the first model, and their backbone."""

import io
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from loratory.data.files import open_bytes
from loratory.errors import InputError

if TYPE_CHECKING:
    from Bio.PDB.Atom import Atom
    from Bio.PDB.Residue import Residue

BACKBONE = ("N", "CA", "C", "O")  # atoms of a residue, in the order of every (residues, 4, 3) array


def read_residues(path: Path | str) -> "list[Residue]":
    """The residues that count of the first model of a PDB or mmCIF file, plain or gzipped, in file order.

    Its content says which of both it is. HETATM other than MSE and alternative locations other than A are
    skipped; several models bring a warning.

    Returns:
        Residues of Biopython, each of one of the 20 kinds (or MSE) and with a Cα atom; see `residue_letter` and
        `residue_atom`.

    Raises:
        InputError: missing, empty or malformed file, or no Cα atom.
    """
    from Bio.PDB import MMCIFParser, PDBParser
    from Bio.PDB.PDBExceptions import PDBConstructionException

    with open_bytes(path) as stream:
        text = stream.read().decode("utf-8", "replace")
    cif = text.lstrip().startswith("data_")
    parser = MMCIFParser(QUIET=True) if cif else PDBParser(QUIET=True, PERMISSIVE=False)
    try:
        models = parser.get_structure("", io.StringIO(text)).child_list
    except (PDBConstructionException, ValueError, KeyError) as error:
        what = f"malformed {'mmCIF' if cif else 'PDB'} file: {error}"
        raise InputError(path, what, fix="fetch or write it again", reason="structure") from error
    if len(models) > 1:
        warnings.warn(f"{path}: {len(models)} models; the first is used", stacklevel=2)
    # unpacked: both residues of a point mutation, of which the second has its Cα at location B
    found = [residue for chain in (models[0] if models else []) for residue in chain.get_unpacked_list()]
    found = [residue for residue in found if residue_letter(residue) and residue_atom(residue, "CA")]
    if not found:
        raise InputError(path, "no Cα atom", expected="a PDB or mmCIF file of a protein", reason="no_atoms")
    return found


def residue_letter(residue: "Residue") -> str | None:
    """The one-letter code of a standard residue or MSE, else None."""
    from Bio.Data.PDBData import protein_letters_3to1

    name = residue.resname.strip().upper()
    if name == "MSE":
        return "M"
    return protein_letters_3to1.get(name) if residue.id[0] == " " else None


def residue_atom(residue: "Residue", name: str) -> "Atom | None":
    """The atom at its first location, or None."""
    return next((a for a in residue.get_unpacked_list() if a.name == name and a.altloc in " A"), None)


def chain_id(residue: "Residue") -> str:
    return residue.get_full_id()[2]


def backbone_coordinates(residues: "Iterable[Residue]") -> np.ndarray:
    """Coordinates in Å of the atoms BACKBONE, shape (residues, 4, 3); NaN where the file has no such atom."""
    missing = np.full(3, np.nan)
    found = [[residue_atom(residue, name) for name in BACKBONE] for residue in residues]
    return np.array([[missing if a is None else a.coord for a in atoms] for atoms in found], float)


def unflatten_backbone(numbers: ArrayLike) -> np.ndarray:
    """A backbone as datasets store it, shape (residues, 4, 3) again."""
    return np.asarray(numbers, dtype=np.float32).reshape(-1, len(BACKBONE), 3)


def alpha_carbons(numbers: ArrayLike) -> np.ndarray:
    """The Cα atoms of such a backbone in Å, shape (residues, 3); NaN where unresolved."""
    return unflatten_backbone(numbers)[:, BACKBONE.index("CA")].astype(float)
