"""Controls that need no language model: they learn from train, and read of a record what a model may read of it."""

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from statistics import fmean
from typing import Any

import numpy as np

from loratory.domains.recsys.context import record_context
from loratory.domains.regression import fit_logistic_regression

KEYS = ("user", "item")
PRIOR = 5  # records that the overall share of likes weighs as in the smoothed means
SEED = 0  # of the recommender, which is the only one of them that draws
Score = Callable[[Sequence[dict]], list[float]]  # P(liked) of each record
Features = Callable[[dict], list[float]]


def fit_controls(
    train: Sequence[dict], shown: Callable[[dict], list[list]], averages: bool, searched: int | None = None
) -> dict[str, Score]:
    """{control: what tells its P(liked) of records}.

    `constant`, `item_mean`, `user_mean`: share of likes in train, the latter two smoothed towards the first. By
    logistic regression on train: `popularity`, how many ratings of train the item has; `history_mean` and `past_mean`,
    mean of the stars that the prompt shows, and of all that the user gave before; `history_regression`, what the
    prompt shows and states, and the item's mean and popularity in train. `din`: a sequential recommender over all
    that the record carries (`domains.recommender`); `sim`, the same that attends to `searched` of the past alone.

    Args:
        shown: record -> the [timestamp, title, stars] of the past that its prompt shows.
        averages: whether the prompt states what is known of user and item before the record.
        searched: past ratings that `sim` attends to; there is none if None.
    """
    overall = fmean(record["label"] for record in train)
    label = [record["label"] for record in train]
    found: dict[str, Score] = {
        "constant": lambda records: [overall for _ in records],
        "item_mean": share_score(train, "item", overall),
        "user_mean": share_score(train, "user", overall),
    }
    for name, features in control_features(train, shown, averages).items():
        found[name] = regression_score(train, label, features)
    found["din"] = recommender_score(train)
    return found if searched is None else found | {"sim": recommender_score(train, searched)}


def share_score(train: Sequence[dict], column: str, overall: float) -> Score:
    """The mean label of a record's `column` in train, as if `PRIOR` records more had the overall mean."""
    likes: dict[str, int] = defaultdict(int)
    n: dict[str, int] = defaultdict(int)
    for record in train:
        likes[record[column]] += record["label"]
        n[record[column]] += 1

    def record_share(record: dict) -> float:
        key = record[column]
        return (likes.get(key, 0) + PRIOR * overall) / (n.get(key, 0) + PRIOR)

    return lambda records: [record_share(record) for record in records]


def regression_score(train: Sequence[dict], label: Sequence[int], features: Features) -> Score:
    told = fit_logistic_regression(feature_matrix(train, features), label)
    return lambda records: told(feature_matrix(records, features)).tolist() if records else []


def feature_matrix(records: Sequence[dict], features: Features) -> np.ndarray:
    """(n, features); no list of all of them is made on the way."""
    values = (value for record in records for value in features(record))
    return np.fromiter(values, float).reshape(len(records), -1)


def recommender_score(train: Sequence[dict], searched: int | None = None) -> Score:
    """Torch is needed here alone, and takes a second to import."""
    from loratory.domains.recommender import fit_recommender, like_probabilities

    in_time = sorted((r["timestamp"], r["id"], record_context(r), r["label"]) for r in train)
    _, _, contexts, labels = zip(*in_time)
    model = fit_recommender(contexts, labels, SEED, searched)
    return lambda records: like_probabilities(model, [*map(record_context, records)])


def control_features(
    train: Sequence[dict], shown: Callable[[dict], list[list]], averages: bool
) -> dict[str, Features]:
    """{control: record -> the numbers that it reads}."""
    items = ItemPast(train)
    least = min((record["rating"] for record in train if record["label"]), default=math.inf)
    usual = fmean(record["rating"] for record in train)

    def shown_stars(record: dict) -> list[float]:
        return [stars for *_, stars in shown(record)] or [usual]  # a long title may leave no room for ratings

    def read_prompt(record: dict) -> list[float]:
        stars, stated = shown_stars(record), []
        if averages:
            stated = [value for of in KEYS for value in shrunk_average(record, of, usual)]
        liked = fmean(each >= least for each in stars)
        return [fmean(stars), liked, len(stars), stars[-1], *items.features(record), *stated]

    return {
        "popularity": lambda record: items.features(record)[1:],
        "history_mean": lambda record: [fmean(shown_stars(record))],
        "past_mean": lambda record: [record["user_mean"]],
        "history_regression": read_prompt,
    }


def shrunk_average(record: Mapping[str, Any], of: str, usual: float) -> tuple[float, float]:
    """Mean stars before the record as if `PRIOR` usual ratings came with them, and log of 1 + their number."""
    n = record[f"{of}_ratings"]
    return (n * record[f"{of}_mean"] + PRIOR * usual) / (n + PRIOR), math.log1p(n)


class ItemPast:
    """What train knows of items before a second: so no record of train has its own label in its features, and those of
    train hold as little of the future as those of held-out records."""

    def __init__(self, train: Sequence[dict]):
        rated: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for record in train:
            rated[record["item"]].append((record["timestamp"], record["label"]))
        self.times: dict[str, list[int]] = {}
        self.likes: dict[str, list[int]] = {}
        for item, pairs in rated.items():
            times, labels = zip(*sorted(pairs))
            self.times[item], self.likes[item] = [*times], [*accumulate(labels, initial=0)]
        self.overall = fmean(record["label"] for record in train)

    def features(self, record: Mapping[str, Any]) -> list[float]:
        """[smoothed share of likes of its item, log of 1 + their number], over the ratings of train before it."""
        item = record["item"]
        n = bisect_left(self.times.get(item, []), record["timestamp"])
        share = (self.likes.get(item, [0])[n] + PRIOR * self.overall) / (n + PRIOR)
        return [share, math.log1p(n)]
