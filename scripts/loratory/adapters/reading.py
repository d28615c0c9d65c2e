"""Files of stored adapters and mixtures, which may come from elsewhere: data that is checked before it is used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from loratory import registry
from loratory.bases.checks import check_finite, count_tensors
from loratory.errors import InputError
from loratory.problems import first_problem


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file.

    Raises:
        InputError: the file is missing, damaged or cut short, or holds numbers that are NaN or infinite, or of a type
            that torch cannot read.
    """
    if not path.is_file():
        raise InputError(path, "no such file", expected="a safetensors file", reason="missing")
    count_tensors(path)
    check_finite(path)
    return load_file(path)


def require_float(where: Path, name: str, tensor: torch.Tensor) -> None:
    """Raises:
    InputError: the numbers are of a type that no weight has.
    """
    if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        dtype = str(tensor.dtype).removeprefix("torch.")
        raise InputError(f"{where}:{name}", "weights of another type", dtype, "float32, float16 or bfloat16")


def open_options(where: str, noun: str, kind: object, options: object) -> Any:
    """The method or mixer that a file describes.

    Args:
        noun: `method` or `mixer`. kind: its registered name. options: its fields.

    Raises:
        InputError: no such kind, or options that it does not take.
    """
    names = registry.registered_names(noun)
    if not isinstance(kind, str) or kind not in names:
        raise registry.unknown_name_error(where, noun, kind, names)
    cls = getattr(registry.load_module(noun, kind), noun.capitalize())
    if not isinstance(options, dict):
        raise InputError(where, "no options", options, "keys with values")
    try:
        return cls.model_validate_json(json.dumps(options), strict=True)  # of JSON, so that a list may be a tuple
    except ValidationError as error:
        raise first_problem(error, options, where, cls.model_json_schema()) from None
