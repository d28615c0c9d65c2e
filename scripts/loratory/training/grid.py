"""A grid of learning rates: which of its runs is kept, and the learning curves of all of them."""

from collections.abc import Callable, Sequence
from math import isnan
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from loratory.data.files import atomic_write
from loratory.errors import InputError

Rate = TypeVar("Rate", bound=float | None)  # None of what is not trained
CURVES = pa.schema(
    [
        ("run", pa.string()),
        ("seed", pa.int64()),
        ("learning_rate", pa.float64()),  # of the run: the highest, one of the grid
        ("step", pa.int64()),
        ("scheduled_rate", pa.float64()),  # at this step
        ("loss", pa.float64()),
        ("valid_loss", pa.float64()),
        ("targets", pa.int64()),
        ("seconds", pa.float64()),
    ]
)


def best_trial(rates: Sequence[Rate], train: Callable[[Rate], dict]) -> tuple[dict, list[dict]]:
    """Trains at every rate; (the trial with the lowest `valid_loss`, all trials). A single trial needs no such loss.

    Args:
        train: rate → trial. One that diverges is left out, by name, while another is or may be left.

    Raises:
        InputError: every rate diverges.
    """
    trials: list[dict] = []
    for rate in rates:
        try:
            trials.append(train(rate) | {"rate": rate})
        except InputError as error:
            if error.reason != "diverged" or (rate == rates[-1] and not trials):
                raise
            print(f"left out of the grid: {error}", flush=True)
    if len(trials) == 1:
        return trials[0], trials
    return min(trials, key=lambda trial: (isnan(trial["valid_loss"]), trial["valid_loss"])), trials


def curve_rows(seed: int, trials: list[dict]) -> list[dict]:
    """The points of all trials' curves, each with the run that it is from and that run's rate."""
    return [
        row | {"run": f"seed {seed}, lr {trial['rate']:g}", "seed": seed, "learning_rate": trial["rate"]}
        for trial in trials
        for row in trial["curve"]
    ]


def write_curves(path: Path | str, rows: list[dict]) -> None:
    with atomic_write(path) as aside:
        pq.write_table(pa.Table.from_pylist(rows, CURVES), aside)
