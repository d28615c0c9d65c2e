"""What no value of a config may be, whichever key it stands under."""

import math
from typing import Any

from loratory.errors import InputError
from loratory.problems import problem_location

SIZE_LIMIT = 2**31  # of every integer, seeds too: some libraries take none that needs more than 32 bits
UNLIMITED = "parameters"  # a base may have more numbers than that


def check_values(value: Any, where: str, path: tuple[str | int, ...] = ()) -> None:
    """Whether a config has texts as keys and, as values, what JSON has besides: finite numbers of a sane size.

    Args:
        where: the file. path: keys and places in lists that lead to `value`.

    Raises:
        InputError: the first key or value that is something else.
    """
    at = problem_location(where, list(path))
    if isinstance(value, dict):
        for key, inside in value.items():
            if not isinstance(key, str):
                raise InputError(at, "a key that is no text", str(key), "a name", "write it in quotes")
            check_values(inside, where, (*path, key))
    elif isinstance(value, list | tuple):
        for place, inside in enumerate(value):
            check_values(inside, where, (*path, place))
    elif isinstance(value, str):
        if any("\ud800" <= letter <= "\udfff" for letter in value):
            raise InputError(at, "wrong value", ascii(value), "whole letters, not half of a surrogate pair")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise InputError(at, "wrong value", value, "a finite number")
    elif isinstance(value, int):
        if abs(value) >= SIZE_LIMIT and path[-1] != UNLIMITED:
            raise InputError(at, "wrong value", value, f"a number below {SIZE_LIMIT}, or text in quotes")
    elif value is not None:
        raise InputError(at, "wrong value", str(value), "text or a number", "write it in quotes")
