"""Reading Cα traces from PDB and mmCIF files, and what is measured on them: pLDDT, TM-score, RMSD."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
import pyarrow.parquet as pq

from loratory.data.structures import BACKBONE, read_protein, unflatten_backbone
from loratory.errors import InputError

MAX_ALIGNED = 5  # references aligned with a model: aligning all of 40 finds a TM-score that is 0.003 to 0.008 larger
Source = Path | str | np.ndarray  # a file, or Cα coordinates (n, 3) in Å
SHORTEST = 20  # residues; TM-align scores 3 residues 1.0, so shorter chains say nothing


@dataclass(frozen=True)
class Trace:
    """Cα atoms of the residues of all chains, in file order; a modified residue counts as its parent.

    Attributes:
        sequence: n letters.
        coordinates: (n, 3) in Å.
        b_factors: (n,) as written, NaN where the file has none; pLDDT in the files of structure predictors.
        chains: (n,) chain ids.
        origin: one of `data.origins.ORIGINS`.
    """

    sequence: str
    coordinates: np.ndarray
    b_factors: np.ndarray
    chains: np.ndarray
    origin: str


class KnownChain(NamedTuple):
    """A chain of n residues: letters, and its backbone (n, 4, 3) in Å, NaN where an atom but Cα is missing."""

    sequence: str
    backbone: np.ndarray


@dataclass(frozen=True)
class TmScore:
    """Similarity of two folds.

    Attributes:
        norm_reference, norm_model, norm_longer: TM-score in (0, 1], normalised by the length of the reference, of the
            model, and of the longer of both.
        rmsd: in Å over the aligned Cα pairs; says nothing without their number.
        aligned_length: number of aligned Cα pairs.
    """

    norm_reference: float
    norm_model: float
    norm_longer: float
    rmsd: float
    aligned_length: int


def read_references(path: Path | str) -> dict[str, KnownChain]:
    """{id: its residues with a Cα atom} of the records that are long enough for a TM-score."""
    found = {}
    for record in pq.read_table(path, columns=["id", "sequence", "backbone"]).to_pylist():
        backbone = unflatten_backbone(record["backbone"])
        resolved = np.isfinite(backbone[:, BACKBONE.index("CA")]).all(axis=1)
        if resolved.sum() >= SHORTEST:
            letters = "".join(np.array([*record["sequence"]])[resolved])
            found[record["id"]] = KnownChain(letters, backbone[resolved])
    return found


def structure_folder(structures: Path, seed: int | None, system: str) -> Path:
    """Where the files `{id}.pdb` of a system's samples lie, a folder of its own; `seed` is None of a control."""
    return structures / ("baselines" if seed is None else f"seed{seed}") / quote(system, safe="@")


def read_trace(path: Path | str) -> Trace:
    """The Cα atoms of a PDB or mmCIF file; which residues count: `data.structures.read_protein`.

    Raises:
        InputError: as `read_protein`, or a coordinate that is not a number.
    """
    model = read_protein(path)
    coordinates = np.concatenate([chain.backbone[:, BACKBONE.index("CA")] for chain in model.chains])
    check_finite(coordinates, path)
    return Trace(
        "".join(chain.sequence for chain in model.chains),
        coordinates,
        np.concatenate([chain.b_factors for chain in model.chains]),
        np.repeat([chain.id for chain in model.chains], [len(chain.sequence) for chain in model.chains]),
        model.origin,
    )


def mean_plddt(path: Path | str) -> float:
    """Mean of the Cα B-factors of all chains, 0–100.

    B-factors of an experiment cannot be told from pLDDT by their values: of files that do not say where they come
    from, only give those of a structure predictor.

    Raises:
        InputError: as `read_trace`; also a file of an experiment, and B-factors that cannot be pLDDT: absent, all the
            same, outside 0–100, or scaled 0–1.
    """
    trace = read_trace(path)
    values = trace.b_factors
    expected, reason = "pLDDT between 0 and 100 in the B-factors", "not_plddt"
    if trace.origin == "experiment":
        raise InputError(path, "the file is of an experiment: it has no pLDDT", None, "a prediction", reason=reason)
    if np.isnan(values).any():
        what, value = "Cα atoms without a B-factor", f"{np.isnan(values).sum()} of {len(values)}"
        raise InputError(path, what, value, expected, reason=reason)
    if not values.any():
        raise InputError(path, "every Cα B-factor is 0: no pLDDT was written", None, expected, reason=reason)
    # of one or two residues the same pLDDT may be true; 1 is what is written where nothing is known
    if np.ptp(values) == 0 and (len(values) > 2 or values[0] <= 1):
        what = "every Cα B-factor is the same: no pLDDT was written"
        raise InputError(path, what, f"{values[0]:g}", expected, reason=reason)
    if not np.all((values >= 0) & (values <= 100)):
        worst = values[np.argmax(np.abs(values - 50))]
        raise InputError(path, "a Cα B-factor is no pLDDT", f"{worst:g}", expected, reason=reason)
    if values.max() <= 1:
        fix = "multiply the B-factors by 100"
        raise InputError(path, "pLDDT on the scale 0–1", f"{values.max():g} at most", expected, fix, reason)
    return float(values.mean())


def tm_score(model: Source, reference: Source, tool: str = "search") -> TmScore:
    """TM-score after a structural alignment that ignores sequence and residue numbers, as TM-align does.

    Args:
        model, reference: path of a PDB or mmCIF file (its first chain is used, as TM-align does), or Cα coordinates
            (n, 3) in Å.
        tool: "search" (`loratory.evaluation.superposition`) or "tmtools" (TM-align's own code, GPL, an extra).

    Raises:
        InputError: as `read_trace`; also a chain of fewer than 20 residues, or tmtools is wanted but not installed.
    """
    a, b = first_chain(model), first_chain(reference)
    check_chain(a, source_label(model, "model"))
    check_chain(b, source_label(reference, "reference"))
    return {"search": tm_by_search, "tmtools": tm_by_tmtools}[tool](a, b)


def tm_by_search(model: np.ndarray, reference: np.ndarray) -> TmScore:
    from loratory.evaluation.superposition import best_pairs, rmsd, tm_of_pairs

    i, j = best_pairs(model, reference)
    a, b = model[i], reference[j]
    by_reference, by_model = (tm_of_pairs(a, b, len(chain)) for chain in (reference, model))
    by_longer = by_model if len(model) > len(reference) else by_reference
    return TmScore(by_reference, by_model, by_longer, rmsd(a, b), len(i))


def tm_by_tmtools(model: np.ndarray, reference: np.ndarray) -> TmScore:
    try:
        from tmtools import tm_align
    except ModuleNotFoundError as error:
        fix = "install the extra `structure` or use the tool `search`"
        raise InputError("tmtools", "not installed", fix=fix, reason="missing") from error
    # the letters only label TM-align's output; they do not influence the alignment
    found = tm_align(model, reference, "A" * len(model), "A" * len(reference))
    pairs = sum(x != "-" != y for x, y in zip(found.seqxA, found.seqyA))
    by_longer = found.tm_norm_chain1 if len(model) > len(reference) else found.tm_norm_chain2
    return TmScore(found.tm_norm_chain2, found.tm_norm_chain1, by_longer, found.rmsd, pairs)


def nearest_reference(
    model: Source, references: Mapping[str, np.ndarray], tool: str = "search", promising: Sequence[str] = ()
) -> tuple[str, TmScore]:
    """The reference with the largest TM-score by the longer of both chains; the first name of equals.

    By its own length, a short reference would be near to every long model that holds a helix like it; by the model's,
    every long reference would be near to a short model.

    Of many references, only the MAX_ALIGNED that promise most by a coarse superposition are aligned.

    Args:
        model: path or Cα coordinates, as for `tm_score`.
        references: {name: path or Cα coordinates}, at least one.
        promising: names of those that are aligned, the best first, where another search has found them.
    """
    chains = {name: first_chain(references[name]) for name in sorted(promising or references)}
    chain, best = first_chain(model), None
    # no more of the longer chain than the length of the shorter can be covered
    bounds = {name: min(len(chain), len(other)) / max(len(chain), len(other)) for name, other in chains.items()}
    for name in promising or promising_names(chain, chains):
        if best and bounds[name] < best[1].norm_longer:
            continue
        score = tm_score(chain, chains[name], tool)
        if best is None or (-score.norm_longer, name) < (-best[1].norm_longer, best[0]):
            best = name, score
    assert best is not None  # as there is at least one reference
    return best


def promising_names(chain: np.ndarray, chains: Mapping[str, np.ndarray]) -> list[str]:
    """The names of the MAX_ALIGNED most promising chains, the best first."""
    from loratory.evaluation.superposition import coarse_score

    check_chain(chain, "model")
    for name, other in chains.items():
        check_chain(other, name)
    promises = {name: coarse_score(chain, other) for name, other in chains.items()}
    return sorted(chains, key=lambda name: (-promises[name], name))[:MAX_ALIGNED]


def first_chain(source: Source) -> np.ndarray:
    """Cα coordinates (n, 3) of a file's first chain; coordinates are handed back."""
    if isinstance(source, np.ndarray):
        return source.astype(float)
    trace = read_trace(source)
    chains = list(dict.fromkeys(trace.chains.tolist()))
    if len(chains) > 1:
        warnings.warn(f"{source}: chains {', '.join(chains)}; the first is used", stacklevel=2)
    return trace.coordinates[trace.chains == chains[0]]


def source_label(source: Source, role: str) -> Path | str:
    return role if isinstance(source, np.ndarray) else source


def check_chain(coordinates: np.ndarray, where: Path | str) -> None:
    """Raises: InputError for what makes TM-align hang (NaN) or flatter (short chains)."""
    if coordinates.ndim != 2 or coordinates.shape[1] != 3:
        raise InputError(where, "not Cα coordinates", f"shape {coordinates.shape}", "shape (residues, 3)")
    check_finite(coordinates, where)
    if len(coordinates) < SHORTEST:
        expected = f"at least {SHORTEST} for a TM-score"
        raise InputError(where, "too few residues", f"{len(coordinates)} Cα atoms", expected, reason="short")


def check_finite(coordinates: np.ndarray, where: Path | str) -> None:
    broken = np.flatnonzero(~np.isfinite(coordinates).all(axis=1))
    if broken.size:
        value = " ".join(f"{x:g}" for x in coordinates[broken[0]])
        raise InputError(f"{where}:{broken[0] + 1}", "a Cα coordinate is not a number", value, reason="nan")
