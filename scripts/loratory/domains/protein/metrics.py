"""How well proteins are predicted, and what generated ones are worth.

VERSION is raised when a metric changes its meaning: every file of metrics carries it, and tables print it above 1.
"""

from collections import Counter
from collections.abc import Callable

import numpy as np

from loratory.data.alphabets import RESIDUES, invalid_letters
from loratory.domains.contract import Columns, Metric
from loratory.domains.protein.samples import compare_samples, length_distance
from loratory.domains.protein.sources import Task
from loratory.domains.protein.task import CLOSE

SAMPLE_COLUMNS = ("valid", "truncated", "distinct", "cluster", "novelty", "shorter", "no_longer")
COLUMNS = ("nll", "residues", *SAMPLE_COLUMNS, "plddt", "tm_longer", "tm_query", "tm_reference")
LONGEST_RUN = 10  # of one residue
LONGEST_PERIOD = 6  # of a repeat that may not fill more than half of the sequence


def columns(rows: list[dict], records: list[dict], task: Task) -> dict[str, np.ndarray]:
    """One value for each row and column; NaN where the row has no such output.

    `nll` in nats with the closing bracket (as `text` also with end-of-sequence), over `residues` without it. Of a
    sample: `valid` and `truncated` are 0 or 1, `distinct` is 1 over the number of samples with the same sequence that
    are closed alike, so that its mean is the distinct share of all samples. `plddt` 0–100 and TM-scores 0–1 come with
    folded samples. Valid samples are also compared with each other and with `records` (`samples.compare_samples`).
    """
    copies = Counter(row["text"].partition(CLOSE)[:2] for row in rows if row["text"] is not None)
    judged = [{**row, **scored_columns(row), **sample_columns(row, copies, task)} for row in rows]
    valid = {str(i): row["text"].partition(CLOSE)[0] for i, row in enumerate(judged) if row.get("valid")}
    for i, beside in compare_samples(valid, [record["sequence"] for record in records] if valid else []).items():
        judged[int(i)] |= beside
    return {name: np.array([each.get(name) for each in judged], dtype=float) for name in COLUMNS}


def scored_columns(row: dict) -> dict:
    return {} if row["nll"] is None else {"residues": len(row["reference"].removesuffix(CLOSE))}


def sample_columns(row: dict, copies: Counter, task: Task) -> dict:
    if row["text"] is None:
        return {}
    sequence, closed, _ = row["text"].partition(CLOSE)
    valid = bool(closed) and is_valid(sequence, task.min_length, task.max_length)
    return {"valid": valid, "truncated": not closed, "distinct": 1 / copies[sequence, closed]}


def is_valid(sequence: str, min_length: int, max_length: int) -> bool:
    """Only the twenty residues, a sensible length, and no loop that a generator fell into."""
    if invalid_letters(sequence.encode(), RESIDUES) or not min_length <= len(sequence) <= max_length:
        return False
    return tandem_length(sequence, 1) <= LONGEST_RUN and all(
        tandem_length(sequence, period) <= len(sequence) / 2 for period in range(1, LONGEST_PERIOD + 1)
    )


def tandem_length(sequence: str, period: int) -> int:
    """Residues in the longest stretch that repeats itself with `period`; 0 if nothing stands there twice."""
    letters = np.frombuffer(sequence.encode(), np.uint8)
    breaks = np.flatnonzero(letters[period:] != letters[:-period])
    # between two breaks lie as many letters that equal the one `period` before them
    longest = int(np.diff(breaks, prepend=-1, append=max(0, len(letters) - period)).max()) - 1
    return longest + period if longest >= period else 0


def nll_per_residue(columns: Columns) -> float:
    """Undefined where one likelihood is: what is left out would be missing from the sum alone."""
    residues = columns["residues"].sum()
    return float(columns["nll"].sum() / residues) if residues else float("nan")


def has_value(column: str) -> Callable[[Columns], np.ndarray]:
    """columns -> (n,) bool, the rows that have a value."""
    return lambda columns: ~np.isnan(columns[column])


def mean_of(column: str) -> Callable[[Columns], float]:
    """columns -> mean of a column; NaN without rows, and where one of them has no value."""
    return lambda columns: float(columns[column].mean()) if len(columns[column]) else float("nan")


TM_NORMS = {
    "longer": "the longer of both, by which it is the nearest",
    "query": "the sample's length",
    "reference": "that chain's length",
}
VERSION = 3  # 3: a sample that never closes is no copy of one that does
METRICS = (
    Metric(
        "nll_per_residue",
        "nats/residue",
        "down",
        "nll",
        nll_per_residue,
        primary=True,
        loss=True,
        note="summed over all sequences with their closing brackets (with `tokens: text` also end-of-sequence), over"
        " all residues; of a masked base the pseudo-likelihood, each residue hidden alone, no bracket: it reads both"
        " sides, and is not to be compared with a causal base's",
        where=has_value("residues"),
    ),
    Metric(
        "perplexity",
        "per residue",
        "down",
        "nll",
        lambda c: float(np.exp(nll_per_residue(c))),
        note="exp of the above; of a masked base the pseudo-perplexity",
        where=has_value("residues"),
    ),
    Metric(
        "validity",
        "share",
        "up",
        "sample",
        mean_of("valid"),
        note="closed, twenty residues only, length in bounds, no run > 10, no repeat of period ≤ 6 over half of it",
        where=has_value("valid"),
    ),
    Metric(
        "uniqueness",
        "share",
        "up",
        "sample",
        mean_of("distinct"),
        note="distinct sequences over samples",
        where=has_value("distinct"),
    ),
    Metric(
        "truncated",
        "share",
        "down",
        "sample",
        mean_of("truncated"),
        note="samples that never close",
        where=has_value("truncated"),
    ),
    Metric(
        "novelty",
        "share",
        "up",
        "sample",
        mean_of("novelty"),
        note="of valid samples: 1 less the identity to the nearest train record over 80 % of the shorter of the two; 1"
        " where none is 30 % identical",
        where=has_value("novelty"),
    ),
    Metric(
        "diversity",
        "clusters/sample",
        "up",
        "sample",
        mean_of("cluster"),
        note="of valid samples: clusters of 50 % identity over 80 % of both, for each sample",
        where=has_value("cluster"),
    ),
    Metric(
        "length_distance",
        "0–1",
        "down",
        "sample",
        length_distance,
        note="of valid samples: largest distance of their lengths' distribution from train's (Kolmogorov–Smirnov)",
        where=has_value("no_longer"),
    ),
    Metric(
        "plddt",
        "0–100",
        "up",
        "structure",
        mean_of("plddt"),
        note="mean of Cα pLDDT, averaged over the samples that were folded (`evaluation.folded`)",
        where=has_value("plddt"),
    ),
    *(
        Metric(
            f"tm_{name}",
            "0–1",
            "up",
            "structure",
            mean_of(f"tm_{name}"),
            note=f"TM-score to the nearest test chain of `domains.structure`, normalised by {norm}",
            where=has_value(f"tm_{name}"),
        )
        for name, norm in TM_NORMS.items()
    ),
)
