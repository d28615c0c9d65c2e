"""A protein as text: `Seq=<MKT…>`, the stage-1 format of ProLLaMA (https://github.com/PKU-YuanGroup/ProLLaMA)."""

import math
from collections import Counter

from loratory.data.alphabets import RESIDUES, strangers
from loratory.domains.contract import Example

PROMPT, CLOSE = "Seq=<", ">"


def examples(records, task, family: str) -> list[Example]:
    """Sequence and closing bracket are scored, the opening is not."""
    return [Example(r["id"], r["group"], PROMPT, r["sequence"] + CLOSE) for r in records]


def samples(n: int, task, family: str) -> list[Example]:
    names = [f"sample-{number:04d}" for number in range(1, n + 1)]
    return [Example(name, name, PROMPT, "") for name in names]


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
