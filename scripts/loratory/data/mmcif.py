"""Reading mmCIF files of structures: atoms of the first model.

Source: https://mmcif.wwpdb.org/dictionaries/mmcif_pdbx_v50.dic; items that it leaves optional may be absent.
"""

from collections.abc import Mapping
from itertools import chain
from pathlib import Path

from loratory.data.atoms import AtomRow, line_point, optional_number, warn_of_others
from loratory.data.cif import Block, read_blocks_of_cif
from loratory.data.origins import ORIGINS, named_origin
from loratory.data.residues import known_parents
from loratory.errors import InputError


def read_cif_model(path: Path | str, text: str) -> tuple[list[AtomRow], dict[str, str], str]:
    """Atoms of the first model, parents of modified residues, and origin."""
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
    marks = chain.from_iterable(values for key, values in block.items.items() if key.startswith(named))
    is_model = any(key.startswith("_ma_") for key in block.items)
    return named_origin(" ".join(block.items.get("_exptl.method", [])), "\n".join([block.name, *marks]), is_model)
