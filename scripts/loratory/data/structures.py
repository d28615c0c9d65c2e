"""Reading PDB and mmCIF files: the protein chains of the first model, their backbones, and whether they were measured.

Both formats are read here, column by column, because the libraries refuse or lose what files in use have: Biopython
and biotite want columns that mmCIF leaves optional, Biopython drops a second chain of the same id, and neither keeps
modified residues in the chain by their parents. What residues are is in biotite's chemical component dictionary.
"""

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import chain as concatenate
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from loratory.data.cif import Block, is_cif, read_blocks_of_cif
from loratory.data.files import read_blocks
from loratory.errors import InputError

BACKBONE = ("N", "CA", "C", "O")  # atoms of a residue, in the order of every (residues, 4, 3) array
REACH = 4.2  # Å from a Cα to the next: 3.8 when trans, and what crystallographers let pass
ORIGINS = ("experiment", "predicted", "simulated", "unknown")
LETTERS = "ACDEFGHIKLMNPQRSTVWYUO"  # of residues that have one; U and O are selenocysteine and pyrrolysine

# Names of simulation packages (CHARMM, AMBER, GROMACS) for states of protonation and bonds.
STATES = {
    "H": "HSD HSE HSP HID HIE HIP HISD HISE HISP HISA HISB HISH HIS1 HIS2",
    "C": "CYX CYM CYN CYSH CYS1 CYS2",
    "D": "ASH ASPH ASPP",
    "E": "GLH GLUH GLUP",
    "K": "LYN LSN LYSH",
    "R": "ARN ARGN",
    "Y": "TYM",
}
SIMULATED_NAMES = {name: letter for letter, names in STATES.items() for name in names.split()}

# Methods of the dictionary's `_exptl.method` and of EXPDTA that measure, by a word of each.
MEASURED = re.compile(
    r"DIFFRACTION|CRYSTALLOGRAPHY|NMR|MICROSCOPY|SCATTERING|FLUORESCENCE|INFRARED|\bEPR\b", re.IGNORECASE
)
MODELLED = re.compile(r"THEORETICAL|IN SILICO|PREDICT|COMPUTATION", re.IGNORECASE)
PREDICTORS = re.compile(
    r"ALPHA-?FOLD|COLABFOLD|ESM-?FOLD|OPENFOLD|OMEGAFOLD|ROSETTAFOLD|HELIXFOLD|UNIFOLD|BOLTZ|CHAI-1"
    r"|PROTENIX|SWISS-?MODEL|MODELLER|I-TASSER|MODELARCHIVE|LORATORY|\bAF-[A-Z0-9]+-F\d",
    re.IGNORECASE,
)


class AtomRow(NamedTuple):
    """An atom of the first model.

    `number` is the residue's with its insertion code, `place` the alternative location, `point` in Å; `b_factor` is
    NaN where the file has none. Atoms of one chain share `chain`, whose first text is its id.
    """

    chain: tuple[str, ...]
    number: str
    residue: str
    hetero: bool
    name: str
    place: str
    occupancy: float
    b_factor: float
    point: tuple[float, float, float]


@dataclass(frozen=True)
class ModelChain:
    """A protein chain of a file.

    Attributes:
        id: as the file has it; a second chain of the same id is `A_2`.
        sequence: n letters (LETTERS); a modified residue counts as its parent.
        backbone: (n, 4, 3) in Å; NaN where the file has no such atom.
        b_factors: (n,) of the Cα atoms; NaN where the file has none.
    """

    id: str
    sequence: str
    backbone: np.ndarray
    b_factors: np.ndarray


@dataclass(frozen=True)
class ProteinModel:
    """The chains of a file's first model, at least one, and where they come from: one of ORIGINS."""

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


# chains and residues


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


def residue_letter(name: str, hetero: bool, parents: Mapping[str, str]) -> str | None:
    """The letter of a residue's parent, None for what is no residue or has several parents.

    Args:
        name: of the residue, in capitals.
        hetero: from a HETATM record: the dictionary goes before the names of simulation packages, some of which are
            names of ligands and of other residues there.
        parents: {name: parent's name}, as the file says.
    """
    name = parents.get(name, name)
    simulated = SIMULATED_NAMES.get(name)
    return (dictionary_letter(name) or simulated) if hetero else (simulated or dictionary_letter(name))


@cache
def dictionary_letter(name: str) -> str | None:
    """By the chemical component dictionary; in it MSE is M, SEP S, SEC U, PYL O, and so on."""
    from biotite.structure.info import link_type, one_letter_code

    letter = one_letter_code(name)
    is_residue = "PEPTIDE" in (link_type(name) or "").upper()
    return letter if is_residue and letter and letter in LETTERS and len(letter) == 1 else None


def known_parents(names: Iterable[tuple[str, str]]) -> dict[str, str]:
    """{modified residue: parent} of what a file says, without those whose parent is no residue of its own."""
    pairs = [(name.strip().upper(), parent.strip().upper()) for name, parent in names]
    return {name: parent for name, parent in pairs if name != parent and dictionary_letter(parent)}


# PDB


def read_pdb_model(path: Path | str, text: str) -> tuple[list[AtomRow], dict[str, str], str]:
    """Atoms of the first model, parents of modified residues, and origin.

    Source: https://www.wwpdb.org/documentation/file-format-content/format33/v3.3.html
    """
    lines = text.split("\n")
    models: list[list[AtomRow]] = [[]]
    chains = 0
    for number, line in enumerate(lines, start=1):
        record = line[:6].rstrip()
        if record in ("MODEL", "ENDMDL", "END") and models[-1]:
            models.append([])
        elif record == "TER":
            chains += 1
        elif record in ("ATOM", "HETATM"):
            models[-1].append(pdb_atom(f"{path}:{number}", line, str(chains)))
    warn_of_others(path, sum(map(bool, models)), "models")
    parents = known_parents((line[12:15], line[24:27]) for line in lines if line.startswith("MODRES"))
    return models[0], parents, pdb_origin(lines)


def pdb_atom(where: str, line: str, segment: str) -> AtomRow:
    """The atom of an ATOM or HETATM line; `segment` tells chains apart that TER parts."""
    id, residue = line[21:22].strip(), line[17:21].strip().upper()
    if len(line[17:21].rstrip()) == 4 and residue not in SIMULATED_NAMES:  # the fourth letter is of a chain's long id
        id, residue = line[20:22].strip(), line[17:20].strip().upper()
    last = line[46:54] if len(line) >= 54 else ""  # a line that was cut would give another number
    point = line_point(where, [line[30:38], line[38:46], last], "PDB")
    return AtomRow(
        (id, segment, "" if id else line[72:76].strip()),
        line[22:27].strip(),
        residue,
        line.startswith("HETATM"),
        line[12:16].strip().upper(),
        line[16:17].strip(),
        optional_number(where, "occupancy", line[54:60], 1.0),
        optional_number(where, "B-factor", line[60:66], float("nan")),
        point,
    )


def pdb_origin(lines: list[str]) -> str:
    """By EXPDTA, else by the programs that a title or remark names and by PARENT, which only predictions have."""
    methods = " ".join(line[10:] for line in lines if line.startswith("EXPDTA"))
    other = ("HEADER", "TITLE", "COMPND", "SOURCE", "KEYWDS", "AUTHOR", "REMARK", "PARENT", "METHOD", "DBREF")
    remarks = "\n".join(line for line in lines if line.startswith(other))
    return named_origin(methods, remarks, any(line.startswith("PARENT") for line in lines))


# mmCIF


def read_cif_model(path: Path | str, text: str) -> tuple[list[AtomRow], dict[str, str], str]:
    """Atoms of the first model, parents of modified residues, and origin.

    Source: https://mmcif.wwpdb.org/dictionaries/mmcif_pdbx_v50.dic; items that it leaves optional may be absent.
    """
    blocks = [block for block in read_blocks_of_cif(path, text) if block.category("_atom_site")]
    warn_of_others(path, len(blocks), "data blocks with atoms")
    if not blocks:
        return [], {}, ORIGINS[-1]
    modified = blocks[0].category("_pdbx_struct_mod_residue")
    names = first_known(modified, "label_comp_id", "auth_comp_id")
    parents = known_parents(zip(names, modified.get("parent_comp_id", [])))
    return cif_atoms(path, blocks[0].category("_atom_site")), parents, cif_origin(blocks[0])


def cif_atoms(path: Path | str, columns: Mapping[str, list[str]]) -> list[AtomRow]:
    """The atoms of the first model.

    Raises:
        InputError: no coordinates, or no names of atoms or residues; else with the row of `_atom_site`.
    """
    lengths = {len(values) for values in columns.values()}
    if len(lengths) > 1:
        what, expected = "malformed mmCIF file: columns of `_atom_site` differ in length", "one value a row"
        raise InputError(path, what, sorted(lengths), expected, "fetch or write it again", "structure")
    rows = lengths.pop()
    blank = [""] * rows
    chains, numbers, residues, names = (
        first_known(columns, f"auth_{item}", f"label_{item}") for item in ("asym_id", "seq_id", "comp_id", "atom_id")
    )
    for item, values in {"label_comp_id": residues, "label_atom_id": names}.items():
        require_column(path, item, values)
    axes = [require_column(path, f"cartn_{axis}", columns.get(f"cartn_{axis}", [])) for axis in "xyz"]
    models = columns.get("pdbx_pdb_model_num", blank)
    optional = ("group_pdb", "pdbx_pdb_ins_code", "label_alt_id", "occupancy", "b_iso_or_equiv")
    hetero, insertions, places, occupancies, b_factors = (columns.get(item, blank) for item in optional)
    warn_of_others(path, len(set(models)), "models")
    chains, numbers = chains or blank, numbers or blank
    return [
        AtomRow(
            (chains[row],),
            numbers[row] + insertions[row],
            residues[row].upper(),
            hetero[row].upper() == "HETATM",
            names[row].upper(),
            places[row],
            optional_number(where, "occupancy", occupancies[row], 1.0),
            optional_number(where, "B-factor", b_factors[row], float("nan")),
            line_point(where, [axis[row] for axis in axes], "mmCIF"),
        )
        for row, where in ((row, f"{path}:{row + 1}") for row in range(rows) if models[row] == models[0])
    ]


def first_known(columns: Mapping[str, list[str]], *names: str) -> list[str]:
    """Of each row, the value of the first of these columns that has one; [] if there is none of them."""
    return [next(filter(None, values), "") for values in zip(*(columns[name] for name in names if name in columns))]


def require_column(path: Path | str, item: str, values: list[str]) -> list[str]:
    if not any(values):
        what, expected = f"malformed mmCIF file: no values of `_atom_site.{item}`", "names and coordinates of atoms"
        raise InputError(path, what, None, expected, "fetch or write it again", "structure")
    return values


def cif_origin(block: Block) -> str:
    """By `_exptl.method` and ModelCIF's categories, else by what title, databases and software are named."""
    named = ("_entry.id", "_struct.title", "_struct.pdbx_descriptor", "_database_2.", "_software.", "_citation.title")
    marks = concatenate.from_iterable(values for key, values in block.items.items() if key.startswith(named))
    is_model = any(key.startswith("_ma_") for key in block.items)
    return named_origin(" ".join(block.items.get("_exptl.method", [])), "\n".join([block.name, *marks]), is_model)


# both


def has_residue_confidence(atoms: list[AtomRow]) -> bool:
    """Whether B-factors are as predictors write pLDDT: one for all atoms of a residue, 0 to 100, others elsewhere.

    Experiments refine them atom by atom; a refinement as coarse as one for each residue is rare, of low resolution.
    """
    residues: dict[tuple, list[float]] = {}
    for atom in atoms:
        if not atom.hetero:
            residues.setdefault((atom.chain, atom.number, atom.residue), []).append(atom.b_factor)
    found = [values for values in residues.values() if len(values) > 1]  # a lone Cα says nothing
    levels = {value for values in found for value in values}
    by_residue = all(len(set(values)) == 1 for values in found)
    return by_residue and len(levels) > 1 and all(0 <= level <= 100 for level in levels)


def named_origin(methods: str, remarks: str, is_model: bool) -> str:
    """One of ORIGINS: what a file says of its methods goes before the names of programs in its remarks."""
    if is_model or MODELLED.search(methods):
        return "predicted"
    if MEASURED.search(methods):
        return "experiment"
    return "predicted" if PREDICTORS.search(remarks) else "unknown"


def line_point(where: str, values: list[str], kind: str) -> tuple[float, float, float]:
    """Three coordinates in Å; NaN, if written so, is a coordinate that is not known."""
    x, y, z = (number_or_none(value) for value in values)
    if x is None or y is None or z is None or np.isinf([x, y, z]).any():
        what, value = f"malformed {kind} file: a coordinate is no number", " ".join(values)
        raise InputError(where, what, value, "three numbers in Å", "fetch or write it again", "structure")
    return x, y, z


def optional_number(where: str, what: str, value: str, default: float) -> float:
    """A number, or the default where it is left out or, as `******`, did not fit into its columns."""
    if not value.strip(" *"):
        return default
    number = number_or_none(value)
    if number is None:
        fix = "write the number, or leave it blank"
        raise InputError(where, f"{what} is no number", value, "a number", fix, "structure")
    return number


def number_or_none(value: str) -> float | None:
    """A number, of which mmCIF may write the uncertainty behind it in brackets."""
    bare = re.sub(r"\(\d+\)$", "", value.strip())
    try:
        return None if "_" in bare else float(bare)
    except ValueError:
        return None


def warn_of_others(path: Path | str, count: int, what: str) -> None:
    if count > 1:
        warnings.warn(f"{path}: {count} {what}; the first is used", stacklevel=4)
