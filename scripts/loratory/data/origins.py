"""Whether a structure was measured or predicted, by what its file says and by its B-factors."""

import re

from loratory.data.atoms import AtomRow

ORIGINS = ("experiment", "predicted", "simulated", "unknown")

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
