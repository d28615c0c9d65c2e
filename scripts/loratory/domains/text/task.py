"""Rows as questions to a model, and what answers them without a language model."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from loratory.data.shingles import split_words
from loratory.domains.contract import Example, prediction_row
from loratory.domains.text.sources import Task
from loratory.errors import InputError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

ROWS = 256  # of held-out records whose prompts are compared with those of train at once


def examples(records: list[dict], task: Task, family: str) -> list[Example]:
    """Raises:
    InputError: the records put another question than the task.
    """
    check_question(records, task)
    separator = "" if task.chat else task.separator
    return [
        Example(
            id=record["id"],
            group=record["group"],
            prompt=record["prompt"] + separator,
            target=record["answer"],
            choices=tuple(record["choices"]),
        )
        for record in records
    ]


def check_question(records: Iterable[dict], task: Task) -> None:
    """Raises:
    InputError: the records put another question than the task.
    """
    for record in records:
        asked = "choice" if record["choices"] else "completion"
        if asked != task.ask:
            fix = f"set `task: {{ask: {asked}}}` of the domain"
            raise InputError(f"task.ask:{record['id']}", "the records put another question", task.ask, asked, fix)


def baselines(train: Sequence[dict], held_out: list[dict], task: Task) -> dict[str, list[dict]]:
    """Prediction rows of controls that read the prompt, or nothing.

    Of a completion: `commonest`, train's most frequent one; `nearest_prompt`, that of the train record with the most
    similar prompt (cosine of TF-IDF over words). Of a choice: `majority`, the share of each answer in train;
    `word_regression`, a logistic regression on TF-IDF of the prompt's words.
    """
    check_question(chain(train, held_out), task)
    if task.ask == "choice":
        return choice_baselines(train, held_out)
    counts = Counter(record["answer"] for record in train)
    commonest = min(counts, key=lambda answer: (-counts[answer], answer))
    answers = {"commonest": [commonest] * len(held_out), "nearest_prompt": nearest_answers(train, held_out)}
    return {
        system: [prediction_row(record, record["answer"], text=text) for record, text in zip(held_out, texts)]
        for system, texts in answers.items()
    }


def nearest_answers(train: Sequence[dict], held_out: list[dict]) -> list[str]:
    """The answers to the most similar prompts of train; of equally similar ones, to the first."""
    answers = [record["answer"] for record in train]
    known, asked = word_weights(train, held_out)
    places = [(asked[at : at + ROWS] @ known.T).toarray().argmax(1) for at in range(0, len(held_out), ROWS)]
    return [answers[place] for place in np.concatenate([*places, np.array([], int)]).tolist()]


def choice_baselines(train: Sequence[dict], held_out: list[dict]) -> dict[str, list[dict]]:
    from sklearn.linear_model import LogisticRegression

    labels = [choice_label(record) for record in train]
    shares = np.full(len(held_out), np.mean(labels))
    answers = {"majority": shares, "word_regression": shares}
    if held_out and len({*labels}) == 2:
        known, asked = word_weights(train, held_out)
        answers["word_regression"] = LogisticRegression(max_iter=1000).fit(known, labels).predict_proba(asked)[:, 1]
    return {
        system: [prediction_row(record, record["answer"], p=p) for record, p in zip(held_out, shares.tolist())]
        for system, shares in answers.items()
    }


def choice_label(record: dict) -> int:
    """1 if the second of the choices is right, else 0."""
    return record["choices"].index(record["answer"])


def word_weights(train: Sequence[dict], held_out: list[dict]) -> "tuple[csr_matrix, csr_matrix]":
    """TF-IDF of the prompts' words, `[records, words of train]` each."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer: Any = TfidfVectorizer(analyzer=split_words)
    known = vectorizer.fit_transform(record["prompt"] for record in train)
    return known, vectorizer.transform(record["prompt"] for record in held_out)
