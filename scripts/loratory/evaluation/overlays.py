"""Folded samples with the known chains that are nearest to them laid on them, as text for a viewer."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from loratory.data.structures import BACKBONE, ModelChain, read_protein
from loratory.domains.views import FoldedSample
from loratory.evaluation.foldseek import chain_text
from loratory.evaluation.structure import KnownChain, read_references, structure_folder
from loratory.evaluation.superposition import apply_transform, chain_transform

CARBON = BACKBONE.index("CA")


def read_overlays(
    scores: Path | str, references: Path | str | None, systems: Iterable[str], seed: int, count: int
) -> list[FoldedSample]:
    """The first folded samples of systems, by id, in the order of the systems.

    Args:
        scores: parquet file of `evaluation.fold.fold_predictions`, whose structures lie beside it.
        references: parquet file of the records that it names, or None. seed: of the systems that were trained.
        count: most samples of a system.

    Raises:
        InputError: a structure is missing or damaged.
    """
    known = read_references(references) if references else {}
    rows: dict[str, list[dict]] = {}
    for row in pq.read_table(scores).to_pylist():
        if row["seed"] in (seed, None) and row["unfolded"] is None:
            rows.setdefault(row["system"], []).append(row)
    return [
        overlay_sample(Path(scores).parent, system, row, known)
        for system in systems
        for row in sorted(rows.get(system, ()), key=lambda row: row["id"])[:count]
    ]


def overlay_sample(structures: Path, system: str, row: Mapping, known: Mapping[str, KnownChain]) -> FoldedSample:
    chain = read_protein(structure_folder(structures, row["seed"], system) / f"{row['id']}.pdb").chains[0]
    model = chain_text(KnownChain(chain.sequence, chain.backbone), chain.b_factors)
    sample = FoldedSample(system, row["id"], chain.sequence, row["plddt"], model)
    if row["reference"] not in known:
        return sample
    text = chain_text(laid_chain(chain, known[row["reference"]]))
    return replace(sample, near=row["reference"], tm=row["tm_longer"], reference=text)


def laid_chain(chain: ModelChain, reference: KnownChain) -> KnownChain:
    """The reference where it fits the chain best."""
    move = chain_transform(chain.backbone[:, CARBON], reference.backbone[:, CARBON].astype(float))
    atoms = apply_transform(move, reference.backbone.reshape(-1, 3).astype(float))
    return KnownChain(reference.sequence, np.reshape(atoms, reference.backbone.shape))
