"""Full ranking: where the right candidate of a question stands among all of them."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from loratory.data.splits import SPLITS
from loratory.domains.contract import RankingTaskModule
from loratory.domains.dataset import open_split


def read_candidates(module: RankingTaskModule, data: Path | str, users: int) -> Iterable[list[dict]]:
    """The records of all candidates, for one user after the other; the right one first.

    Args:
        data: folder of a dataset. users: most of them; with 0, nothing is read.
    """
    return module.ranking_lists({split: open_split(data, split) for split in SPLITS}, users) if users else ()


def rank_row(rows: Sequence[dict]) -> dict:
    """The prediction of a question, from the rows of all candidates with their `p`, the right one first."""
    first, *others = (row["p"] for row in rows)
    above, tied = sum(p > first for p in others), sum(p == first for p in others)
    return {**rows[0], "p": None, "above": above, "tied": tied}
