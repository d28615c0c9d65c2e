"""A protein as text: `Seq=<MKT…>`, the stage-1 format of ProLLaMA (https://github.com/PKU-YuanGroup/ProLLaMA)."""

import math
import random
from collections import Counter
from itertools import cycle

from loratory.data.alphabets import RESIDUES, strangers
from loratory.data.splits import smallest
from loratory.domains.contract import Example

PROMPT, CLOSE = "Seq=<", ">"
LETTERS = (*RESIDUES, CLOSE)


def examples(records, task, family: str) -> list[Example]:
    """Sequence and closing bracket are scored, the opening is not."""
    return [Example(r["id"], r["group"], PROMPT, r["sequence"] + CLOSE, alphabet=alphabet(task)) for r in records]


def samples(n: int, task, family: str) -> list[Example]:
    names = [f"sample-{number:04d}" for number in range(1, n + 1)]
    return [Example(name, name, PROMPT, "", alphabet=alphabet(task)) for name in names]


def alphabet(task) -> tuple[str, ...]:
    return LETTERS if task.tokens == "letters" else ()


def chain(text: str) -> str | None:
    """The residues of a finished sample; None if it is not closed or holds anything else."""
    sequence, closed, _ = text.partition(CLOSE)
    return sequence if closed and sequence and not strangers(sequence.encode(), RESIDUES) else None


def baselines(train, test, task) -> dict[str, list[dict]]:
    """`residue_frequency`: each letter by its share in train alone, one added to every count."""
    targets = [example.target for example in examples(train, task, "causal")]
    counts = Counter(RESIDUES + CLOSE)
    for target in targets:
        counts.update(target)
    total = sum(counts.values())
    cost = {letter: -math.log(count / total) for letter, count in counts.items()}
    rows = [
        {
            "id": example.id,
            "group": example.group,
            "reference": example.target,
            "nll": sum(cost[letter] for letter in example.target),
            "tokens": len(example.target),
            "p": None,
            "text": None,
        }
        for example in examples(test, task, "causal")
    ]
    return {"residue_frequency": rows}


def sample_baselines(test, n: int, task) -> dict[str, list[dict]]:
    """`natural`: test sequences as they are, over again where `n` is larger; `shuffled`: their residues permuted.

    What a folding base says of the first and not of the second is more than composition.
    """
    chosen = [record["sequence"] for record in smallest(test, n, 0)]
    written = {"natural": chosen, "shuffled": [permuted(sequence) for sequence in chosen]}
    return {
        name: [
            {"id": example.id, "group": example.group, "reference": "", "text": sequence + CLOSE}
            for example, sequence in zip(samples(n, task, "causal"), cycle(sequences))
        ]
        for name, sequences in written.items()
    }


def permuted(sequence: str) -> str:
    """The same residues in an order that depends on the sequence alone."""
    return "".join(random.Random(sequence).sample(sequence, len(sequence)))
