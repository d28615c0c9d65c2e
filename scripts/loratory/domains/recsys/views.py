"""A user's past beside what is asked, what is true and what systems say."""

from datetime import UTC, datetime
from html import escape

from loratory.domains.recsys.sources import Task
from loratory.domains.recsys.task import CHOICES, shown_events
from loratory.domains.views import Answers, View, card, probability_table, short_text, small_table, surest_records

SHOWN = 3  # questions that are answered right, and wrong
ROWS = 10**8  # a time below it, in seconds the year 1973, is the number of a row: there are no times
NOTE = "The past is what the prompt shows, oldest first. The questions that {best} is surest about."


def show_records(answers: Answers, task: Task) -> list[View]:
    right, wrong = surest_records(answers, lambda record: record["label"], SHOWN)
    cards = [question_card(answers, record, task) for record in [*wrong, *right]]
    note = escape(NOTE.format(best=answers.best))
    return [View("Users' pasts and predictions, wrong and right", f"<p>{note}</p>\n{''.join(cards)}")] if cards else []


def question_card(answers: Answers, record: dict, task: Task) -> str:
    past = [[time_text(time), short_text(title), f"{stars:g} ★"] for time, title, stars in shown_events(record, task)]
    shown = small_table(["when", "what", "how"], past) if past else "<p>no past</p>\n"
    truth = f"{CHOICES[record['label']].strip()} ({record['rating']:g} ★)"
    asked = f"<p>Asked on {time_text(record['timestamp'])}: <b>{short_text(record['title'])}</b>. Liked: {truth}</p>\n"
    table = probability_table(answers, record["id"], CHOICES, record["label"])
    return card(f"user {record['user']}", f'<div class="beside">{shown}<div>{asked}{table}</div></div>\n')


def time_text(timestamp: int) -> str:
    """The day, or the place among the rows."""
    return f"row {timestamp}" if abs(timestamp) < ROWS else f"{datetime.fromtimestamp(timestamp, UTC):%Y-%m-%d}"
