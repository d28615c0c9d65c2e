"""How well proteins are predicted, and what generated ones are worth.

VERSION is raised when a metric changes its meaning: every file of metrics carries it, and tables print it above 1.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from loratory.data.alphabets import RESIDUES, invalid_letters
from loratory.domains.bins import length_bins, rows_of_both
from loratory.domains.contract import Columns, Metric
from loratory.domains.protein.judging import answer_columns, control_columns, design_columns, is_answer
from loratory.domains.protein.quantities import SCALES
from loratory.domains.protein.questions import CLOSE
from loratory.domains.protein.samples import compare_samples, compare_with_train, length_distance
from loratory.domains.protein.sources import ANSWERED, QUANTITIES, Quantity, Task

SAMPLE_COLUMNS = ("valid", "truncated", "distinct", "cluster", "novelty", "shorter", "no_longer")
LABEL_COLUMNS = ("answered", "right", "agrees", "agrees_permuted", "succeeds")
QUANTITY_COLUMNS = tuple(f"{kind}_{name}" for name in QUANTITIES for kind in ("truth", "value", "permuted"))
COLUMNS = (
    *("nll", "residues", "length", *SAMPLE_COLUMNS, "plddt", "tm_longer", "tm_query", "tm_reference"),
    *(*LABEL_COLUMNS, "exact", *QUANTITY_COLUMNS),
)
LENGTHS = (100, 300)  # residues; proteins up to each, and longer ones, are also scored by themselves
LONGEST_RUN = 10  # of one residue
LONGEST_PERIOD = 6  # of a repeat that may not fill more than half of the sequence


def columns(rows: list[dict], records: list[dict], task: Task) -> dict[str, np.ndarray]:
    """One value for each row and column; NaN where the row has no such output.

    `nll` in nats with the closing bracket (as `text` also with end-of-sequence), over `residues` without it; `length`
    is that of the sequence that is scored or written. Of a sample: `valid` and `truncated` are 0 or 1, `distinct` is
    1 over the number of samples with the same sequence that are closed alike, so that its mean is the distinct share
    of all samples. `plddt` 0–100 and TM-scores 0–1 come with folded samples. Valid samples are also compared with each
    other and with `records` (`samples.compare_samples`), and with what they were asked for, as answers are with the
    truth; `asked` is the label in question.
    """
    judged = [{**row, **scored_columns(row, task)} for row in rows]
    written = {i: row for i, row in enumerate(rows) if row["text"] is not None}
    answers = {i: row for i, row in written.items() if is_answer(row, task)}
    known = {record["id"]: record for record in records} if answers else {}
    for i, row in answers.items():
        judged[i] |= answer_columns(row["text"], known[row["id"]], task)
    samples = {i: row for i, row in written.items() if i not in answers}
    for i, found in compared_samples(samples, records, task).items():
        judged[i] |= found
    values = {name: np.array([each.get(name) for each in judged], dtype=float) for name in COLUMNS}
    return values | {"asked": np.array([each.get("asked", "") for each in judged], object)}


def scored_columns(row: dict, task: Task) -> dict:
    if row["nll"] is None or task.ask in ANSWERED:
        return {}
    residues = len(row["reference"].removesuffix(CLOSE))
    return {"residues": residues, "length": residues}


def nearest_identities(texts: Sequence[str], records: Sequence[Mapping]) -> list[float]:
    """Of each text's sequence (its longest run of residues) the identity to the nearest record, as novelty has it."""
    runs = {str(i): max(re.findall(f"[{RESIDUES}]+", text), key=len, default="") for i, text in enumerate(texts)}
    known = {name: sequence for name, sequence in runs.items() if sequence}
    beside = compare_with_train(known, [record["sequence"] for record in records])
    return [1 - beside[name]["novelty"] if name in known else 0.0 for name in runs]


def compared_samples(rows: Mapping[int, dict], train: list[dict], task: Task) -> dict[int, dict]:
    """What is known of each sample alone, beside the others, beside what was learnt from and what it was asked for."""
    copies = Counter(row["text"].partition(CLOSE)[:2] for row in rows.values())
    found = {i: sample_columns(row["text"], copies, task) for i, row in rows.items()}
    valid = {i: rows[i]["text"].partition(CLOSE)[0] for i in rows if found[i]["valid"]}
    beside = compare_samples(
        {str(i): sequence for i, sequence in valid.items()}, [r["sequence"] for r in train if valid]
    )
    found = {i: own | beside.get(str(i), {}) for i, own in found.items()}
    asked = {i: row["reference"] for i, row in rows.items()}
    if task.ask == "generate":
        controlled = control_columns(valid, asked, train, task)
    else:
        controlled = design_columns(valid, asked, task) if task.ask == "design" else {}
    return {i: own | controlled.get(i, {}) for i, own in found.items()}


def sample_columns(text: str, copies: Counter, task: Task) -> dict:
    sequence, closed, _ = text.partition(CLOSE)
    valid = bool(closed) and is_valid(sequence, task.min_length, task.max_length)
    distinct = 1 / copies[sequence, closed]
    return {"length": len(sequence), "valid": valid, "truncated": not closed, "distinct": distinct}


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


def mean_distance(name: Quantity) -> Callable[[Columns], float]:
    """columns -> mean |value − truth| of a quantity; NaN without rows."""

    def value(columns: Columns) -> float:
        distances = np.abs(columns[f"value_{name}"] - columns[f"truth_{name}"])
        return float(distances.mean()) if len(distances) else float("nan")

    return value


def explained_variance(name: Quantity) -> Callable[[Columns], float]:
    """columns -> R²: 1 less the squared distances from the truth over those of the truth from its mean."""

    def value(columns: Columns) -> float:
        truth = columns[f"truth_{name}"]
        spread = np.square(truth - truth.mean()).sum() if len(truth) else 0.0
        return float(1 - np.square(columns[f"value_{name}"] - truth).sum() / spread) if spread > 0 else float("nan")

    return value


def nll_per_answer(columns: Columns) -> float:
    return float(columns["nll"].mean()) if len(columns["nll"]) else float("nan")


def quantity_metrics(name: Quantity) -> list[Metric]:
    """How far answers are from the truth, and designs from what was asked; of those alone that have a value."""
    unit, has = SCALES[name].unit, has_value(f"value_{name}")
    permuted, chance = has_value(f"permuted_{name}"), mean_of(f"permuted_{name}")
    note = f"mean distance of {name}; "
    dealt = f"of {name}, the same samples if what is asked is dealt out anew, the mean over all ways"
    error, share, label = mean_distance(name), explained_variance(name), f"error_{name}"
    variance = "1 less the squared distances over those of the truth from its mean, of the same records"
    told, made = ("calculate",), ("design",)
    of_answers, of_samples = note + "answered is the pass rate", note + OF_VALID
    return [
        Metric(label, unit, "down", "text", error, where=has, questions=told, note=of_answers),
        Metric(f"r2_{name}", "R²", "up", "text", share, where=has, questions=told, note=variance),
        Metric(label, unit, "down", "sample", error, where=has, questions=made, note=of_samples),
        Metric(f"r2_{name}", "R²", "up", "sample", share, where=has, questions=made, note=variance),
        Metric(f"{label}_permuted", unit, "up", "sample", chance, where=permuted, questions=made, note=dealt),
    ]


def length_metrics() -> list[Metric]:
    """Likelihoods of records, and pLDDT of samples, by their length."""
    of_likelihoods = [
        Metric(
            f"nll_{name}",
            "nats/residue",
            "down",
            "nll",
            nll_per_residue,
            questions=WRITTEN,
            note=f"nll_per_residue of sequences of {words} residues",
            where=rows_of_both(has_value("residues"), where),
        )
        for name, (words, where) in length_bins(LENGTHS).items()
    ]
    of_structures = [
        Metric(
            f"plddt_{name}",
            "0–100",
            "up",
            "structure",
            mean_of("plddt"),
            questions=WRITTEN,
            note=f"plddt of samples of {words} residues",
            where=rows_of_both(has_value("plddt"), where),
        )
        for name, (words, where) in length_bins(LENGTHS).items()
    ]
    return [*of_likelihoods, *of_structures]


WRITTEN = ("sequence", "generate", "design")  # questions whose answer is a sequence
WITHIN = ", ".join(f"{SCALES[name].tolerance:g} {SCALES[name].unit}" for name in QUANTITIES)
OF_VALID = "of valid samples (validity is the pass rate)"
COMPUTED = "computed by Biopython's ProtParam (this project's interpretation of X-LoRA's protein tasks)"
TM_NORMS = {
    "longer": "the longer of both, by which it is the nearest",
    "query": "the sample's length",
    "reference": "that chain's length",
}
TRAIN_KEYS = ()
VERSION = 3  # 3: a sample that never closes is no copy of one that does
METRICS: tuple[Metric, ...] = (
    Metric(
        "nll_per_residue",
        "nats/residue",
        "down",
        "nll",
        nll_per_residue,
        primary=True,
        loss=True,
        questions=WRITTEN,
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
        questions=WRITTEN,
        note="exp of the above; of a masked base the pseudo-perplexity",
        where=has_value("residues"),
    ),
    Metric(
        "validity",
        "share",
        "up",
        "sample",
        mean_of("valid"),
        questions=WRITTEN,
        note="closed, twenty residues only, length in bounds, no run > 10, no repeat of period ≤ 6 over half of it",
        where=has_value("valid"),
    ),
    Metric(
        "uniqueness",
        "share",
        "up",
        "sample",
        mean_of("distinct"),
        questions=WRITTEN,
        note="distinct sequences over samples",
        where=has_value("distinct"),
    ),
    Metric(
        "truncated",
        "share",
        "down",
        "sample",
        mean_of("truncated"),
        questions=WRITTEN,
        note="samples that never close",
        where=has_value("truncated"),
    ),
    Metric(
        "novelty",
        "share",
        "up",
        "sample",
        mean_of("novelty"),
        questions=WRITTEN,
        note=f"{OF_VALID}: 1 less the identity to the nearest train record over 80 % of the shorter of the two; 1"
        " where none is 30 % identical",
        where=has_value("novelty"),
    ),
    Metric(
        "diversity",
        "clusters/sample",
        "up",
        "sample",
        mean_of("cluster"),
        questions=WRITTEN,
        note=f"{OF_VALID}: clusters of 50 % identity over 80 % of both, for each sample",
        where=has_value("cluster"),
    ),
    Metric(
        "length_distance",
        "0–1",
        "down",
        "sample",
        length_distance,
        questions=WRITTEN,
        note=f"{OF_VALID}: largest distance of their lengths' distribution from train's (Kolmogorov–Smirnov)",
        where=has_value("no_longer"),
    ),
    Metric(
        "plddt",
        "0–100",
        "up",
        "structure",
        mean_of("plddt"),
        questions=WRITTEN,
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
            questions=WRITTEN,
            note=f"TM-score to the nearest test chain of `domains.structure`, normalised by {norm}",
            where=has_value(f"tm_{name}"),
        )
        for name, norm in TM_NORMS.items()
    ),
    Metric(
        "accuracy",
        "share",
        "up",
        "text",
        mean_of("right"),
        primary=True,
        questions=("determine",),
        note="answers that name the record's label; any other text is wrong",
        where=has_value("right"),
        each=lambda columns: columns["asked"],
    ),
    Metric(
        "within_tolerance",
        "share",
        "up",
        "text",
        mean_of("right"),
        primary=True,
        questions=("calculate",),
        note=f"answers of which every value is near the truth ({WITHIN}), {COMPUTED}",
        where=has_value("right"),
    ),
    Metric(
        "nll_per_answer",
        "nats",
        "down",
        "nll",
        nll_per_answer,
        loss=True,
        questions=ANSWERED,
        note="of the whole answer with end-of-sequence; what learning rates are chosen by, on other records",
        where=has_value("nll"),
    ),
    Metric(
        "answered",
        "share",
        "up",
        "text",
        mean_of("answered"),
        questions=ANSWERED,
        note="answers in the format of the question: the pass rate of what is computed on these alone",
        where=has_value("answered"),
    ),
    Metric(
        "exact",
        "share",
        "up",
        "text",
        mean_of("exact"),
        questions=("calculate",),
        note="answers of which every digit is right",
        where=has_value("exact"),
    ),
    Metric(
        "classifier_accuracy",
        "share",
        "up",
        "text",
        mean_of("right"),
        questions=("generate",),
        note="of the classifier that judges samples, on test records whose labels it tells apart",
        where=has_value("right"),
    ),
    Metric(
        "agreement",
        "share",
        "up",
        "sample",
        mean_of("agrees"),
        questions=("generate",),
        note=f"{OF_VALID}: those that have the label asked for, by a regression on"
        " k-mers that learnt from train records alone; labels of fewer than `min_label` of these are left out",
        where=has_value("agrees"),
    ),
    Metric(
        "agreement_permuted",
        "share",
        "down",
        "sample",
        mean_of("agrees_permuted"),
        questions=("generate",),
        note="the same samples if the labels asked for are dealt out anew, the mean over all ways",
        where=has_value("agrees_permuted"),
    ),
    Metric(
        "control",
        "share",
        "up",
        "sample",
        lambda c: mean_of("agrees")(c) - mean_of("agrees_permuted")(c),
        questions=("generate",),
        note="agreement less agreement_permuted: 0 of samples that have nothing to do with what was asked",
        where=has_value("agrees"),
    ),
    Metric(
        "success",
        "share",
        "up",
        "sample",
        mean_of("succeeds"),
        questions=("generate",),
        note="of all samples: valid, and of the label asked for",
        where=has_value("succeeds"),
        each=lambda columns: columns["asked"],
    ),
    Metric(
        "success",
        "share",
        "up",
        "sample",
        mean_of("right"),
        questions=("design",),
        note=f"of all samples: valid, and every value near what is asked ({WITHIN}), {COMPUTED}",
        where=has_value("right"),
    ),
    *length_metrics(),
    *(metric for name in QUANTITIES for metric in quantity_metrics(name)),
)
