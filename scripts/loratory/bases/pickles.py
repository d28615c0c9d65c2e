"""PyTorch's own files (`.pt`) of published models: pickles, of which only numbers are taken and nothing is run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from loratory.bases.prepare import prepare_folder, write_manifest
from loratory.errors import InputError

if TYPE_CHECKING:
    from loratory.bases.options import BaseEntry


def read_pickle(path: Path | str, expected: str, classes: tuple[type, ...] = ()) -> Any:
    """The content of a `.pt` file, in the CPU's memory.

    Args:
        expected: what it should be, for the error. classes: of plain data, which it may hold besides tensors.

    Raises:
        InputError: no such file, a damaged one, or one that holds more (code is not run).
    """
    if not Path(path).is_file():
        raise InputError(path, "no such file", expected=expected, reason="missing")
    try:
        with torch.serialization.safe_globals([*classes]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError) as error:
        reason = str(error).partition("WeightsUnpickler error:")[2] or str(error)
        raise InputError(path, "not loaded: damaged, or holds more than tensors", reason, expected) from None


def prepare_pickle(
    convert: Callable[[Path | str, Path], None], source: Path | str, name: str, entry: BaseEntry, out: Path
) -> None:
    """Prepares the base of a `.pt` file as if it came as the folder that `convert` makes of it.

    Raises:
        InputError: as `convert` and `prepare_folder`; of a folder that nobody else sees, the file is named.
    """
    with TemporaryDirectory() as scratch:
        folder = Path(scratch, "base")
        convert(source, folder)
        try:
            prepare_folder(folder, name, entry, out)
        except InputError as error:
            where = error.where.replace(str(folder), str(source))
            raise InputError(where, error.detail, reason=error.reason) from error
    write_manifest(out, name, entry, origin=str(source))
