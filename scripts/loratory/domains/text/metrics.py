"""How well answers are written, or chosen."""

import re
import string
from collections import Counter
from collections.abc import Callable

import numpy as np

from loratory.domains import scores
from loratory.domains.contract import Columns, Metric
from loratory.domains.text.sources import Task
from loratory.domains.text.task import choice_label

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def columns(rows: list[dict], records: list[dict], task: Task) -> dict[str, np.ndarray]:
    """`nll` (nats), `tokens`, `exact` and `f1` (0–1) of completions, `label` and `p` of choices; NaN where a row has
    no such output."""
    if task.ask == "choice":
        labels = {record["id"]: choice_label(record) for record in records}
        return {
            "label": np.array([labels[row["id"]] for row in rows], int),
            "p": np.array([row["p"] for row in rows], float),
        }
    written = [(row["text"], row["reference"]) for row in rows]
    return {
        "nll": np.array([row["nll"] for row in rows], float),
        "tokens": np.array([row["tokens"] for row in rows], float),
        "exact": np.array([np.nan if text is None else is_same(text, answer) for text, answer in written], float),
        "f1": np.array([np.nan if text is None else token_f1(text, answer) for text, answer in written], float),
    }


def is_same(text: str, reference: str) -> bool:
    """Whether two texts differ in nothing but white space and case."""
    return text.casefold().split() == reference.casefold().split()


def token_f1(text: str, reference: str) -> float:
    """Harmonic mean of precision and recall of words, in lower case, without ASCII punctuation and English articles.

    Of a text without words: 1 if the other has none either, else 0. Source: the evaluation script of SQuAD 2.0,
    Rajpurkar et al. 2018, arXiv:1806.03822.
    """
    one, other = (ARTICLES.sub(" ", each.lower().translate(PUNCTUATION)).split() for each in (text, reference))
    if not one or not other:
        return float(one == other)
    return 2 * (Counter(one) & Counter(other)).total() / (len(one) + len(other))


def nll_per_token(columns: Columns) -> float:
    tokens = columns["tokens"].sum()
    return float(columns["nll"].sum() / tokens) if tokens else float("nan")


def mean_of(name: str) -> Callable[[Columns], float]:
    """columns -> mean of a column; NaN without rows."""
    return lambda columns: float(columns[name].mean()) if len(columns[name]) else float("nan")


def accuracy(columns: Columns) -> float:
    p = columns["p"]
    return float(np.mean((p >= 0.5) == columns["label"])) if p.size and not np.isnan(p).any() else float("nan")


def log_loss(columns: Columns) -> float:
    return scores.log_loss(columns["label"], columns["p"])


TRAIN_KEYS = ()
VERSION = 1
WRITTEN, CHOSEN = ("completion",), ("choice",)
METRICS = (
    Metric(
        "token_f1",
        "",
        "up",
        "text",
        mean_of("f1"),
        primary=True,
        questions=WRITTEN,
        note="words in common with the completion, as SQuAD counts them",
    ),
    Metric(
        "exact_match",
        "",
        "up",
        "text",
        mean_of("exact"),
        questions=WRITTEN,
        note="share of answers that are the completion, whatever their case and white space",
    ),
    Metric(
        "nll_per_token",
        "nats/token",
        "down",
        "nll",
        nll_per_token,
        loss=True,
        questions=WRITTEN,
        note="of completions with their end, by each base's own tokens; what learning rates are chosen by, on other"
        " records",
    ),
    Metric(
        "accuracy",
        "",
        "up",
        "choice",
        accuracy,
        primary=True,
        questions=CHOSEN,
        note="share of records whose right answer is the likelier one",
    ),
    Metric("log_loss", "nats", "down", "choice", log_loss, loss=True, questions=CHOSEN, note=scores.CLIP_NOTE),
)
