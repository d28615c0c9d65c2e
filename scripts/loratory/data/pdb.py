"""Reading PDB files, column by column: atoms of the first model.

Source: https://www.wwpdb.org/documentation/file-format-content/format33/v3.3.html
"""

from pathlib import Path

from loratory.data.atoms import AtomRow, line_point, optional_number, warn_of_others
from loratory.data.origins import named_origin
from loratory.data.residues import SIMULATED_NAMES, known_parents


def read_pdb_model(path: Path | str, text: str) -> tuple[list[AtomRow], dict[str, str], str]:
    """Atoms of the first model, parents of modified residues, and origin."""
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
