"""How well the probability of yes ranks, whether it can be believed, and where the liked item stands among all items.

VERSION is raised when a metric changes its meaning: every file of metrics carries it, and tables print it above 1.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from loratory.domains import scores
from loratory.domains.bins import rows_between
from loratory.domains.contract import Columns, Metric
from loratory.domains.recsys.sources import Task

BINS = 10


def columns(rows: list[dict], records: list[dict], task: Task) -> dict[str, np.ndarray]:
    """Of each row `label` (1 for yes), `p`, `user` (numbered from 0), `past` and `item_past` (how many earlier ratings
    user and item have), `warm` (1 if train knows the user, 0 if not, -1 if that is not said), and `above` and `tied`
    (how many other items score higher, and as high, where all are ranked)."""
    known = {record["id"]: record for record in records}
    of_rows = [known[row["id"]] for row in rows]
    _, users = np.unique([row["group"] for row in rows], return_inverse=True)
    found = {name: np.array([row.get(name) for row in rows], float) for name in ("p", "above", "tied")}
    return found | {
        "label": np.array([record["label"] for record in of_rows], int),
        "user": users,
        "past": np.array([record["user_ratings"] for record in of_rows], int),
        "item_past": np.array([record["item_ratings"] for record in of_rows], int),
        "warm": np.array([record.get("known_user", -1) for record in of_rows], int),
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


def is_warm(columns: Columns, warm: int) -> np.ndarray:
    return columns["warm"] == warm


def is_popular(columns: Columns, third: int) -> np.ndarray:
    """(n,) bool: the record is of that third, from 0, by its item's number of earlier ratings; ties stand together."""
    cuts = np.quantile(columns["item_past"], [1 / 3, 2 / 3]) if columns["item_past"].size else [0, 0]
    return np.searchsorted(cuts, columns["item_past"], "left") == third


def rank_weights(columns: Columns, weight: Callable[[np.ndarray], np.ndarray]) -> float:
    """Mean weight of the place of the liked item, from 1; of equal scores, the mean over all orders of them."""
    above, tied = columns["above"], columns["tied"]
    if not above.size or np.isnan(above).any() or np.isnan(tied).any():
        return np.nan
    sums = np.r_[0.0, np.cumsum(weight(1.0 + np.arange(int((above + tied).max()) + 1)))]
    first, last = above.astype(int), (above + tied).astype(int) + 1
    return float(np.mean((sums[last] - sums[first]) / (tied + 1)))


def hit_weights(places: np.ndarray, k: int) -> np.ndarray:
    return (places <= k).astype(float)


def gain_weights(places: np.ndarray, k: int) -> np.ndarray:
    return (places <= k) / np.log2(places + 1)


def auc_of(name: str, note: str, where: Callable[[Columns], np.ndarray]) -> Metric:
    """AUC over some records alone."""
    labels = lambda columns: columns["label"]  # noqa: E731
    return Metric(f"auc_{name}", "", "up", "choice", rating_auc, note=note, where=where, classes=labels)


def rank_metric(name: str, note: str, weight: Callable[[np.ndarray], np.ndarray]) -> Metric:
    """A mean over users of how high the item stands that each liked next, among all items new to them."""
    return Metric(name, "", "up", "rank", partial(rank_weights, weight=weight), note=f"{note}; {RANKED}")


K = 10  # places that count as the top
RANKED = "all items that the user has not rated compete, equal scores in every order"
TRAIN_KEYS = ("user", "item")
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
    auc_of("cold_users", "over records of users that train has never seen", partial(is_warm, warm=0)),
    auc_of("warm_users", "over records of users that train knows", partial(is_warm, warm=1)),
    auc_of("short_past", "over records of users with fewer than 10 earlier ratings", rows_between("past", 0, 10)),
    auc_of("mid_past", "over records of users with 10 to 49 earlier ratings", rows_between("past", 10, 50)),
    auc_of("long_past", "over records of users with 50 or more", rows_between("past", 50)),
    auc_of(
        "rare_items",
        "over the third of the records with the fewest earlier ratings of the item",
        partial(is_popular, third=0),
    ),
    auc_of("mid_items", "over the middle third", partial(is_popular, third=1)),
    auc_of("popular_items", "over the third with the most", partial(is_popular, third=2)),
    rank_metric(f"hit_rate_{K}", f"share of users whose item is among the first {K}", partial(hit_weights, k=K)),
    rank_metric(f"ndcg_{K}", f"1 / log2(place + 1) of the item, 0 behind the first {K}", partial(gain_weights, k=K)),
    rank_metric("mrr", "1 / place of the item", np.reciprocal),
)
