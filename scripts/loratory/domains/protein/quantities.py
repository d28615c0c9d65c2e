"""What follows from a sequence exactly, by Biopython's ProtParam, and how it is written in a question or an answer.

The truth behind this project's interpretation of X-LoRA's protein tasks (Buehler and Buehler 2024, arXiv:2402.07148),
whose own labels, forces and energies of unfolding, are not public: `CalculateForce<SEQ> [0.262]` there is
`CalculateWeight<SEQ> [10.43]` here.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from Bio.SeqUtils.ProtParam import ProteinAnalysis

from loratory.data.alphabets import RESIDUES
from loratory.domains.protein.sources import Quantity
from loratory.domains.regression import linear_regression

DECIMALS = 2
NUMBERS = re.compile(r"\[(-?\d+(?:\.\d+)?(?:,-?\d+(?:\.\d+)?)*)\]")


@dataclass(frozen=True)
class Scale:
    """How a quantity is called in a question, its unit, and how far from the truth an answer may be to count."""

    title: str
    unit: str
    tolerance: float


SCALES: dict[Quantity, Scale] = {
    "weight": Scale("Weight", "kDa", 1.0),
    "pi": Scale("PI", "pH", 0.5),
    "gravy": Scale("Gravy", "hydropathy", 0.1),
    "instability": Scale("Instability", "index", 5.0),
}


def compute_quantities(sequence: str, names: Sequence[Quantity]) -> list[float]:
    """Average weight in kDa, isoelectric point, mean hydropathy (Kyte and Doolittle), instability index (Guruprasad).

    Args:
        sequence: of the twenty residues.
    """
    protein = ProteinAnalysis(sequence)
    values = {
        "weight": lambda: protein.molecular_weight() / 1000,
        "pi": protein.isoelectric_point,
        "gravy": protein.gravy,
        "instability": protein.instability_index,
    }
    return [float(values[name]()) for name in names]


def quantity_title(names: Sequence[Quantity]) -> str:
    return "".join(SCALES[name].title for name in names)


def write_numbers(values: Sequence[float]) -> str:
    return ",".join(f"{value:z.{DECIMALS}f}" for value in values)


def read_numbers(text: str, n: int) -> list[float] | None:
    """The `n` numbers of `[1.5,-2]`; None if it is anything else."""
    match = NUMBERS.fullmatch(text.strip())
    values = [float(number) for number in match[1].split(",")] if match else []
    return values if len(values) == n else None


def is_exact(value: float, truth: float) -> bool:
    """Whether a value is the truth as it would be written."""
    return write_numbers([value]) == write_numbers([truth])


def train_means(train: np.ndarray, sequences: Sequence[str]) -> np.ndarray:
    """(m, q) the mean of train's values `(n, q)` for each sequence."""
    return np.repeat(train.mean(0, keepdims=True), len(sequences), 0)


def composition(sequence: str) -> np.ndarray:
    """(40,) how often each residue occurs, and its share: all of a sequence but the order."""
    counts = np.array([sequence.count(residue) for residue in RESIDUES], float)
    return np.r_[counts, counts / max(1, len(sequence))]


def composition_regression(known: Sequence[str], train: np.ndarray, sequences: Sequence[str]) -> np.ndarray:
    """(m, q) what a linear regression on the `composition` of known sequences with values `(n, q)` says of others."""
    return linear_regression(np.array([*map(composition, known)]), train, np.array([*map(composition, sequences)]))


def permuted_errors(values: Mapping[int, float], truths: Mapping[int, float]) -> dict[int, float]:
    """{row: mean distance of its value from the truths of all rows}: what is expected if they are dealt out anew."""
    dealt = np.array([*truths.values()])
    return {row: float(np.abs(value - dealt).mean()) for row, value in values.items()}
