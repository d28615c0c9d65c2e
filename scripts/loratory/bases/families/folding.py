"""From sequence to structure with the folder of an `EsmForProteinFolding`.

Source: ESMFold, Lin et al. 2023, doi:10.1126/science.ade2574.
One chain at a time: padding costs memory that grows with the cube of the length, and saves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from transformers import EsmForProteinFolding

from loratory.bases.core import Base, load_with_report
from loratory.data.alphabets import RESIDUES, invalid_letters
from loratory.data.files import read_json
from loratory.errors import InputError

CA = 1  # place of Cα among the 37 atoms of a residue
# absent from the public checkpoint: the first is not used for folding, the second is a constant of the code
NOT_STORED = ("esm.contact_head.", "af2_to_esm")


class Family(Base):
    """Folds sequences (`load_folding_model`) and reads no examples: it takes no adapters."""

    family = "folding"
    model_class = EsmForProteinFolding

    @staticmethod
    def architectures(model_type: str) -> set[str]:
        return {"EsmForProteinFolding"} if model_type == "esm" else set()

    @classmethod
    def check_config(cls, path: Path, config: dict[str, Any]) -> None:
        if not config.get("is_folding_model"):
            raise not_folding_error(path, config.get("model_type"))

    @classmethod
    def requires_weight(cls, name: str) -> bool:
        return not name.startswith(NOT_STORED)

    @classmethod
    def try_folder(cls, folder: Path, manifest: dict[str, Any], dtype: torch.dtype) -> None:
        """It reads no examples, and `fold_sequence` refuses what is not a number."""

    @classmethod
    def open(cls, folder: Path, manifest: dict[str, Any], **options: Any) -> Self:
        what = "a folding base reads no examples"
        raise InputError(folder, what, expected="a base of another family", fix="open it by `load_folding_model`")


@dataclass(frozen=True)
class Structure:
    """A predicted chain of L residues.

    Attributes:
        sequence: L letters.
        coordinates: (L, 37, 3) in Å, atoms in AlphaFold's order; NaN where a residue has no such atom.
        plddt: (L,) confidence at Cα, 0–100.
    """

    sequence: str
    coordinates: np.ndarray
    plddt: np.ndarray


def load_folding_model(
    folder: Path | str, device: torch.device | str = "cpu", allow_random: bool = False
) -> EsmForProteinFolding:
    """The model of a local folder (`config.json`, safetensors), ready to `fold`.

    On a GPU the language model runs in half precision, as it was published; everything else is single precision.

    Args:
        allow_random: accept a folder whose `base.json` declares random weights; only tests want that.

    Raises:
        InputError: not such a folder, weights missing from it, or random weights.
    """
    check_folder(Path(folder), allow_random)
    model, report = load_with_report(EsmForProteinFolding, folder, dtype=torch.float32)
    missing = sorted(filter(Family.requires_weight, report["missing_keys"]))
    if missing:
        what = f"{len(missing)} weights are missing, such as `{missing[0]}`"
        raise InputError(folder, what, expected="every weight of the config's model", reason="weights")
    model.esm.to(torch.float16 if torch.device(device).type == "cuda" else torch.float32)
    return model.eval().requires_grad_(False).to(device)


def check_folder(folder: Path, allow_random: bool) -> None:
    """Raises: InputError as `load_folding_model`, from the small files alone."""
    config = folder / "config.json"
    if not config.is_file():
        raise InputError(config, "no such file", expected="a model folder", reason="missing")
    if not read_json(config).get("is_folding_model"):
        raise not_folding_error(config)
    if not any(folder.glob("*.safetensors")):
        fix = "load the checkpoint once and `save_pretrained` it"
        raise InputError(folder, "no safetensors weights", None, "*.safetensors", fix, "weights")
    card = folder / "base.json"
    if card.is_file() and read_json(card).get("weights") == "random" and not allow_random:
        what = "the weights are random: pLDDT and TM-scores of its structures would mean nothing"
        raise InputError(card, what, expected="trained weights", fix="name another folding base", reason="random")


def not_folding_error(path: Path, model_type: str | None = None) -> InputError:
    expected = "the folder of an EsmForProteinFolding, such as facebook/esmfold_v1"
    return InputError(path, "not a folding model", model_type, expected, reason="family")


def check_sequence(where: object, sequence: str, max_length: int | None = None) -> None:
    """Raises: InputError for what the model would refuse obscurely, run out of memory on, or fold as unknown (X)."""
    if not sequence:
        raise InputError(where, "empty sequence", expected="at least one residue", reason="no_sequence")
    odd = invalid_letters(sequence.encode(), RESIDUES).decode()
    if odd:
        what = f"not one of the 20 residues at position {sequence.index(odd[0]) + 1}"
        raise InputError(where, what, odd[0], RESIDUES, "fold only valid sequences", "residue")
    if max_length is not None and len(sequence) > max_length:
        what, expected = "the sequence is too long to fold", f"at most {max_length} residues"
        raise InputError(where, what, len(sequence), expected, "raise the limit or leave it out", "length")


def fold_sequence(model: EsmForProteinFolding, sequence: str, chunk_size: int = 64) -> Structure:
    """Predicts the structure of one chain.

    Args:
        chunk_size: rows of the pair representation attended to at once; smaller takes less memory and more time. Where
            memory does not suffice, smaller ones are tried down to 1. The result does not depend on it, but without
            chunks long chains were seen to come out wrong.

    Raises:
        InputError: a sequence of other letters than the 20 residues, coordinates that are not numbers, or a chain too
            long for the memory (reason `memory`).
    """
    from transformers.models.esm.openfold_utils import atom14_to_atom37

    check_sequence("sequence", sequence)
    out = infer_within_memory(model, sequence, chunk_size)
    parts = {key: out[key].cpu().numpy() for key in ("residx_atom37_to_atom14", "atom37_atom_exists")}
    coordinates = atom14_to_atom37(out["positions"][-1].float().cpu().numpy(), parts)[0]
    exists = parts["atom37_atom_exists"][0] > 0.5
    if not np.all(np.abs(coordinates[exists]) < 9999):  # also false for NaN; the PDB format holds four digits
        raise InputError("folding", "the model's coordinates are not finite", sequence, reason="diverged")
    plddt = percent_plddt(out["plddt"][0, :, CA].float().cpu().numpy())
    return Structure(sequence, np.where(exists[..., None], coordinates, np.nan), plddt)


def infer_within_memory(model: EsmForProteinFolding, sequence: str, chunk_size: int) -> Any:
    """What the model says of a sequence, with chunks as large as memory allows; see `fold_sequence`."""
    while True:
        model.trunk.set_chunk_size(chunk_size)
        try:
            return model.infer([sequence])
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        if chunk_size == 1:
            what, fix = "out of memory, however small the chunks", "fold on a device with more memory, or set a limit"
            raise InputError("folding", what, f"{len(sequence)} residues", "a shorter sequence", fix, "memory")
        chunk_size = max(1, chunk_size // 4)
        torch.cuda.empty_cache()  # after the error is gone, which holds the tensors of where it rose


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it is so by its type, or, of a CPU's allocator, by its words."""
    words = ("out of memory", "not enough memory", "can't allocate memory")
    by_type = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return by_type or any(each in str(error) for each in words)


def percent_plddt(plddt: np.ndarray) -> np.ndarray:
    """The model's pLDDT (0–1) on the scale that everyone quotes (0–100); nothing else in the project rescales it."""
    scaled = 100 * plddt.astype(float)
    assert np.all((scaled >= 0) & (scaled <= 100)) and scaled.max() > 1, "pLDDT is not on the scale 0–1"
    return scaled


def pdb_text(structure: Structure) -> str:
    """PDB text, chain A, residues from 1; the B-factor of every atom is its residue's pLDDT (0–100, two decimals)."""
    from transformers.models.esm.openfold_utils import OFProtein, residue_constants, to_pdb

    length = len(structure.sequence)
    exists = np.isfinite(structure.coordinates).all(axis=-1)
    return to_pdb(
        OFProtein(
            atom_positions=structure.coordinates,
            aatype=np.array([residue_constants.restype_order[letter] for letter in structure.sequence]),
            atom_mask=exists.astype(float),
            residue_index=np.arange(1, length + 1),
            b_factors=np.repeat(structure.plddt[:, None], exists.shape[1], axis=1),
        )
    )
