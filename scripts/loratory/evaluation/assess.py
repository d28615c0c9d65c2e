"""Judging a folding base on chains of known structure: does it fold them, and does it know how well?"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import biotite.structure as biotite
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file

from loratory import registry
from loratory.bases.families import folding
from loratory.data.files import atomic_write, remove_path, write_json
from loratory.data.records import join_records
from loratory.data.structures import alpha_carbons
from loratory.domains.contract import FoldingMetricsModule
from loratory.domains.dataset import open_split
from loratory.domains.examples import read_records
from loratory.errors import InputError
from loratory.evaluation.bootstrap import bootstrap_distributions, row_statistic
from loratory.evaluation.fold import folder_digest
from loratory.evaluation.score import Floor, cell_size, estimate_columns, finite_or_none, metric_columns
from loratory.evaluation.superposition import rmsd, tm_of_pairs
from loratory.provenance import code_digest, package_versions
from loratory.training.checkpoint import facts_digest, refusal_reason, save_sealed

if TYPE_CHECKING:
    from loratory.domains.contract import DatasetOptions

RESIDUES = pa.schema(
    {
        "id": pa.string(),
        "group": pa.string(),
        "origin": pa.string(),
        "position": pa.int32(),  # in the chain, from 1
        "plddt": pa.float64(),  # 0–100
        "lddt": pa.float64(),  # 0–100; null where the residue is unresolved
    }
)
EVERY = "all"
FOLDS = "folds"  # folder beside the table of residues: folded chains, until all are judged


def assess_folding(
    domain: str,
    base: str,
    data: Path | str,
    model_folder: Path | str,
    learnt: Sequence[Path | str] | None,
    dataset: DatasetOptions,
    limit: int | None,
    resamples: int,
    seed: int,
    floor: Floor,
    residues: Path | str,
    metrics: Path | str,
    device: str = "cpu",
    max_length: int | None = None,
) -> None:
    """Folds the test chains of a domain; writes a row for each residue, and metrics with 95 % intervals.

    An interrupted call goes on with the chains that it has folded, if model, code and packages are the same.

    Left out are chains that are themselves predicted, that are too long, for `max_length` or for the memory, and that
    resemble one that the base learnt from, by the measure that keeps splits apart.

    Args:
        data: folder of the dataset. model_folder: see `folding.load_folding_model`, also for `device`.
        learnt: folders of the datasets whose `train` split the base learnt from, or None if that is not known.
        dataset: the domain's `Dataset` options. limit: most chains, by id hash.
        resamples, seed: how many bootstrap draws, and their seed.
        floor: a number of fewer chains, or groups of them, is not computed, and `status` says so; nor are the means of
            a bin with residues of fewer chains.
        residues, metrics: the parquet file (RESIDUES) and the JSON file that are written.
        max_length: longest chain that is folded, in residues.

    Raises:
        InputError: the base will not do, or no chain is left to judge it by.
    """
    chosen = read_records(data, "test", limit)
    predicted = [record for record in chosen if record["origin"] == "predicted"]
    measured = [record for record in chosen if record["origin"] != "predicted"]
    records = [record for record in measured if max_length is None or record["length"] <= max_length]
    too_long = len(measured) - len(records)
    if not records:
        what = f"none of {len(chosen)} test chains is left: {len(predicted)} are predicted, {too_long} too long"
        raise InputError(data, what, expected="measured chains", fix="give more data", reason="origin")
    seen = similar_ids(domain, data, learnt or [], dataset) & {record["id"] for record in records}
    records = [record for record in records if record["id"] not in seen]
    if not records:
        what = f"each of {len(seen)} test chains resembles one that {base} learnt from"
        raise InputError(data, what, expected="other chains", fix="give more data", reason="leak")
    folding.check_folder(Path(model_folder), allow_random=False)
    code = code_digest("bases/families/folding.py")
    made_with = {"model": folder_digest(Path(model_folder)), "code": code, "versions": package_versions()}
    folds = Path(residues).with_name(FOLDS)
    model = cache(lambda: folding.load_folding_model(model_folder, device))
    chains, too_large = fold_chains(model, records, folds, made_with | {"device": device})
    write_residues(chains, residues)
    task = cast(FoldingMetricsModule, registry.load_module("domain", domain, "metrics"))
    parts: dict[str, list[dict]] = {EVERY: chains}
    for chain in chains:
        parts.setdefault(chain["origin"], []).append(chain)
    report = {
        "domain": domain,
        "base": base,
        "metrics_version": task.VERSION,
        "rows": [row for part, own in parts.items() for row in metric_rows(task, part, own, resamples, seed, floor)],
        "bins": [hold_floor(each, floor) for each in task.calibration_bins(resolved_columns(task, chains))],
        "left_out": len(seen) if learnt is not None else None,
        "predicted": len(predicted),
        "too_long": too_long,
        "too_large": too_large,
        "max_length": max_length,
        "resamples": resamples,
        "seed": seed,
    }
    write_json(metrics, report)
    remove_path(folds)


def similar_ids(domain: str, data: Path | str, learnt: Sequence, dataset: DatasetOptions) -> set[str]:
    """The ids of a dataset's test records that resemble one of the `train` splits of others."""
    build = registry.load_module("domain", domain, "build")
    if not learnt or not build.find_leaks:
        return set()
    known = join_records(open_split(folder, "train") for folder in learnt)
    return {*build.find_leaks(known, open_split(data, "test"), dataset)}


def fold_chains(
    model: Callable[[], Any], records: Sequence[dict], folder: Path, made_with: Mapping[str, Any]
) -> tuple[list[dict], int]:
    """The scores of each chain that memory suffices for, in the records' order, and how many others there are.

    Args:
        model: opens it, once. folder, made_with: see `fold_or_read`.

    Raises:
        InputError: as `folding.fold_sequence`, with the chain's id; for a lack of memory only where no chain is left.
    """
    chains, too_large = [], []
    for record in records:
        try:
            chains.append(chain_scores(record, fold_or_read(model, record, folder, made_with)))
        except InputError as error:
            named = InputError(f"test chains:{record['id']}", error.detail, reason=error.reason)
            if error.reason != "memory":
                raise named from error
            too_large.append(named)
    if not chains:
        raise too_large[0]
    if too_large:
        warnings.warn(f"{len(too_large)} chains are not folded, such as {too_large[0]}", stacklevel=3)
    return chains, len(too_large)


def fold_or_read(
    model: Callable[[], Any], record: Mapping, folder: Path, made_with: Mapping[str, Any]
) -> folding.Structure:
    """A record's fold, from the folder where an earlier call left it, else computed and left there.

    Args:
        made_with: what a fold depends on besides the sequence, in values of JSON: one made with anything else, or
            damaged, is computed anew.
    """
    path, sequence = folder / f"{facts_digest(id=record['id'])}.safetensors", record["sequence"]
    own = {**made_with, "sequence": sequence}
    if path.is_file() and not refusal_reason(path, own):
        kept = {name: tensor.numpy() for name, tensor in load_file(path).items()}
        return folding.Structure(sequence, kept["coordinates"], kept["plddt"])
    structure = folding.fold_sequence(model(), sequence)
    with atomic_write(path) as aside:
        tensors = {name: torch.from_numpy(getattr(structure, name)) for name in ("coordinates", "plddt")}
        save_sealed(tensors, aside, made_with=own)
    return structure


def chain_scores(record: dict, structure: folding.Structure) -> dict:
    """A prediction beside the truth: `plddt` and `lddt` for each residue, `tm` and `rmsd` of the chain."""
    truth, model = alpha_carbons(record["backbone"]), structure.coordinates[:, folding.CA]
    known = np.isfinite(truth).all(axis=1)
    lddt = np.full(len(truth), np.nan)
    lddt[known] = residue_lddt(truth[known], model[known])
    return {
        **{name: record[name] for name in ("id", "group", "origin")},
        "plddt": structure.plddt,
        "lddt": lddt,
        "tm": tm_of_pairs(truth[known], model[known], int(known.sum())),
        "rmsd": rmsd(truth[known], model[known]),
    }


def residue_lddt(truth: np.ndarray, model: np.ndarray) -> np.ndarray:
    """lDDT-Cα of each residue on the scale 0–100, of Cα coordinates (n, 3) in Å (Mariani et al. 2013)."""
    reference = biotite.AtomArray(len(truth))
    reference.coord, reference.res_id[:] = truth, np.arange(len(truth))
    return 100 * biotite.lddt(reference, model, aggregation="atom", inclusion_radius=15)


def write_residues(chains: Sequence[dict], out: Path | str) -> None:
    rows = [
        {**{name: c[name] for name in ("id", "group", "origin")}, "position": i, "plddt": p, "lddt": finite_or_none(t)}
        for c in chains
        for i, (p, t) in enumerate(zip(c["plddt"].tolist(), c["lddt"].tolist()), start=1)
    ]
    with atomic_write(out) as aside:
        pq.write_table(pa.Table.from_pylist(rows, RESIDUES), aside, compression="zstd")


def resolved_columns(task: Any, chains: Sequence[dict]) -> dict:
    """The metrics' columns, of resolved residues alone."""
    known = [np.isfinite(chain["lddt"]) for chain in chains]
    rows = [c | {name: c[name][k] for name in ("plddt", "lddt")} for c, k in zip(chains, known)]
    return task.columns(rows, None, None)


def hold_floor(of_bin: dict, floor: Floor) -> dict:
    """A bin of confidence, without its means where they are of too few chains."""
    return of_bin | ({"plddt": None, "lddt": None} if of_bin["chains"] < floor.records else {})


def metric_rows(task: Any, part: str, chains: Sequence[dict], resamples: int, seed: int, floor: Floor) -> list[dict]:
    """One row for each metric, over the chains of one part that it looks at."""
    columns, groups = resolved_columns(task, chains), np.array([chain["group"] for chain in chains])
    sizes = {metric.name: cell_size(metric, groups, [columns]) for metric in task.METRICS}
    missing = {name: floor.shortage_status(size) for name, size in sizes.items()}
    metrics = [metric for metric in task.METRICS if not missing[metric.name]]
    values = {metric.name: {None: metric.compute_value(columns)} for metric in metrics}
    statistics = {metric.name: row_statistic(metric.value, [columns], metric.where) for metric in metrics}
    spreads = bootstrap_distributions(statistics, groups, resamples, seed)
    rows = []
    for metric in task.METRICS:
        size, lengths = sizes[metric.name], [len(each) for each in columns["lddt"][metric.row_selection(columns)]]
        counts = {"chains": size.n, "groups": size.n_groups, "residues": sum(lengths)}
        found = estimate_columns(values.get(metric.name, {}), spreads.get(metric.name), [], missing[metric.name])
        rows.append({"part": part, **counts, **metric_columns(metric), **found})
    return rows
