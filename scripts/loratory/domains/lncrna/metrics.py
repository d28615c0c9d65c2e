"""How well P(lncRNA) tells lncRNA (label 1, the positive class) from mRNA (label 0).

Intervals draw whole groups again: a group (`build.group`) holds every transcript of its genes, and of similar ones.
VERSION is raised when a metric changes its meaning: every file of metrics carries it, and tables print it above 1.
"""

import math
from collections.abc import Callable

import numpy as np

from loratory.data.splits import hash_position
from loratory.domains import scores
from loratory.domains.bins import length_bins
from loratory.domains.contract import Columns, Metric
from loratory.domains.lncrna.sources import Task

BIN = 1.2  # ratio of the longest to the shortest transcript of a length bin, where lengths are matched
LENGTHS = (500, 2000)  # nucleotides; transcripts up to each, and longer ones, are also scored by themselves


def columns(rows: list[dict], records: list[dict], task: Task) -> dict[str, np.ndarray]:
    """`label`, `p` and `length` of each row, and `matched`: whether the record is in the length-matched subset."""
    by_id = {record["id"]: record for record in records}
    found = [by_id[row["id"]] for row in rows]
    label = np.array([record["label"] for record in found], int)
    length = np.array([record["length"] for record in found], float)
    return {
        "label": label,
        "p": np.array([row["p"] for row in rows], float),
        "length": length,
        "matched": length_matched_mask([record["id"] for record in found], length, label),
    }


def length_matched_mask(ids: list[str], length: np.ndarray, label: np.ndarray) -> np.ndarray:
    """(n,) bool: as many records of both classes in each length bin, those with the smallest id hashes."""
    bins = np.floor(np.log(length) / math.log(BIN))
    order = np.array(sorted(range(len(ids)), key=lambda i: (hash_position(ids[i], 0), ids[i])), int)
    chosen = np.zeros(len(ids), bool)
    for each in np.unique(bins):
        members = order[bins[order] == each]
        classes = [members[label[members] == value] for value in (0, 1)]
        few = min(map(len, classes))
        for members in classes:
            chosen[members[:few]] = True
    return chosen


def transcript_auc(columns: Columns) -> float:
    return scores.auc(columns["label"], columns["p"])


def log_loss(columns: Columns) -> float:
    return scores.log_loss(columns["label"], columns["p"])


def true_class(columns: Columns) -> np.ndarray:
    return columns["label"]


def confusion_counts(columns: Columns) -> tuple[float, float, float, float]:
    """`(true positives, false positives, true negatives, false negatives)` at p ≥ 0.5; all NaN where a p is NaN."""
    truth, p = columns["label"] == 1, columns["p"]
    if np.isnan(p).any():
        return math.nan, math.nan, math.nan, math.nan
    said = p >= 0.5
    tp, fp, tn, fn = (float(np.sum(both)) for both in (truth & said, ~truth & said, ~truth & ~said, truth & ~said))
    return tp, fp, tn, fn


def matthews_correlation(columns: Columns) -> float:
    """Matthews 1975, doi:10.1016/0005-2795(75)90109-9; 0 by convention where only one class is predicted."""
    tp, fp, tn, fn = confusion_counts(columns)
    if not (tp + fn and tn + fp):
        return math.nan
    scale = math.sqrt(tp + fp) * math.sqrt(tp + fn) * math.sqrt(tn + fp) * math.sqrt(tn + fn)
    return (tp * tn - fp * fn) / scale if scale else 0.0


def f1(columns: Columns) -> float:
    tp, fp, tn, fn = confusion_counts(columns)
    return 2 * tp / (2 * tp + fp + fn) if tp + fn and tn + fp else math.nan


def precision(columns: Columns) -> float:
    """0 by convention where nothing is called lncRNA."""
    tp, fp, tn, fn = confusion_counts(columns)
    return (tp / (tp + fp) if tp + fp else 0.0) if tp + fn and tn + fp else math.nan


def rows_of(label: int) -> Callable[[Columns], np.ndarray]:
    """columns -> (n,) bool, the rows of one class."""
    return lambda columns: columns["label"] == label


def balanced_accuracy(columns: Columns) -> float:
    tp, fp, tn, fn = confusion_counts(columns)
    return (tp / (tp + fn) + tn / (tn + fp)) / 2 if tp + fn and tn + fp else math.nan


def transcript_auprc(columns: Columns) -> float:
    return scores.average_precision(columns["label"], columns["p"])


def calibration_error(columns: Columns) -> float:
    return scores.calibration_error(columns["label"], columns["p"])


def accuracy(columns: Columns) -> float:
    tp, fp, tn, fn = confusion_counts(columns)
    n = tp + fp + tn + fn
    return (tp + tn) / n if n else math.nan


def brier_score(columns: Columns) -> float:
    p = columns["p"]
    return float(np.mean((p - columns["label"]) ** 2)) if p.size else math.nan


TRAIN_KEYS = ()
VERSION = 1
METRICS = (
    Metric(
        "auc",
        "",
        "up",
        "choice",
        transcript_auc,
        primary=True,
        note="ranks by P(lncRNA), ties count one half",
        classes=true_class,
    ),
    Metric("log_loss", "nats", "down", "choice", log_loss, loss=True, note=scores.CLIP_NOTE),
    Metric(
        "auc_length_matched",
        "",
        "up",
        "choice",
        transcript_auc,
        note="AUC of equally many records of both classes in length bins of ratio 1.2: length itself scores 0.5",
        where=lambda columns: columns["matched"],
        classes=true_class,
    ),
    *(
        Metric(
            f"auc_{name}",
            "",
            "up",
            "choice",
            transcript_auc,
            note=f"AUC of transcripts of {words} nucleotides",
            where=where,
            classes=true_class,
        )
        for name, (words, where) in length_bins(LENGTHS).items()
    ),
    Metric(
        "mcc",
        "",
        "up",
        "choice",
        matthews_correlation,
        note="at P(lncRNA) ≥ 0.5; 0 if only one class is predicted",
        classes=true_class,
    ),
    Metric("f1", "", "up", "choice", f1, note="of lncRNA, at P(lncRNA) ≥ 0.5", classes=true_class),
    Metric(
        "precision",
        "",
        "up",
        "choice",
        precision,
        note="share of true lncRNA among what is called so, at P(lncRNA) ≥ 0.5; 0 if nothing is",
        classes=true_class,
    ),
    Metric(
        "recall",
        "",
        "up",
        "choice",
        accuracy,
        note="share of lncRNA called so (sensitivity)",
        where=rows_of(1),
    ),
    Metric(
        "specificity",
        "",
        "up",
        "choice",
        accuracy,
        note="share of mRNA called so, at P(lncRNA) < 0.5",
        where=rows_of(0),
    ),
    Metric(
        "balanced_accuracy",
        "",
        "up",
        "choice",
        balanced_accuracy,
        note="mean of recall and specificity",
        classes=true_class,
    ),
    Metric("accuracy", "", "up", "choice", accuracy, note="at P(lncRNA) ≥ 0.5"),
    Metric(
        "auprc",
        "",
        "up",
        "choice",
        transcript_auprc,
        note="average precision of lncRNA by P(lncRNA); of a random score the share of lncRNA",
        classes=true_class,
    ),
    Metric("brier", "", "down", "choice", brier_score, note="mean squared error of P(lncRNA)"),
    Metric(
        "calibration_error",
        "",
        "down",
        "choice",
        calibration_error,
        note=f"|mean P(lncRNA) − share of lncRNA| of each of {scores.BINS} bins, mean over records",
    ),
)
