"""Ratings of MovieLens-25M's size: the dataset built and audited, and what full rankings read of it.

    python benchmarks/ratings.py [ratings users items]

A made-up `ratings.csv` (25 million rows of 162,541 users and 59,047 items unless other numbers are given): items by
Zipf's law, users by a log-normal one, half stars, seconds of a quarter of a century; ratings that come twice are
skipped. Each step is a process of its own: wall and CPU seconds, and the peak of resident memory.
"""

import resource
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time, time

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

SIZE = (25_000_000, 162_541, 59_047)
FIRST, LAST = 790_000_000, 1_574_000_000  # 1995 to 2019
ROWS = 1_000_000  # that are written at once


def write_ratings(folder: Path, ratings: int, users: int, items: int) -> None:
    draw = np.random.default_rng(0)
    activity = draw.lognormal(0, 1.2, users)
    counts = np.maximum(20, (activity / activity.sum() * ratings).astype(int))
    owners = np.repeat(np.arange(users), counts)
    owners = (
        owners[:ratings] if len(owners) >= ratings else np.r_[owners, draw.integers(0, users, ratings - len(owners))]
    )
    popularity = np.cumsum(1 / np.arange(20, items + 20))
    joined, taste = draw.integers(FIRST, LAST, users), draw.normal(3.6, 0.5, users)
    with open(folder / "ratings.csv", "w") as file:
        file.write("userId,movieId,rating,timestamp\n")
        for start in range(0, ratings, ROWS):
            user = owners[start : start + ROWS]
            item = np.searchsorted(popularity, draw.random(len(user)) * popularity[-1])
            stars = np.clip(np.round(2 * draw.normal(taste[user], 1)), 1, 10) / 2
            second = np.minimum(joined[user] + draw.integers(0, 30_000_000, len(user)), LAST)
            columns = zip((user + 1).tolist(), (item + 1).tolist(), stars.tolist(), second.tolist())
            file.writelines(f"{u},{i},{r},{t}\n" for u, i, r, t in columns)
    titles = "".join(f"{item},Film {item} (2000),Drama\n" for item in range(1, items + 1))
    (folder / "movies.csv").write_text("movieId,title,genres\n" + titles)


def build(folder: Path) -> None:
    from loratory.domains.dataset import build_dataset
    from loratory.domains.recsys.sources import Dataset, Files

    files = Files(ratings=str(folder / "ratings.csv"), items=str(folder / "movies.csv"))
    build_dataset("recsys", files, Dataset(on_error="skip"), 0, folder / "dataset")


def audit(folder: Path) -> None:
    from loratory.domains.dataset import audit_split
    from loratory.domains.recsys.sources import Dataset

    audit_split("recsys", folder / "dataset", Dataset(on_error="skip"), folder / "audit.json")


def rank(folder: Path) -> None:
    from loratory import registry
    from loratory.evaluation.ranking import read_candidates

    module = registry.load_module("domain", "recsys", "task")
    print("candidates", sum(map(len, read_candidates(module, folder / "dataset", 20))), file=sys.stderr)


STEPS = {"build_dataset": build, "audit_split": audit, "ranking_lists": rank}


def main(size: tuple[int, ...]) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_ratings(folder, *size)
        print(f"{size[0]:,} ratings, {(folder / 'ratings.csv').stat().st_size / 1e6:.0f} MB", flush=True)
        for step in STEPS:
            command = [sys.executable, __file__, "step", step, str(folder)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            print(f"{step}: {done.stdout.strip()}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["step"]:
        start, used = time(), process_time()
        STEPS[sys.argv[2]](Path(sys.argv[3]))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{time() - start:.0f} s, {process_time() - used:.0f} CPU s, {peak:.0f} MB")
    else:
        main(tuple(map(int, sys.argv[1:])) or SIZE)
