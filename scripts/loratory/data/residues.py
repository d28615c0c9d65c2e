"""Names of residues: which letter stands for each, by the chemical component dictionary and by simulation packages."""

from collections.abc import Iterable, Mapping
from functools import cache

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
