"""Would a test notice? Plants the bugs of mutations.yaml, one at a time, in a copy of the tree, and runs a few tests.

    .venv/bin/python tests/mutations.py             # all of them, some 20 minutes on two cores
    .venv/bin/python tests/mutations.py oracle gate # those whose names hold one of these words
    .venv/bin/python tests/mutations.py --jobs 2    # so many at a time

A bug that all its tests pass with has survived: a test is missing. Exit status 1 if any has, 2 if an entry is stale
(its text does not stand exactly once in its file, its tests are gone or fail without it).
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import yaml

ROOT = Path(__file__).parent.parent
ENTRIES = Path(__file__).with_suffix(".yaml")
LIBRARY = "scripts/loratory"
PASSED, FAILED = 0, 1  # exit status of pytest; others: nothing was tested
SECONDS = 600  # a bug that makes tests hang is noticed


@dataclass(frozen=True)
class Mutation:
    """A bug: `old`, which stands once in `file` of the library, is replaced by `new`; some of `tests` should fail."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def path(self, root: Path) -> Path:
        return root / LIBRARY / self.file

    def staleness(self, root: Path) -> str:
        """Why it does not fit the tree; "" if it does."""
        path = self.path(root)
        count = path.read_text().count(self.old) if path.is_file() else 0
        if count != 1:
            return f"{self.name}: `{self.old}` stands {count} times in {LIBRARY}/{self.file}, expected once"
        missing = [test for test in self.tests if not (root / "tests" / test).is_file()]
        return f"{self.name}: no such tests: {', '.join(missing)}" if missing else ""


def read_mutations(path: Path = ENTRIES) -> list[Mutation]:
    return [Mutation(**entry | {"tests": tuple(entry["tests"])}) for entry in yaml.safe_load(path.read_text())]


def choose_mutations(mutations: Sequence[Mutation], words: Sequence[str]) -> list[Mutation]:
    """Those whose names hold one of the words; all, if there are no words."""
    return [m for m in mutations if not words or any(word in m.name for word in words)]


def copy_tree(root: Path, out: Path) -> Path:
    """What git knows of, and new files that it does not ignore."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=root, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        if (root / name).is_file():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, out / name)
    return out


def run_tests(root: Path, tests: Iterable[str]) -> int:
    """Exit status of pytest, which stops at the first failure; FAILED where it takes too long."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *(f"tests/{t}" for t in tests)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        return subprocess.run(
            command, cwd=root, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=SECONDS
        ).returncode
    except subprocess.TimeoutExpired:
        return FAILED


def try_mutation(mutation: Mutation, root: Path) -> int:
    """Exit status of its tests with the bug, in a tree that is as it was afterwards."""
    path = mutation.path(root)
    sound = path.read_text()
    path.write_text(sound.replace(mutation.old, mutation.new))
    try:
        return run_tests(root, mutation.tests)
    finally:
        path.write_text(sound)


def find_survivors(mutations: Sequence[Mutation], trees: Sequence[Path]) -> tuple[list[str], list[str]]:
    """(names of bugs that no test notices, of those whose tests could not run); one at a time in each tree."""
    idle: SimpleQueue[Path] = SimpleQueue()
    for tree in trees:
        idle.put(tree)

    def run_one(mutation: Mutation) -> int:
        tree = idle.get()
        try:
            status = try_mutation(mutation, tree)
        finally:
            idle.put(tree)
        says = {FAILED: "noticed", PASSED: "SURVIVED"}.get(status, f"NOT TESTED (pytest ended with {status})")
        print(f"{says:9} {mutation.name}", flush=True)
        return status

    with ThreadPoolExecutor(len(trees)) as pool:
        found = list(zip(mutations, pool.map(run_one, mutations)))
    survived = [mutation.name for mutation, status in found if status == PASSED]
    return survived, [mutation.name for mutation, status in found if status not in (PASSED, FAILED)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="words of the names of bugs; none: all bugs")
    parser.add_argument("--jobs", type=int, default=1, help="bugs at a time")
    parser.add_argument("--trust", action="store_true", help="do not run the tests without any bug first")
    given = parser.parse_args()
    mutations = choose_mutations(read_mutations(), given.words)
    stale = [says for mutation in mutations if (says := mutation.staleness(ROOT))]
    if stale or not mutations:
        print("\n".join(stale or ["no bug of that name"]))
        return 2
    with tempfile.TemporaryDirectory() as folder:
        trees = [copy_tree(ROOT, Path(folder) / str(number)) for number in range(given.jobs)]
        needed = sorted({test for mutation in mutations for test in mutation.tests})
        if not given.trust and run_tests(trees[0], needed) != PASSED:
            print(f"these fail without any bug: {', '.join(needed)}")
            return 2
        survived, untested = find_survivors(mutations, trees)
    print(f"{len(mutations)} bugs, {len(survived)} survived, {len(untested)} could not be tested")
    return 2 if untested else bool(survived)


if __name__ == "__main__":
    sys.exit(main())
