"""Records → a prompt that shows the user's latest ratings and asks for yes or no; controls without a model."""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache, partial

from loratory.domains.contract import Example, prediction_row
from loratory.domains.recsys.context import past_events, record_context
from loratory.domains.recsys.controls import KEYS, Score, fit_controls
from loratory.domains.recsys.ranking import ranking_lists as ranking_lists
from loratory.domains.recsys.retrieval import similar_events
from loratory.domains.recsys.sources import Task

CHOICES = (" no", " yes")


def examples(records: list[dict], task: Task, family: str) -> list[Example]:
    return [
        Example(
            id=record["id"],
            group=record["group"],
            prompt=record_prompt(record, task),
            target=CHOICES[record["label"]],
            choices=CHOICES,
            context=record_context(record),
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
    events = past_events(record)
    similar = task.shows == "similar"
    events = similar_events(events, record["title"], task.history) if similar else events[-task.history :]
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


@lru_cache(1 << 16)
def plain_title(title: str, longest: int) -> str:
    """A title that stays one line and cannot close the marks around it."""
    text = " ".join("".join(c if c.isprintable() else " " for c in title).split())
    text = re.sub(r"\*{2,}", "*", text).strip("*")
    return text if len(text) <= longest else text[: longest - 3] + "..."


def baselines(train: Sequence[dict], held_out: list[dict], task: Task) -> dict[str, list[dict]]:
    """See `controls.fit_controls`."""
    return {system: answer(held_out) for system, answer in fit_baselines(train, task).items()}


def fit_baselines(train: Sequence[dict], task: Task) -> dict[str, Callable[[list[dict]], list[dict]]]:
    controls = fit_controls(train, partial(shown_events, task=task), task.averages, task.searched)
    return {system: partial(control_rows, score=score) for system, score in controls.items()}


def control_rows(records: list[dict], score: Score) -> list[dict]:
    return [prediction_row(r, CHOICES[r["label"]], p=p) for r, p in zip(records, score(records))]
