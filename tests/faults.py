"""Kills and stops the jobs of a small study and fills their disk, at random moments: do they go on to the same bytes?

    .venv/bin/python tests/faults.py                      # one fault of a job of every rule, a minute of one core
    .venv/bin/python tests/faults.py --count 20 --seed 1  # twenty of each, drawn otherwise
    .venv/bin/python tests/faults.py train predict        # of the rules whose names hold one of these words

Every job runs undisturbed first. Then a fault meets it, and it runs once more, as Snakemake has it do: without the
outputs that are there. Exit status 1 if a fault left anything half-written, or the run behind it another study than
the first.
"""

import argparse
import contextlib
import errno
import importlib
import io
import json
import os
import pkgutil
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from random import Random

TESTS = Path(__file__).parent
sys.path[:0] = [str(TESTS.parent / "scripts"), str(TESTS), str(TESTS / "workflow")]
os.environ["OMP_NUM_THREADS"] = "1"  # jobs are forks of this process, which wait for threads that it has and they lack

import pyarrow.parquet as pq  # noqa: E402
from studies import ABSENT, ROOT, changed, run_script, shipped  # noqa: E402
from test_dag import Plan  # noqa: E402

import loratory  # noqa: E402
from loratory.data.files import LISTING, remove_path  # noqa: E402

OFTEN = {"steps": 4, "learning_rates": [0.003, 0.01], "batch_tokens": 512, "save_every": 1}
LEARNT_ON = {"base": "mini_lm", "corpus": "protein", "adapter": "lora"}
STUDY = changed(
    shipped("test"),
    {
        "pathvars": ABSENT,
        "domains.speech.adapters": {"mini_whisper": ["lora"]},
        "domains.protein.adapters": {"mini_lm": ["lora"], "learned": ["lora"]},
        "bases.mini_lm.audio": ABSENT,
        "bases.mini_lm.pretrain.domains": ["protein", "lncrna", "recsys"],
        "bases.learned": {"family": "causal", "continued": LEARNT_ON},
        "adapters.lora.training": OFTEN,
        "mixtures.xlora.experts.speech": ABSENT,
        "mixtures.xlora.features": True,
        "mixtures.xlora.training": OFTEN,
        "compare": {"base": "mini_lm", "against": "lora"},
        "compare_mixers": {"base": "mini_lm", "against": "xlora", "prompts": {"both": ["protein", "lncrna"]}},
    },
)
LESS = changed(  # without what takes most of the time: protein clusters of several corpora, and chains
    STUDY,
    {
        "domains.lncrna": ABSENT,
        "domains.structure": ABSENT,
        "general.lncrna": ABSENT,
        "general.protein": ABSENT,
        "general.structure": ABSENT,
        "bases.mini_bert": ABSENT,
        "bases.mini_fold": {"family": "folding", "path": str(ROOT / "resources" / "bases" / "mini_fold")},
        "bases.mini_lm.pretrain.domains": ["recsys"],
        "bases.learned.continued.corpus": "recsys",
        "mixtures.xlora.experts": {"protein": "lora", "recsys": "lora"},
        "compare_mixers.prompts.both": ["protein", "recsys"],
    },
)
SECONDS = 300  # that a job may take: one that hangs is noticed
WRITES = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate"}  # events of `sys.audit`
CHANGING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
TIMES = re.compile(
    rb'"(created_at|reading|writing|waited|(validation_)?seconds|(total|train|data_wait|validation)_time)": [^\n]*'
)
KILL, CUT, STOP, FULL, SMALL = "killed", "killed at a write", "stopped", "disk full", "files too large"
FAULTS = (KILL, CUT, STOP, FULL, SMALL)


@dataclass(frozen=True)
class Trial:
    """One run of a job: its exit status (below 0: the signal), how long it took, how often it wrote in its folder."""

    status: int
    seconds: float
    writes: int


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="parts of names of rules (default: every rule)")
    parser.add_argument("--whole", action="store_true", help="with transcripts, chains and folding, twice as long")
    parser.add_argument("--count", type=int, default=1, help="faults of each rule (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default: %(default)s)")
    given = parser.parse_args(arguments)
    for module in pkgutil.walk_packages(loratory.__path__, "loratory."):
        with contextlib.suppress(ImportError):  # of what is optional
            importlib.import_module(module.name)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place).resolve() / "büro of 'me'"
        study = STUDY if given.whole else LESS
        met, wrong = meet_faults(study, folder, given.words, given.count, Random(given.seed))
    print(json.dumps({"faults": Counter(fault for _, fault in met), "rules": Counter(rule for rule, _ in met)}))
    print("\n".join(wrong))
    return int(bool(wrong))


def meet_faults(
    study: dict, folder: Path, words: Sequence[str], count: int, draw: Random
) -> tuple[list[tuple[str, str]], list[str]]:
    """Returns the (rule, fault) pairs that were tried, and what was wrong."""
    folder.mkdir()
    with contextlib.redirect_stderr(io.StringIO()):  # a plan is long
        jobs = [job for job in Plan(study, folder).jobs if job.rule.script]
    by_rule: dict[str, list] = {}
    for job in jobs:
        by_rule.setdefault(job.rule.name, []).append(job)
    chosen = Counter(
        draw.choice(by_rule[rule])
        for rule in by_rule
        for _ in range(count)
        if not words or any(word in rule for word in words)
    )
    faults = [fault for _ in range(chosen.total() // len(FAULTS) + 1) for fault in draw.sample(FAULTS, len(FAULTS))]
    met, wrong = [], []
    for job in jobs:
        whole = run_job(job, folder)
        assert whole.status == 0, job
        expected = contents(folder)
        for _ in range(chosen[job]):
            fault = faults.pop()
            met.append((job.rule.name, fault))
            found = meet_fault(job, folder, fault, whole, expected, draw)
            wrong += [f"{job.rule.name} {dict(job.wildcards_dict)}, {fault}: {what}" for what in found]
    return met, wrong


def is_of(path: str, output: str) -> bool:
    """Whether a file is an output, or in one; the note of a folder's files comes when it is whole."""
    return f"{path}/".startswith(f"{output}/") and LISTING not in Path(path).name


def meet_fault(job, folder: Path, fault: str, whole: Trial, expected: dict[str, bytes], draw: Random) -> Iterator[str]:
    """Yields what is wrong: with what a fault left, and with the run behind it."""
    met = trial_with_fault(job, folder, fault, whole, draw)
    left = contents(folder)
    for output in map(str, job.output):  # a file, or a folder
        here, there = ({path for path in of if is_of(path, output)} for of in (left, expected))
        if here and (here != there or any(left[path] != expected[path] for path in here)):
            yield f"{output} is half-written"
    if fault in (FULL, SMALL) and met.status:
        log = (folder / job.log[0]).read_text()
        if met.status != 1 or "Traceback" in log or log.count("error: ") != 1 or "; fix: " not in log:
            yield f"ended with {met.status} and not in one line:\n{log}"
        yield from (f"{path} is left" for path in left if path.endswith(".part"))
    if met.status == 0 and left != expected:
        yield f"ended as if nothing was, but {difference(left, expected)}"
    again = run_job(job, folder)
    if again.status:
        yield f"does not go on: {again.status}\n{(folder / job.log[0]).read_text()}"
    elif contents(folder) != expected:
        yield f"goes on to something else: {difference(contents(folder), expected)}"


def trial_with_fault(job, folder: Path, fault: str, whole: Trial, draw: Random) -> Trial:
    moment, write = draw.uniform(0, whole.seconds), draw.randrange(max(whole.writes, 1))
    if fault == KILL:
        return run_job(job, folder, signals=[(moment, signal.SIGKILL)])
    if fault == STOP:
        return run_job(job, folder, signals=[(moment, draw.choice([signal.SIGTERM, signal.SIGINT]))])
    if fault == CUT:
        return run_job(job, folder, at_write={write: die_with_half})
    if fault == FULL:
        return run_job(job, folder, at_write={write: refuse_write})
    sizes = [(folder / path).stat().st_size for path in job.output]
    return run_job(job, folder, largest=draw.randrange(2000, max(*sizes, 2000) + 2000))


def run_job(
    job,
    folder: Path,
    signals: Iterable[tuple[float, signal.Signals]] = (),
    at_write: dict[int, Callable[[str, tuple], None]] | None = None,
    largest: int | None = None,
) -> Trial:
    """Runs a job in a process group of its own.

    Args:
        signals: (seconds from the start on, what is sent to the group then).
        at_write: {number of a write from 0 on: what happens just before it}.
        largest: how many bytes a file may have.
    """
    for path in job.output:
        remove_path(folder / path)
    reading, writing = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if not child:
        end_child(job, folder, at_write or {}, largest, writing, quiet=bool(signals or at_write or largest))
    os.close(writing)
    for moment, number in signals:
        time.sleep(moment)
        with contextlib.suppress(ProcessLookupError):  # it has no group of its own yet
            os.killpg(child, number)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    seconds = time.monotonic() - started
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what it had started
    with open(reading) as stream:
        return Trial(status, seconds, int(stream.read() or 0))


def end_child(job, folder: Path, at_write: dict, largest: int | None, writing: int, quiet: bool) -> None:
    """What a forked process does; it does not return."""
    status = 1
    try:
        os.setsid()
        signal.alarm(SECONDS)
        if largest is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
        count_writes = watch_writes(folder, at_write)
        run_script(job, folder)
        os.write(writing, str(count_writes()).encode())
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        if not quiet:
            traceback.print_exc()
    finally:
        os._exit(status)


def watch_writes(folder: Path, at_write: dict[int, Callable[[str, tuple], None]]) -> Callable[[], int]:
    """Has `at_write` done from now on. Returns what says how many writes there were."""
    number = 0

    def note(event: str, given: tuple) -> None:
        nonlocal number
        if event not in WRITES or isinstance(given[0], int) or (event == "open" and not given[2] & CHANGING):
            return
        path = Path(os.path.abspath(os.fsdecode(given[0])))
        if path.is_relative_to(folder / "results") and not path.is_relative_to(folder / "results/logs"):
            number += 1
            if number - 1 in at_write:
                at_write[number - 1](event, given)

    sys.addaudithook(note)
    return lambda: number


def die_with_half(event: str, given: tuple) -> None:
    """Dies as in the middle of writing a file that is about to take its place."""
    source = os.fsdecode(given[0])
    if event == "os.rename" and os.path.isfile(source):
        os.truncate(source, os.path.getsize(source) // 2)
    os.killpg(0, signal.SIGKILL)


def refuse_write(event: str, given: tuple) -> None:
    if event not in ("os.remove", "os.rmdir"):  # for which a full disk has room
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fsdecode(given[0]))


def contents(folder: Path) -> dict[str, bytes]:
    """{path: what must be equal of its content} of all that jobs made, times left out."""
    paths = sorted(path for path in (folder / "results").rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): comparable_content(path)
        for path in paths
        if path.relative_to(folder).parts[1] not in ("benchmarks", "logs")
    }


def comparable_content(path: Path) -> bytes:
    if path.parent.name == "speed":
        return b"times alone"
    if path.name == "runs.parquet":
        return str(pq.read_table(path).drop_columns("seconds").to_pylist()).encode()
    content = path.read_bytes()
    return sha256(TIMES.sub(b"", content) if path.suffix == ".json" else content).digest()


def difference(found: dict[str, bytes], expected: dict[str, bytes]) -> str:
    parts = {
        "missing": expected.keys() - found.keys(),
        "left": found.keys() - expected.keys(),
        "other": {path for path in found.keys() & expected.keys() if found[path] != expected[path]},
    }
    return "; ".join(f"{name}: {', '.join(sorted(paths)[:5])}" for name, paths in parts.items() if paths)


if __name__ == "__main__":
    sys.exit(main())
