"""Records → a prompt that shows the user's latest ratings and asks for yes or no; controls without a model."""

import math
import re
from collections import defaultdict
from collections.abc import Callable
from itertools import groupby
from operator import itemgetter
from statistics import fmean

import numpy as np

from loratory.domains.contract import Example, prediction_row
from loratory.domains.recsys.sources import Task
from loratory.domains.regression import logistic_regression

CHOICES = (" no", " yes")
KEYS = ("user", "item")
PRIOR = 5  # records that the overall share of likes weighs as in the smoothed means


def examples(records: list[dict], task: Task, family: str) -> list[Example]:
    return [
        Example(
            id=record["id"],
            group=record["group"],
            prompt=record_prompt(record, task),
            target=CHOICES[record["label"]],
            choices=CHOICES,
        )
        for record in records
    ]


def record_prompt(record: dict, task: Task) -> str:
    """At most `max_prompt` characters as long as ratings can be left out, the oldest first; never without its end.

    Shape after ReLLa (arXiv 2308.11131) and RecLoRA (arXiv 2408.03533), answers in lower case.
    """
    return prompt_text(record, shown_events(record, task), task)


def shown_events(record: dict, task: Task) -> list[list]:
    """The [timestamp, title, stars] that the prompt shows, oldest first."""
    names = ("times", "titles", "stars")
    events = [*map(list, zip(*(record[f"history_{name}"][-task.history :] for name in names)))]
    room = task.max_prompt - len(prompt_text(record, [], task))
    sizes = [len(event_line(event, task)) + 1 for event in events]
    while events and sum(sizes) > room:
        events, sizes = events[1:], sizes[1:]
    return events


def prompt_text(record: dict, events: list[list], task: Task) -> str:
    head = [record["profile"]] if record["profile"] else []
    shown = [event_line(event, task) for event in events]
    averages = average_lines(record, task) if task.averages else []
    question = task.question_text.format(title=plain_title(record["title"], task.max_title))
    return "\n".join([*head, task.heading.format(), *shown, *averages, question])


def event_line(event: list, task: Task) -> str:
    _, title, stars = event
    return task.event.format(title=plain_title(title, task.max_title), rating=f"{stars:g}")


def average_lines(record: dict, task: Task) -> list[str]:
    """What is known of the user and of the item before the record, a line each."""
    user, item = ({"mean": f"{record[f'{of}_mean']:.2f}", "count": record[f"{of}_ratings"]} for of in KEYS)
    others = task.item_average.format(**item) if record["item_ratings"] else task.no_average.format()
    return [task.user_average.format(**user), others]


def plain_title(title: str, longest: int) -> str:
    """A title that stays one line and cannot close the marks around it."""
    text = " ".join("".join(c if c.isprintable() else " " for c in title).split())
    text = re.sub(r"\*{2,}", "*", text).strip("*")
    return text if len(text) <= longest else text[: longest - 3] + "..."


def baselines(train: list[dict], held_out: list[dict], task: Task) -> dict[str, list[dict]]:
    """Controls that read train, and of a record its item, its user and the ratings before it.

    `constant`, `item_mean`, `user_mean`: share of likes in train, the latter two smoothed towards the first.
    Probabilities by logistic regressions on train: `popularity`, how many ratings of train the item has;
    `history_mean` and `past_mean`, mean of the stars that the prompt shows, and of all that the record carries;
    `history_regression`, what the prompt shows and states, and the item's mean and popularity in train.
    """
    overall = fmean(record["label"] for record in train)
    shares = {
        "constant": lambda record: overall,
        "item_mean": smoothed_shares(train, "item", overall),
        "user_mean": smoothed_shares(train, "user", overall),
    }
    found = {system: [share(record) for record in held_out] for system, share in shares.items()}
    label = [record["label"] for record in train]
    for system, (x_train, x_test) in control_features(train, held_out, task).items():
        found[system] = logistic_regression(np.array(x_train), label, np.array(x_test)).tolist()
    return {
        system: [prediction_row(record, CHOICES[record["label"]], p=p) for record, p in zip(held_out, each)]
        for system, each in found.items()
    }


def control_features(train: list[dict], held_out: list[dict], task: Task) -> dict[str, tuple[list, list]]:
    """{control: its features of train, of the held-out records}, a list of numbers for each record."""
    items = item_features(train, held_out)
    least = min((record["rating"] for record in train if record["label"]), default=math.inf)
    usual = fmean(record["rating"] for record in train)

    def record_features(record: dict) -> dict[str, list[float]]:
        item, shown = items[record["id"]], [stars for *_, stars in shown_events(record, task)]
        known = shown or [usual]  # a long title may leave no room for ratings
        liked = fmean(stars >= least for stars in known)
        averages = [value for of in KEYS for value in shrunk_average(record, of, usual)] if task.averages else []
        return {
            "popularity": item[1:],
            "history_mean": [fmean(known)],
            "past_mean": [fmean(record["history_stars"])],
            "history_regression": [fmean(known), liked, len(shown), known[-1], *item, *averages],
        }

    first, second = ([record_features(record) for record in part] for part in (train, held_out))
    return {system: ([of[system] for of in first], [of[system] for of in second]) for system in first[0]}


def shrunk_average(record: dict, of: str, usual: float) -> tuple[float, float]:
    """Mean stars before the record as if `PRIOR` usual ratings came with them, and log of 1 + their number."""
    n = record[f"{of}_ratings"]
    return (n * record[f"{of}_mean"] + PRIOR * usual) / (n + PRIOR), math.log1p(n)


def item_features(train: list[dict], held_out: list[dict]) -> dict[str, list[float]]:
    """{record: [smoothed share of likes of its item, log of 1 + their number]}, over the ratings of train before it.

    So no record of train has its own label in its features, and the features of train hold as little of the future as
    those of the held-out records.
    """
    overall, learnt = fmean(record["label"] for record in train), {record["id"] for record in train}
    likes: dict[str, int] = defaultdict(int)
    n: dict[str, int] = defaultdict(int)
    found = {}
    in_time = sorted([*train, *held_out], key=itemgetter("timestamp"))
    for _, second in groupby(in_time, key=itemgetter("timestamp")):
        together = list(second)
        for record in together:
            item = record["item"]
            share = (likes[item] + PRIOR * overall) / (n[item] + PRIOR)
            found[record["id"]] = [share, math.log1p(n[item])]
        for record in together:
            if record["id"] in learnt:
                likes[record["item"]] += record["label"]
                n[record["item"]] += 1
    return found


def smoothed_shares(train: list[dict], column: str, overall: float) -> Callable[[dict], float]:
    """record -> mean label of its `column` in train, as if `PRIOR` records more had the overall mean."""
    likes: dict[str, int] = defaultdict(int)
    n: dict[str, int] = defaultdict(int)
    for record in train:
        likes[record[column]] += record["label"]
        n[record[column]] += 1

    def record_share(record: dict) -> float:
        key = record[column]
        return (likes.get(key, 0) + PRIOR * overall) / (n.get(key, 0) + PRIOR)

    return record_share
