"""Records → a prompt that shows the user's latest ratings and asks for yes or no; controls without a model."""

import json
import re
from collections import defaultdict

from loratory.domains.contract import Example

CHOICES = (" no", " yes")
PRIOR = 5  # records that the overall share of likes weighs as in the smoothed means
QUESTION = """\
Based on these ratings, deduce whether the user will like the movie ***{title}***.
More stars mean that the user liked a movie more.
Answer only yes or no:"""


def examples(records, task, family) -> list[Example]:
    return [
        Example(
            id=record["id"],
            group=record["group"],
            prompt=prompt(record, task),
            target=CHOICES[record["label"]],
            choices=CHOICES,
        )
        for record in records
    ]


def prompt(record: dict, task) -> str:
    """At most `max_prompt` characters as long as ratings can be left out, the oldest first; never without its end.

    Shape after ReLLa (arXiv 2308.11131) and RecLoRA (arXiv 2408.03533), answers in lower case.
    """
    events = json.loads(record["history"])[-task.history :]
    shown = [f"- {plain(title, task.max_title)} ({stars:g} stars)" for _, title, stars in events]
    head = [record["profile"]] if record["profile"] else []
    head.append("The user rated these movies in the past, in this order:")
    question = QUESTION.format(title=plain(record["title"], task.max_title))
    text = "\n".join([*head, *shown, question])
    while shown and len(text) > task.max_prompt:
        text = "\n".join([*head, *(shown := shown[1:]), question])
    return text


def plain(title: str, longest: int) -> str:
    """A title that stays one line and cannot close the marks around it."""
    text = " ".join("".join(c if c.isprintable() else " " for c in title).split())
    text = re.sub(r"\*{2,}", "*", text).strip("*")
    return text if len(text) <= longest else text[: longest - 3] + "..."


def baselines(train, test, task) -> dict[str, list[dict]]:
    """Share of likes in train: of all, of the item, of the user; the latter two smoothed towards the first."""
    overall = sum(record["label"] for record in train) / len(train)
    means = {
        "constant": lambda record: overall,
        "item_mean": smoothed(train, "item", overall),
        "user_mean": smoothed(train, "user", overall),
    }
    return {system: [row(record, mean(record)) for record in test] for system, mean in means.items()}


def smoothed(train, column: str, overall: float):
    """record -> mean label of its `column` in train, as if `PRIOR` records more had the overall mean."""
    likes, n = defaultdict(int), defaultdict(int)
    for record in train:
        likes[record[column]] += record["label"]
        n[record[column]] += 1

    def mean(record):
        key = record[column]
        return (likes.get(key, 0) + PRIOR * overall) / (n.get(key, 0) + PRIOR)

    return mean


def row(record: dict, p: float) -> dict:
    unused = dict.fromkeys(("nll", "tokens", "text"))
    return {"id": record["id"], "group": record["group"], "reference": CHOICES[record["label"]], "p": p, **unused}
