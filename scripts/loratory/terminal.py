"""How far the jobs of a run are, by what they write into their logs, and how long the rest takes."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loratory.errors import on_one_line
from loratory.job import refusal_file

STEP = re.compile(r"(?P<title>.*): step (?P<step>\d+) of (?P<steps>\d+), (?:loss (?P<loss>\S+)|continued)")
PLAN = re.compile(r"(?P<trainings>\d+) trainings")
KILLED = re.compile(r"SIGKILL|exit status 137|OUT_OF_MEMORY|OOMKilled|oom_kill|exceeded memory limit")
NOTE = "note: "  # begins a line of a log that is shown when its job ends
LIGHT = 2.0  # seconds of a job that opens no model
TRUST = 60.0  # seconds after which the measured pace counts as much as the forecast


@dataclass(frozen=True)
class TrainingState:
    """Where the trainings of a job are. `number` counts from 1 to `trainings`, `step` to `steps`."""

    number: int
    trainings: int
    step: int
    steps: int
    loss: str | None

    @property
    def share(self) -> float:
        """Of the whole job."""
        return (self.number - 1 + self.step / self.steps) / max(self.trainings, self.number)

    def __str__(self) -> str:
        which = f"training {self.number} of {self.trainings}, " if self.trainings > 1 else ""
        loss = f", loss {self.loss}" if self.loss else ""
        return f"{which}step {self.step} of {self.steps}{loss}"


def read_training(log: Path | str, since: float = 0.0) -> TrainingState | None:
    """What the log of a job says last; None where the job trains nothing, or not yet.

    Args:
        since: seconds of the epoch. A log that was last written before is that of an earlier run.
    """
    lines = log_lines(log) if os.path.exists(log) and os.path.getmtime(log) >= since else []
    plan = next(filter(None, map(PLAN.fullmatch, lines)), None)
    steps = [*filter(None, map(STEP.fullmatch, lines))]
    if not steps:
        return None
    number, last = len({step["title"] for step in steps}), steps[-1]
    return TrainingState(
        number, int(plan["trainings"]) if plan else 1, int(last["step"]), int(last["steps"]), last["loss"]
    )


def job_seconds_left(marks: Sequence[tuple[float, float]], seconds: float) -> float | None:
    """How long a job still takes by its own pace, which what it did before it told of anything has no part in.

    Args:
        marks: (seconds after its start, share that was done), the first and the last that it told.
        seconds: after its start, now.
    """
    if len(marks) < 2:
        return None
    (began, first), (reached, last) = marks
    return max(0.0, (1 - last) * (reached - began) / (last - first) - (seconds - reached))


def seconds_left(
    jobs: Mapping[str, int],
    ended: Mapping[str, int],
    running: Iterable[tuple[str, float, float | None]],
    elapsed: float,
    forecast: Mapping[str, float],
) -> float | None:
    """How long a run still takes: the forecast says how much work is left, the time so far how fast it goes.

    Args:
        jobs, ended: {rule: how many of its jobs there are, and have ended}.
        running: (rule, seconds so far, share that is done if it says so) of each job that runs.
        elapsed: seconds since the first job.
        forecast: {rule: seconds that one of its jobs adds to the run}; all rules weigh alike without one.

    Returns:
        Seconds, or None while nothing says how fast it goes.
    """
    weights = {rule: forecast.get(rule, LIGHT) for rule in jobs}
    done = sum(count * weights[rule] for rule, count in ended.items())
    for rule, seconds, share in running:
        done += weights[rule] * (seconds / (seconds + weights[rule]) if share is None else share)
    trust = TRUST if forecast else 0.0
    if not done + trust:
        return None
    left = sum(count * weights[rule] for rule, count in jobs.items()) - done
    return max(0.0, left) * (elapsed + trust) / (done + trust)


def error_lines(logs: Iterable[Path | str]) -> list[str]:
    """What a job's logs say went wrong: the lines of bad input, or else the end of a traceback."""
    found = [  # the next attempt may have begun, and emptied the log
        [line for line in log_lines(log) if line.strip()] or log_lines(refusal_file(log)) for log in logs
    ]
    errors = dict.fromkeys(
        line.removeprefix("error: ") for lines in found for line in lines if line.startswith("error: ")
    )
    last = next((lines[-1:] for lines in found if lines), [])  # of the job's own log before that of its cluster
    return [on_one_line(line) for line in errors or last]


def killed_line(said: Iterable[str], mem_mb: object) -> str:
    """What there is to say of a job that was killed, which could say nothing itself; "" of any other.

    Args:
        said: what Snakemake and the cluster say of the job.
        mem_mb: what it asked for, MB.
    """
    if not any(map(KILLED.search, said)):
        return ""
    return (
        f"it was killed, most likely for want of memory (asked for {mem_mb} MB); fix: let it ask for more, in the "
        "config's `resources: mem_mb` or for its rule under `set-resources` of the profile, or run fewer jobs at once"
    )


def note_lines(logs: Iterable[Path | str]) -> list[str]:
    """What a job has to say to people even if nothing went wrong."""
    lines = dict.fromkeys(line for log in logs for line in log_lines(log) if line.startswith(NOTE))
    return [on_one_line(line.removeprefix(NOTE)) for line in lines]


def change_time(log: Path | str) -> float:
    """When a log was last written, seconds of the epoch; 0 of one that is not there."""
    try:
        return os.path.getmtime(log)
    except OSError:
        return 0.0


def log_lines(log: Path | str) -> list[str]:
    """None of a log that is not written yet."""
    try:
        return Path(log).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def duration(seconds: float) -> str:
    """As people say it: `4 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    units = {"h": whole // 3600, "min": whole // 60 % 60, "s": whole % 60 if whole < 3600 else 0}
    return " ".join(f"{count} {unit}" for unit, count in units.items() if count) or "0 s"


def about(seconds: float) -> str:
    """A guess at a duration: in minutes, or in tens of seconds where it is short."""
    unit = 60 if seconds > 120 else 10
    return f"about {duration(unit * max(1, round(seconds / unit)))} left"
