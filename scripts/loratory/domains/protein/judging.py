"""Answers beside the truth, and samples beside what they were asked for: the columns that metrics look at."""

from collections.abc import Mapping

from loratory.domains.protein.classifier import permuted_agreement, train_classifier
from loratory.domains.protein.labels import record_label
from loratory.domains.protein.quantities import SCALES, compute_quantities, is_exact, permuted_errors, read_numbers
from loratory.domains.protein.questions import CLOSE, read_label
from loratory.domains.protein.sources import ANSWERED, Task


def is_answer(row: Mapping, task: Task) -> bool:
    """Whether a text is about a record, and no sample: of sequences that are generated, the judge of samples writes
    such answers (their reference is a sequence, that of a sample the label that it is asked for)."""
    return task.ask in ANSWERED or (task.ask == "generate" and row["reference"].endswith(CLOSE))


def answer_columns(text: str, record: Mapping, task: Task) -> dict:
    """Of an answer about a record: whether it is one, `answered`, and how near to the truth it is.

    A classifier that judges samples leaves answers empty that it is not to be judged by.
    """
    if task.ask == "calculate":
        values = read_numbers(text, len(task.quantities))
        truths = compute_quantities(record["sequence"], task.quantities)
        return {"answered": values is not None, **value_columns(values, truths, task)}
    truth, answer = str(record_label(record, str(task.label))), read_label(text, task)
    if task.ask == "generate" and not text:
        return {"asked": truth}
    return {"asked": truth, "answered": answer is not None, "right": answer == truth}


def value_columns(values: list[float] | None, truths: list[float], task: Task) -> dict:
    """`right` (all values within their tolerance) and `exact` (as the truth would be written), 0 without values; of
    each quantity its `truth` and `value`."""
    if values is None:
        return {"right": False, "exact": False}
    triples = list(zip(task.quantities, values, truths))
    found: dict[str, float] = {
        "right": all(abs(value - truth) <= SCALES[name].tolerance for name, value, truth in triples),
        "exact": all(is_exact(value, truth) for _, value, truth in triples),
    }
    for name, value, truth in triples:
        found |= {f"value_{name}": value, f"truth_{name}": truth}
    return found


def control_columns(
    valid: Mapping[int, str], asked: Mapping[int, str], train: list[dict], task: Task
) -> dict[int, dict]:
    """Of samples that are asked for a label which the classifier of train records tells apart: whether a valid one
    `agrees` by it, how often one would if what is asked were dealt out anew, and whether it is valid and agrees."""
    judge = train_classifier(train, str(task.label), task.min_label)
    if judge is None:
        return {}
    judged = {i: label for i, label in asked.items() if label in judge.labels}
    rows = [i for i in valid if i in judged]
    predicted = dict(zip(rows, judge.classify([valid[i] for i in rows])))
    chance = permuted_agreement(predicted, judged)
    found = {i: {"asked": label, "succeeds": predicted.get(i) == label} for i, label in judged.items()}
    for i, label in predicted.items():
        found[i] |= {"agrees": label == judged[i], "agrees_permuted": chance[i]}
    return found


def design_columns(valid: Mapping[int, str], asked: Mapping[int, str], task: Task) -> dict[int, dict]:
    """Of samples that are asked for values: those of valid ones, computed, beside what is asked."""
    found: dict[int, dict] = {}
    for i, text in asked.items():
        truths = read_numbers(f"[{text}]", len(task.quantities))
        assert truths is not None  # `asked_value` wrote them
        own = compute_quantities(valid[i], task.quantities) if i in valid else None
        found[i] = value_columns(own, truths, task)
    for name in task.quantities:
        values, dealt = ({i: found[i][f"{kind}_{name}"] for i in valid} for kind in ("value", "truth"))
        for i, error in permuted_errors(values, dealt).items():
            found[i][f"permuted_{name}"] = error
    return found
