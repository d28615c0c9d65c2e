"""Scores of a yes-or-no prediction that more than one domain reports."""

import numpy as np
from numpy.typing import ArrayLike

CLIP = 1e-6
CLIP_NOTE = f"p clipped to [{CLIP:g}, 1 - {CLIP:g}]; what learning rates are chosen by, on other records"


def log_loss(labels: np.ndarray, p: np.ndarray) -> float:
    """Mean −ln of the probability that is given to the truth, in nats; NaN without rows.

    Args:
        labels: (n,) truth, 0 or 1. p: (n,) P(label 1), clipped to [CLIP, 1 − CLIP].
    """
    clipped = np.clip(p, CLIP, 1 - CLIP)
    return float(-np.mean(np.where(labels == 1, np.log(clipped), np.log1p(-clipped)))) if labels.size else np.nan


def auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Probability that a random positive scores above a random negative, a tie counting one half.

    Args:
        labels: (n,) truth, 0 or 1.
        scores: (n,) any monotone score.

    Returns:
        A number in [0, 1]; NaN where a class is missing or a score is NaN.

    Source: Hanley and McNeil 1982, doi:10.1148/radiology.143.1.7063747 (the Mann-Whitney statistic).
    """
    truth, values = np.asarray(labels, bool), np.asarray(scores, float)
    positive, negative = np.sort(values[truth]), np.sort(values[~truth])
    if not positive.size or not negative.size or np.isnan(values).any():
        return float("nan")
    below = np.searchsorted(negative, positive, "left").sum()
    not_above = np.searchsorted(negative, positive, "right").sum()
    return float((below + not_above) / (2 * positive.size * negative.size))


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the precision-recall curve: precision at each threshold, weighted by the recall that it adds.

    Records of equal score are called together. A random score has the share of positives.

    Args:
        labels: (n,) truth, 0 or 1.
        scores: (n,) any monotone score.

    Returns:
        A number in [0, 1]; NaN where a class is missing or a score is NaN.
    """
    truth, values = np.asarray(labels, bool), np.asarray(scores, float)
    if truth.all() or not truth.any() or np.isnan(values).any():
        return float("nan")
    order = np.argsort(-values, kind="stable")
    found, last = np.cumsum(truth[order]), np.append(np.diff(values[order]) != 0, True)  # last of each score
    found, called = found[last], np.flatnonzero(last) + 1
    return float(np.sum(np.diff(found, prepend=0) * found / called) / found[-1])


BINS = 10  # of probabilities, equally wide


def calibration_error(labels: np.ndarray, p: np.ndarray) -> float:
    """|mean p − share of label 1| of each of BINS bins of p, mean over records; NaN without rows or where a p is NaN.

    Args:
        labels: (n,) truth, 0 or 1. p: (n,) P(label 1).

    Source: expected calibration error, Naeini et al. 2015, doi:10.1609/aaai.v29i1.9602.
    """
    if not p.size or np.isnan(p).any():
        return float("nan")
    homes = np.minimum((p * BINS).astype(int), BINS - 1)
    return float(np.abs(np.bincount(homes, p - labels, BINS)).sum() / p.size)
