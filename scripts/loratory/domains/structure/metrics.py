"""How well chains of known structure are folded, and whether the confidence says so.

VERSION is raised when a metric changes its meaning: every file of metrics carries it, and tables print it above 1.
"""

from collections.abc import Callable

import numpy as np
from scipy.stats import rankdata

from loratory.domains.contract import Columns, Metric
from loratory.domains.protein.metrics import has_value, mean_of
from loratory.domains.structure.sources import Task

SAME_FOLD = 0.5  # TM-score above which two chains have one fold: Xu & Zhang 2010, doi:10.1093/bioinformatics/btq066
BIN = 10  # width of a bin of pLDDT, on the scale 0–100


def columns(rows: list[dict], records: list[dict] | None, task: Task | None) -> dict[str, np.ndarray]:
    """One value for each chain and column: arrays over its resolved residues, or numbers.

    `plddt` and `lddt` are arrays on the scale 0–100; `spearman` is their rank correlation within the chain; `tm` (0–1)
    and `rmsd` (Å) compare the prediction with the truth.
    """
    found = {name: np.fromiter((row[name] for row in rows), dtype=object) for name in ("plddt", "lddt")}
    found |= {name: np.array([row[name] for row in rows], dtype=float) for name in ("tm", "rmsd")}
    within = [rank_correlation(*pair) for pair in zip(found["plddt"], found["lddt"])]
    return found | {"spearman": np.array(within, dtype=float)}


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation; NaN where a side does not vary."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def pooled_scores(columns: Columns) -> tuple[np.ndarray, np.ndarray]:
    """pLDDT and lDDT of all residues of all chains."""
    return np.concatenate(columns["plddt"]), np.concatenate(columns["lddt"])


def calibration_bins(columns: Columns) -> list[dict]:
    """Of each bin of pLDDT that holds any residue: mean pLDDT, mean lDDT, and of how many residues and chains."""
    plddt, lddt = pooled_scores(columns)
    home = bin_numbers(plddt)
    sums = [np.bincount(home, weights, 100 // BIN) for weights in (None, plddt, lddt)]
    held = [np.unique(bin_numbers(chain)) for chain in columns["plddt"]]
    chains = np.bincount(np.concatenate(held), None, 100 // BIN)
    return [
        {"low": BIN * k, "high": BIN * (k + 1), "chains": c, "residues": int(n), "plddt": p / n, "lddt": t / n}
        for k, (c, n, p, t) in enumerate(zip(*(each.tolist() for each in (chains, *sums))))
        if n
    ]


def bin_numbers(plddt: np.ndarray) -> np.ndarray:
    """The bin of each residue, from 0."""
    return np.minimum(plddt // BIN, 100 // BIN - 1).astype(int)


def calibration_error(columns: Columns) -> float:
    bins = calibration_bins(columns)
    residues = sum(each["residues"] for each in bins)
    return sum(each["residues"] * abs(each["plddt"] - each["lddt"]) for each in bins) / residues


def mean_over_residues(column: str) -> Callable[[Columns], float]:
    return lambda columns: float(np.concatenate(columns[column]).mean())


def median_of(column: str) -> Callable[[Columns], float]:
    return lambda columns: float(np.median(columns[column]))


def same_fold_share(columns: Columns) -> float:
    tm = columns["tm"]
    return float(np.where(np.isnan(tm), np.nan, tm > SAME_FOLD).mean())


TRAIN_KEYS = ()
VERSION = 1
METRICS = (
    Metric(
        "spearman",
        "rank correlation",
        "up",
        "structure",
        lambda c: rank_correlation(*pooled_scores(c)),
        primary=True,
        note="of pLDDT with the true lDDT-Cα, over all residues of all chains",
    ),
    Metric(
        "chain_spearman",
        "rank correlation",
        "up",
        "structure",
        mean_of("spearman"),
        note="the same within each chain, mean over the chains in which both vary",
        where=has_value("spearman"),
    ),
    Metric(
        "lddt",
        "0–100",
        "up",
        "structure",
        mean_over_residues("lddt"),
        note="lDDT-Cα of the prediction, all Cα within 15 Å, mean over residues",
    ),
    Metric(
        "plddt", "0–100", "up", "structure", mean_over_residues("plddt"), note="what the base expects that lDDT to be"
    ),
    Metric(
        "calibration_error",
        "0–100",
        "down",
        "structure",
        calibration_error,
        note="|mean pLDDT − mean lDDT| of each bin of 10, mean over residues",
    ),
    Metric(
        "tm_score",
        "0–1",
        "up",
        "structure",
        median_of("tm"),
        note="of the prediction on the truth, residue by residue, normalised by its length; median over chains",
    ),
    Metric(
        "self_consistency",
        "share",
        "up",
        "structure",
        same_fold_share,
        note=f"chains whose own sequence folds back on them, TM-score above {SAME_FOLD}: scTM's criterion, for native"
        " sequences. Backbones that a model made would need sequences of an inverse-folding model, which no base is",
    ),
    Metric("rmsd", "Å", "down", "structure", median_of("rmsd"), note="of Cα after superposition; median over chains"),
)
