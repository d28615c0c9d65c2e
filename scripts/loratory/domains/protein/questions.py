"""What is asked of a protein and what the answer is, in words.

`sequence` is stage 1 of ProLLaMA (https://github.com/PKU-YuanGroup/ProLLaMA), `generate` and `determine` are its
stage 2; `calculate` and `design` are this project's interpretation of X-LoRA's protein tasks (see `quantities`). A
sequence always ends in CLOSE, and its opening stands in the prompt.
"""

import re
from collections.abc import Callable, Mapping, Sequence

from loratory.domains.protein.labels import record_label
from loratory.domains.protein.quantities import compute_quantities, quantity_title, write_numbers
from loratory.domains.protein.sources import LABELLED, Task
from loratory.errors import InputError

PROMPT, CLOSE = "Seq=<", ">"
AMBIGUOUS = "X"  # written as it is where `dataset.max_ambiguous` keeps it and `tokens` is `text`


def asked_records(records: Sequence[dict], task: Task) -> Sequence[dict]:
    """The records that the question can be put of: of a label, those with exactly one.

    Raises:
        InputError: there are none.
    """
    if task.ask not in LABELLED:
        return records
    found = [record for record in records if record_label(record, str(task.label)) is not None]
    if records and not found:
        what, fix = f"none of {len(records)} records has exactly one value of it", "give more labelled records"
        raise InputError("task.label", what, task.label, "labelled records in every split", fix)
    return found


def asked_value(record: Mapping, task: Task) -> str:
    """What a sequence that is generated or designed should have: a record's label, or what follows from it."""
    if task.ask == "sequence":
        return ""
    if task.ask in LABELLED:
        return str(record_label(record, str(task.label)))
    return write_numbers(compute_quantities(record["sequence"], task.quantities))


def sequence_prompt(value: str, task: Task) -> str:
    """What a sequence is to be the continuation of."""
    if task.ask == "generate":
        return f"[Generate by {task.label}] {label_text(value, task)} {PROMPT}"
    if task.ask == "design":
        return f"Generate{quantity_title(task.quantities)}<{value}> {PROMPT}"
    return PROMPT


def label_text(value: str, task: Task) -> str:
    return f"{str(task.label).capitalize()}=<{value}>"


def question_and_answer(record: Mapping, task: Task) -> tuple[str, str]:
    """The prompt and the target of a record."""
    return QUESTIONS[task.ask](record, task)


def sequence_question(record: Mapping, task: Task) -> tuple[str, str]:
    return sequence_prompt(asked_value(record, task), task), record["sequence"] + CLOSE


def label_question(record: Mapping, task: Task) -> tuple[str, str]:
    prompt = f"[Determine {task.label}] {PROMPT}{record['sequence']}{CLOSE}"
    return prompt, f" {label_text(asked_value(record, task), task)}"


def quantity_question(record: Mapping, task: Task) -> tuple[str, str]:
    prompt = f"Calculate{quantity_title(task.quantities)}<{record['sequence']}{CLOSE}"
    return prompt, f" [{asked_value(record, task)}]"


QUESTIONS: dict[str, Callable[[Mapping, Task], tuple[str, str]]] = {
    "sequence": sequence_question,
    "generate": sequence_question,
    "design": sequence_question,
    "determine": label_question,
    "calculate": quantity_question,
}


def read_label(text: str, task: Task) -> str | None:
    """The label that an answer names; None if it is in another format."""
    match = re.fullmatch(rf"{str(task.label).capitalize()}=<([^<>]+)>", text.strip())
    return match[1] if match else None
