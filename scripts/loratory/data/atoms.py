"""An atom as files of structures give it, and how their numbers are read."""

import re
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from loratory.errors import InputError


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
