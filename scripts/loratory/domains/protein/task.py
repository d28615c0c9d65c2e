"""Proteins as questions to a model (see `questions`), and what answers them without a language model."""

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain, cycle, islice

import numpy as np

from loratory.data.alphabets import RESIDUES, invalid_letters
from loratory.data.splits import hash_position, sample_by_hash
from loratory.domains.contract import Example, prediction_row
from loratory.domains.protein.classifier import train_classifier
from loratory.domains.protein.labels import record_label
from loratory.domains.protein.quantities import (
    composition_regression,
    compute_quantities,
    train_means,
    write_numbers,
)
from loratory.domains.protein.questions import (
    AMBIGUOUS,
    CLOSE,
    asked_records,
    asked_value,
    label_text,
    question_and_answer,
    sequence_prompt,
)
from loratory.domains.protein.sources import Task
from loratory.errors import InputError

LETTERS = (*RESIDUES, CLOSE)
OPEN = len(LETTERS)  # the number of the mark before a sequence
STRENGTHS = (10_000, 1_000, 100, 10)  # of a shorter context in a longer one
HELD_OUT_SEED = 1  # not the seed of splits, of which train's groups are one end


def examples(records: list[dict], task: Task, family: str) -> list[Example]:
    """Answers are scored, questions are not; of a masked base, residues alone.

    Raises:
        InputError: as `asked_records`; a masked base, which writes nothing, is asked for more than the sequence.
    """
    if family == "masked":
        if task.ask != "sequence":
            raise InputError("task.ask", "a masked base writes no answer", task.ask, "`sequence`, or a causal base")
        letters = tuple(RESIDUES) if task.tokens == "letters" else ()
        return [Example(r["id"], r["group"], "", r["sequence"], alphabet=letters) for r in records]
    return [
        Example(record["id"], record["group"], *question_and_answer(record, task), alphabet=task_alphabet(task))
        for record in asked_records(records, task)
    ]


def sample_prompts(test: list[dict], n: int, task: Task, family: str) -> list[Example]:
    """What samples should have is what `prompting_records` have; of a sequence alone, nothing is asked."""
    known = prompting_records(test, n, task) if task.ask != "sequence" else ()
    values = [asked_value(record, task) for record in known] or [""] * n
    return [
        Example(name, name, sequence_prompt(value, task), "", alphabet=task_alphabet(task), asked=value)
        for name, value in zip(sample_names(n), values)
    ]


def sample_names(n: int) -> list[str]:
    return [f"sample-{number:04d}" for number in range(1, n + 1)]


def prompting_records(test: list[dict], n: int, task: Task) -> list[dict]:
    """`n` test records whose sequences may be folded (without X), over again where there are fewer; labels take turns,
    so that samples are spread evenly over them."""
    known = [record for record in asked_records(test, task) if AMBIGUOUS not in record["sequence"]]
    if not task.label:
        return list(islice(cycle(sample_by_hash(known, n, 0)), n))
    by_label: dict[str, list[dict]] = {}
    for record in sorted(known, key=lambda record: (hash_position(record["id"], 0), record["id"])):
        by_label.setdefault(asked_value(record, task), []).append(record)
    turns = zip(*map(cycle, by_label.values())) if by_label else ()
    return list(islice(chain.from_iterable(turns), n))


def task_alphabet(task: Task) -> tuple[str, ...]:
    return LETTERS if task.tokens == "letters" else ()


def sample_residues(text: str) -> str | None:
    """The residues of a finished sample; None if it is not closed or holds anything else."""
    sequence, closed, _ = text.partition(CLOSE)
    return sequence if closed and sequence and not invalid_letters(sequence.encode(), RESIDUES) else None


def baselines(train: Sequence[dict], held_out: Sequence[dict], task: Task) -> dict[str, list[dict]]:
    """Prediction rows of controls that are fitted on train alone, of the records that the question is put of."""
    asked = asked_records(held_out, task)
    if task.ask == "determine":
        return label_baselines(asked_records(train, task), asked, task)
    if task.ask == "calculate":
        return quantity_baselines(train, asked, task)
    found = markov_baselines(train, asked)
    if task.ask == "generate":
        found |= {"label_trigram": label_trigram(train, asked, str(task.label))} | judge_answers(train, asked, task)
    return found


def label_baselines(train: Sequence[dict], held_out: Sequence[dict], task: Task) -> dict[str, list[dict]]:
    """`majority`: train's most frequent label; `kmer_regression`: what `LabelClassifier` says of the sequence."""
    name = str(task.label)
    sizes = Counter(str(record_label(record, name)) for record in train)
    classifier = train_classifier(train, name, 1)
    assert classifier is not None  # `asked_records` refuses a train without labels
    answers = {
        "majority": [min(sizes, key=lambda label: (-sizes[label], label))] * len(held_out),
        "kmer_regression": classifier.classify([record["sequence"] for record in held_out]),
    }
    return {
        system: [text_prediction(record, label_text(label, task), task) for record, label in zip(held_out, labels)]
        for system, labels in answers.items()
    }


def judge_answers(train: Sequence[dict], held_out: Sequence[dict], task: Task) -> dict[str, list[dict]]:
    """`classifier`: what the judge of generated samples says of natural ones; nothing where it knows no label.

    An answer is empty where the record's label is too rare for it to be judged.
    """
    judge = train_classifier(train, str(task.label), task.min_label)
    if judge is None:
        return {}
    labels = judge.classify([record["sequence"] for record in held_out])
    rows = []
    for record, label in zip(held_out, labels):
        judged = record_label(record, str(task.label)) in judge.labels
        rows.append(text_prediction(record, label_text(label, task) if judged else "", task))
    return {"classifier": rows}


def quantity_baselines(train: Sequence[dict], held_out: Sequence[dict], task: Task) -> dict[str, list[dict]]:
    """`train_mean`, and `composition`: a regression on how often each residue occurs."""
    known, asked = ([record["sequence"] for record in part] for part in (train, held_out))
    values = np.array([compute_quantities(sequence, task.quantities) for sequence in known])
    answers = {"train_mean": train_means(values, asked), "composition": composition_regression(known, values, asked)}
    return {
        system: [
            text_prediction(record, f"[{write_numbers(own)}]", task) for record, own in zip(held_out, found.tolist())
        ]
        for system, found in answers.items()
    }


def text_prediction(record: dict, text: str, task: Task) -> dict:
    return prediction_row(record, question_and_answer(record, task)[1], text=text)


def markov_baselines(train: Sequence[dict], held_out: Sequence[dict]) -> dict[str, list[dict]]:
    """Prediction rows of Markov chains over residues and the closing bracket, fitted on train alone.

    `residue_frequency` is the share of each letter, `trigram` that after the two letters before it. X is a letter more
    where there is one.
    """
    letters = used_letters(chain(train, held_out))
    counts = count_trigrams(train, letters)
    frequency = np.broadcast_to(letter_shares(counts), counts.shape)
    tables = {"residue_frequency": frequency, "trigram": trigram_shares(counts, choose_strengths(train, letters))}
    return {
        system: [markov_prediction(record, shares, letters) for record in held_out]
        for system, shares in tables.items()
    }


def used_letters(records: Iterable[dict]) -> tuple[str, ...]:
    return (*LETTERS, AMBIGUOUS) if any(AMBIGUOUS in record["sequence"] for record in records) else LETTERS


def label_trigram(train: Sequence[dict], held_out: Sequence[dict], name: str) -> list[dict]:
    """Prediction rows of `trigram` on the records of the same label, where that on all records is the shorter context.

    It reads what a model reads that is asked to generate by a label.
    """
    letters = used_letters(chain(train, held_out))
    rest, unseen = part_fifth(train)
    strengths = choose_strengths(train, letters)
    shares = trigram_shares(count_trigrams(rest, letters), strengths)
    rest_counts, unseen_counts = (count_by_label(part, name, letters) for part in (rest, unseen))

    def fit(strength: int) -> float:
        pairs = [(counts, rest_counts.get(label, 0 * counts)) for label, counts in unseen_counts.items()]
        return sum(np.sum(seen * np.log(smoothed_shares(own, shares, strength))) for seen, own in pairs)

    strength = max(STRENGTHS, key=fit)
    shares = trigram_shares(count_trigrams(train, letters), strengths)
    tables = {
        label: smoothed_shares(counts, shares, strength)
        for label, counts in count_by_label(train, name, letters).items()
    }
    return [
        markov_prediction(record, tables.get(str(record_label(record, name)), shares), letters) for record in held_out
    ]


def count_by_label(records: Iterable[dict], name: str, letters: Sequence[str]) -> dict[str, np.ndarray]:
    """{label: `count_trigrams`} of the records that have exactly one."""
    by_label: dict[str, list[dict]] = {}
    for record in records:
        if (label := record_label(record, name)) is not None:
            by_label.setdefault(label, []).append(record)
    return {label: count_trigrams(own, letters) for label, own in by_label.items()}


def count_trigrams(records: Iterable[dict], letters: Sequence[str] = LETTERS) -> np.ndarray:
    """(22, 22, 21) how often each letter follows each two; two opening marks stand before the first residue."""
    counts = np.zeros((len(letters) + 1, len(letters) + 1, len(letters)))
    for record in records:
        np.add.at(counts, letter_triples(record, letters), 1)
    return counts


def letter_triples(record: dict, letters: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers of the two letters before each scored letter, and of that letter."""
    opening = [len(letters)] * 2
    codes = np.array([*opening, *map(letters.index, record["sequence"] + CLOSE)])
    return codes[:-2], codes[1:-1], codes[2:]


def letter_shares(counts: np.ndarray) -> np.ndarray:
    """(21,) P(letter), one added to every count."""
    seen = counts.sum(axis=(0, 1)) + 1
    return seen / seen.sum()


def trigram_shares(counts: np.ndarray, strengths: tuple[int, int]) -> np.ndarray:
    """(22, 22, 21) P(c | ab) = (n(abc) + strength · P(c | b)) / (n(ab) + strength), and P(c | b) likewise from P(c).

    Args:
        strengths: how many letters of train the shorter context weighs as much as: in P(c | b), in P(c | ab).

    Source: MacKay and Peto 1995, doi:10.1017/S1351324900000218.
    """
    shares = letter_shares(counts)
    for seen, strength in zip((counts.sum(axis=0), counts), strengths):
        shares = smoothed_shares(seen, shares, strength)
    return shares


def smoothed_shares(seen: np.ndarray, shares: np.ndarray, strength: float) -> np.ndarray:
    """(…, 21) of counts, where a shorter context's `shares` weigh as much as `strength` letters."""
    return (seen + strength * shares) / (seen.sum(axis=-1, keepdims=True) + strength)


def choose_strengths(train: Sequence[dict], letters: Sequence[str]) -> tuple[int, int]:
    """The strengths under which a held-out fifth of train's groups is most likely, by the rest of train."""
    rest, unseen = (count_trigrams(part, letters) for part in part_fifth(train))
    pairs = [(first, second) for first in STRENGTHS for second in STRENGTHS]
    return max(pairs, key=lambda pair: np.sum(unseen * np.log(trigram_shares(rest, pair))))


def part_fifth(train: Sequence[dict]) -> tuple[list[dict], list[dict]]:
    """Train without a fifth of its groups, and that fifth."""
    home = [hash_position(record["group"], HELD_OUT_SEED) < 0.2 for record in train]
    rest, fifth = ([record for record, out in zip(train, home) if out is part] for part in (False, True))
    return rest, fifth


def markov_prediction(record: dict, shares: np.ndarray, letters: Sequence[str]) -> dict:
    target = record["sequence"] + CLOSE
    nll = -float(np.log(shares[letter_triples(record, letters)]).sum())
    return prediction_row(record, target, nll=nll, tokens=len(target))


def sample_baselines(test: list[dict], n: int, task: Task) -> dict[str, list[dict]]:
    """`natural`: test sequences as they are, over again where `n` is larger; `permuted`: their residues reordered.

    What a folding base says of the first and not of the second is more than composition. Where samples are asked for
    something, these are the test records that have it. Sequences with an X, which cannot be folded, are not drawn.
    """
    known = prompting_records(test, n, task)
    written = {
        "natural": [record["sequence"] for record in known],
        "permuted": [permuted_sequence(record["sequence"]) for record in known],
    }
    return {
        name: [
            prediction_row({"id": id, "group": id}, asked_value(record, task), text=sequence + CLOSE)
            for id, record, sequence in zip(sample_names(n), known, sequences)
        ]
        for name, sequences in written.items()
    }


def permuted_sequence(sequence: str) -> str:
    """The same residues in an order that depends on the sequence alone."""
    return "".join(random.Random(sequence).sample(sequence, len(sequence)))
