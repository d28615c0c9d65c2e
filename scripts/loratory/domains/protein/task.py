"""A protein as text: `Seq=<MKT…>`, the stage-1 format of ProLLaMA (https://github.com/PKU-YuanGroup/ProLLaMA)."""

import random
from collections.abc import Iterable, Sequence
from itertools import cycle

import numpy as np

from loratory.data.alphabets import RESIDUES, invalid_letters
from loratory.data.splits import hash_position, sample_by_hash
from loratory.domains.contract import Example, prediction_row
from loratory.domains.protein.sources import Task

PROMPT, CLOSE = "Seq=<", ">"
LETTERS = (*RESIDUES, CLOSE)
AMBIGUOUS = "X"  # written as it is where `dataset.max_ambiguous` keeps it and `tokens` is `text`
OPEN = len(LETTERS)  # the number of the mark before a sequence
STRENGTHS = (10_000, 1_000, 100, 10)  # of a shorter context in a longer one
HELD_OUT_SEED = 1  # not the seed of splits, of which train's groups are one end


def examples(records: list[dict], task: Task, family: str) -> list[Example]:
    """Sequence and closing bracket are scored, the opening is not; of a masked base, residues alone."""
    if family == "masked":
        letters = tuple(RESIDUES) if task.tokens == "letters" else ()
        return [Example(r["id"], r["group"], "", r["sequence"], alphabet=letters) for r in records]
    return [Example(r["id"], r["group"], PROMPT, r["sequence"] + CLOSE, alphabet=task_alphabet(task)) for r in records]


def sample_prompts(n: int, task: Task, family: str) -> list[Example]:
    names = [f"sample-{number:04d}" for number in range(1, n + 1)]
    return [Example(name, name, PROMPT, "", alphabet=task_alphabet(task)) for name in names]


def task_alphabet(task: Task) -> tuple[str, ...]:
    return LETTERS if task.tokens == "letters" else ()


def sample_residues(text: str) -> str | None:
    """The residues of a finished sample; None if it is not closed or holds anything else."""
    sequence, closed, _ = text.partition(CLOSE)
    return sequence if closed and sequence and not invalid_letters(sequence.encode(), RESIDUES) else None


def baselines(train: list[dict], held_out: list[dict], task: Task) -> dict[str, list[dict]]:
    """Prediction rows of Markov chains over residues and the closing bracket, fitted on train alone.

    `residue_frequency` is the share of each letter, `trigram` that after the two letters before it. X is a letter more
    where there is one.
    """
    ambiguous = any(AMBIGUOUS in record["sequence"] for record in [*train, *held_out])
    letters = (*LETTERS, AMBIGUOUS) if ambiguous else LETTERS
    counts = count_trigrams(train, letters)
    frequency = np.broadcast_to(letter_shares(counts), counts.shape)
    tables = {"residue_frequency": frequency, "trigram": trigram_shares(counts, choose_strengths(train, letters))}
    return {
        system: [markov_prediction(record, shares, letters) for record in held_out]
        for system, shares in tables.items()
    }


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
        shares = (seen + strength * shares) / (seen.sum(axis=-1, keepdims=True) + strength)
    return shares


def choose_strengths(train: list[dict], letters: Sequence[str]) -> tuple[int, int]:
    """The strengths under which a held-out fifth of train's groups is most likely, by the rest of train."""
    held_out = [record for record in train if hash_position(record["group"], HELD_OUT_SEED) < 0.2]
    ids = {record["id"] for record in held_out}
    rest = count_trigrams((record for record in train if record["id"] not in ids), letters)
    unseen = count_trigrams(held_out, letters)
    pairs = [(first, second) for first in STRENGTHS for second in STRENGTHS]
    return max(pairs, key=lambda pair: np.sum(unseen * np.log(trigram_shares(rest, pair))))


def markov_prediction(record: dict, shares: np.ndarray, letters: Sequence[str]) -> dict:
    target = record["sequence"] + CLOSE
    nll = -float(np.log(shares[letter_triples(record, letters)]).sum())
    return prediction_row(record, target, nll=nll, tokens=len(target))


def sample_baselines(test: list[dict], n: int, task: Task) -> dict[str, list[dict]]:
    """`natural`: test sequences as they are, over again where `n` is larger; `permuted`: their residues reordered.

    What a folding base says of the first and not of the second is more than composition. Sequences with an X, which
    cannot be folded, are not drawn.
    """
    known = [record for record in test if AMBIGUOUS not in record["sequence"]]
    chosen = [record["sequence"] for record in sample_by_hash(known, n, 0)]
    written = {"natural": chosen, "permuted": [permuted_sequence(sequence) for sequence in chosen]}
    return {
        name: [
            {"id": example.id, "group": example.group, "reference": "", "text": sequence + CLOSE}
            for example, sequence in zip(sample_prompts(n, task, "causal"), cycle(sequences))
        ]
        for name, sequences in written.items()
    }


def permuted_sequence(sequence: str) -> str:
    """The same residues in an order that depends on the sequence alone."""
    return "".join(random.Random(sequence).sample(sequence, len(sequence)))
