"""How well the probability of yes ranks, and whether it can be believed.

VERSION is raised when a metric changes its meaning: every file of metrics carries it, and tables print it above 1.
"""

import numpy as np

from loratory.domains import scores
from loratory.domains.contract import Columns, Metric
from loratory.domains.recsys.sources import Task

BINS = 10


def columns(rows: list[dict], records: list[dict], task: Task) -> dict[str, np.ndarray]:
    """`label` (1 for yes), `p` and `user` (numbered from 0) of each row."""
    labels = {record["id"]: record["label"] for record in records}
    _, users = np.unique([row["group"] for row in rows], return_inverse=True)
    return {
        "label": np.array([labels[row["id"]] for row in rows], int),
        "p": np.array([row["p"] for row in rows], float),
        "user": users,
    }


def rating_auc(columns: Columns) -> float:
    return scores.auc(columns["label"], columns["p"])


def log_loss(columns: Columns) -> float:
    return scores.log_loss(columns["label"], columns["p"])


def accuracy(columns: Columns) -> float:
    label, p = columns["label"], columns["p"]
    if not label.size or np.isnan(p).any():
        return np.nan
    return float(np.mean((p >= 0.5) == (label == 1)))


def has_both_classes(columns: Columns) -> np.ndarray:
    """(n,) bool: whether the user of a row likes some and not others."""
    label, user = columns["label"], columns["user"]
    rows, positive = np.bincount(user), np.bincount(user, label)
    return ((positive > 0) & (positive < rows))[user]


def group_auc(columns: Columns) -> float:
    """Source: Zhou et al. 2018, arXiv 1706.06978. NaN where no user has both classes."""
    label, p, user = columns["label"], columns["p"], columns["user"]
    if np.isnan(p).any():
        return np.nan
    order = np.lexsort((p, user))
    label, p, user = label[order], p[order], user[order]
    rows, positive = np.bincount(user), np.bincount(user, label)
    negative, before = rows - positive, np.cumsum(rows) - rows
    # of each user: the rank sum of the likes less the smallest it can be, which is Mann and Whitney's U
    wins = np.bincount(user, label * tied_ranks(user, p)) - positive * (before + (positive + 1) / 2)
    both = (positive > 0) & (negative > 0)
    if not both.any():
        return np.nan
    return float(np.average(wins[both] / (positive * negative)[both], weights=rows[both]))


def tied_ranks(user: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Ranks from 1 of rows sorted by user and p; rows equal in both share the mean of their ranks."""
    new = np.flatnonzero(np.r_[True, (np.diff(user) != 0) | (np.diff(p) != 0)][: len(p)])
    sizes = np.diff(np.r_[new, len(p)])
    return np.repeat(new + (sizes + 1) / 2, sizes)


def expected_calibration_error(columns: Columns) -> float:
    """Expected calibration error, Naeini et al. 2015, doi:10.1609/aaai.v29i1.9602."""
    label, p = columns["label"], columns["p"]
    if not label.size or np.isnan(p).any():
        return np.nan
    bins = np.minimum((p * BINS).astype(int), BINS - 1)
    return float(np.abs(np.bincount(bins, weights=p - label)).sum() / label.size)


VERSION = 1
METRICS = (
    Metric(
        "auc",
        "",
        "up",
        "choice",
        rating_auc,
        primary=True,
        note="over all records; a tie counts one half",
        classes=lambda columns: columns["label"],
    ),
    Metric("log_loss", "nats", "down", "choice", log_loss, loss=True, note=scores.CLIP_NOTE),
    Metric("accuracy", "", "up", "choice", accuracy, note="yes if p is at least 0.5"),
    Metric(
        "gauc",
        "",
        "up",
        "choice",
        group_auc,
        note="mean AUC within the users that have both classes, weighted by their records",
        where=has_both_classes,
    ),
    Metric(
        "ece",
        "",
        "down",
        "choice",
        expected_calibration_error,
        note=f"mean gap between p and the share of yes in {BINS} bins of equal width, weighted by their records",
    ),
)
