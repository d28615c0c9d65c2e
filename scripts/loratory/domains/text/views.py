"""Questions, right answers, and what systems answered."""

from loratory.domains.text.metrics import is_same, token_f1
from loratory.domains.text.sources import Task
from loratory.domains.text.task import choice_label
from loratory.domains.views import (
    Answers,
    View,
    card,
    probability_table,
    short_text,
    small_table,
    surest_records,
    verdict,
)

SHOWN = 3  # questions that are answered best, and worst


def show_records(answers: Answers, task: Task) -> list[View]:
    cards = choice_cards(answers) if task.ask == "choice" else completion_cards(answers)
    return [View("Questions and answers, worst and best", "".join(cards))] if cards else []


def choice_cards(answers: Answers) -> list[str]:
    right, wrong = surest_records(answers, choice_label, SHOWN)
    return [
        card(
            record["id"],
            question_part(record),
            probability_table(answers, record["id"], record["choices"], choice_label(record)),
        )
        for record in [*wrong, *right]
    ]


def completion_cards(answers: Answers) -> list[str]:
    written = {id: row["text"] for id, row in answers.rows.get(answers.best, {}).items() if row["text"] is not None}
    known = [record for record in answers.records if record["id"] in written]
    known.sort(key=lambda record: (token_f1(written[record["id"]], record["answer"]), record["id"]))
    chosen = known if len(known) <= 2 * SHOWN else [*known[:SHOWN], *known[-SHOWN:]]
    return [card(record["id"], question_part(record), answer_table(answers, record)) for record in chosen]


def question_part(record: dict) -> str:
    question, answer = short_text(record["prompt"]), short_text(record["answer"])
    return f"<pre>{question}</pre>\n<p>Right answer: <b>{answer}</b></p>\n"


def answer_table(answers: Answers, record: dict) -> str:
    lines = []
    for system, rows in answers.rows.items():
        text = rows[record["id"]]["text"] if record["id"] in rows else None
        if text is not None:
            mark = verdict("right" if is_same(text, record["answer"]) else "wrong")
            lines.append([short_text(system), f"{short_text(text)} {mark}", f"{token_f1(text, record['answer']):.2f}"])
    return small_table(["system", "answer", "words in common (F1)"], lines)
