"""What a run says in the terminal: Snakemake's logger plugin `loratory`, which profiles/default asks for.

A line for each job that ended: how far the run is, what the job was, how long it took, how long the rest takes. On a
terminal, what runs stands below; in a file it is written now and then. All else is as Snakemake says it, which also
keeps everything in `.snakemake/log`. `--verbose` and `-n` leave all to Snakemake.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from dataclasses import dataclass, field
from itertools import chain
from threading import Event, RLock, Thread
from time import monotonic, time
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text
from snakemake.logging import DefaultFormatter
from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent
from snakemake_interface_logger_plugins.registry import LoggerPluginRegistry

from loratory.errors import on_one_line
from loratory.terminal import (
    TrainingState,
    about,
    change_time,
    duration,
    error_lines,
    job_seconds_left,
    killed_line,
    log_lines,
    note_lines,
    read_training,
    seconds_left,
)

REFRESH, REMIND = 1.0, 300.0  # seconds between two looks at what runs: on a terminal, in a file
SKEW = 0.1  # seconds that a file system's dates lag behind
CHATTER = (  # of Snakemake before and between the jobs, in messages of no event
    "Assuming unrestricted shared filesystem",
    "Building DAG of jobs",
    "Cleaning up SLURM log files",
    "Conda environments: ignored",
    "Elapsed time",
    "Execute ",
    "Exiting because a job execution failed",
    "Group jobs: inactive",
    "No SLURM account given",
    "No account was given",
    "Provided ",
    "Rules claiming more threads",
    "Select jobs to execute",
    "Shutting down",
    "Singularity containers: ignored",
    "Trying to restart job",
    "Unable to guess SLURM account",
    "Using shell:",
    "host:",
)
STOPPING = {  # what Snakemake says of Ctrl-C and of SIGTERM, which it may say again and again: what it means
    "Terminating processes on user request": "trainings end after the step that they are in",
    "Will exit after finishing currently running jobs": "no job is started any more",
}
LOCKED = (
    "error: .snakemake/locks: another run makes the same files here; fix: wait for it; if it is gone (machines were "
    "started anew, or it ran on another), the same command with --unlock, then without"
)
OF_A_DRY_RUN = ("Reasons:", "Some jobs were triggered by", "This was a dry-run")  # what a quiet one has no use for
SILENT = (
    LogEvent.JOB_STARTED,
    LogEvent.PROGRESS,
    LogEvent.RESOURCES_INFO,
    LogEvent.RULEGRAPH,
    LogEvent.SHELLCMD,
    LogEvent.WORKFLOW_STARTED,
)


@dataclass
class RunningJob:
    """A job from its start on; `marks` are (seconds so far, share that is done), the first and the last of them."""

    rule: str
    title: str
    logs: list[str]
    mem_mb: object  # what it asks for
    started: float = field(default_factory=monotonic)
    began: float = field(default_factory=time)  # by the clock that dates files
    training: TrainingState | None = None
    marks: list[tuple[float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.before = {log: change_time(log) for log in self.logs}

    @property
    def seconds(self) -> float:
        return monotonic() - self.started

    @property
    def share(self) -> float | None:
        """What is done of a job that says so."""
        return self.training.share if self.training else None

    def look(self) -> None:
        """Reads its logs."""
        self.training = next(filter(None, (read_training(log, self.began - SKEW) for log in self.logs)), None)
        if self.share is not None and (not self.marks or self.share > self.marks[-1][1]):
            self.marks = [*self.marks[:1], (self.seconds, self.share)]

    def wrote(self, log: str) -> bool:
        """Whether a log is not what an earlier run has left."""
        return not change_time(log) or change_time(log) != self.before.get(log)

    def state_line(self) -> str:
        if self.training is None:
            return f"{self.title}, {duration(self.seconds)}"
        left = job_seconds_left(self.marks, self.seconds)
        return f"{self.title}: {self.training}{'' if left is None else f'; {about(left)}'}"


class LogHandler(LogHandlerBase):
    def __post_init__(self) -> None:
        settings = self.common_settings
        self.stream = sys.stdout if settings.stdout else sys.stderr
        self.console = Console(
            file=self.stream, highlight=False, markup=False, emoji=False, no_color=settings.nocolor, soft_wrap=True
        )
        self.on_terminal = self.console.is_terminal and not self.console.is_dumb_terminal
        self.runs = not settings.dryrun and not settings.verbose
        self.skipped = () if settings.verbose else CHATTER + (OF_A_DRY_RUN if settings.quiet else ())
        self.others = DefaultFormatter(settings.quiet, settings.show_failed_logs)
        self.jobs: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.running: dict[int, RunningJob] = {}
        self.causes: dict[int, str] = {}
        self.exits: dict[int | None, str] = {}  # by thread: how a job's script ended, which Snakemake tells first
        self.forecast: dict[str, float] = {}
        self.interrupted = False
        self.started = monotonic()
        self.live = Live("", console=self.console, auto_refresh=False, transient=True, redirect_stdout=False)
        self.changing, self.closed = RLock(), Event()
        self.watcher = Thread(target=self.watch, daemon=True)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            with self.changing:
                self.forecast = getattr(record, "forecast", self.forecast)
                event = getattr(record, "event", None)
                own = getattr(self, f"on_{event}", None)
                if own and (self.runs or event in (LogEvent.ERROR, LogEvent.RUN_INFO)):
                    own(record)
                    self.show_running()
                elif self.common_settings.verbose or event not in SILENT:
                    self.say_plainly(record)
        except Exception:
            self.handleError(record)

    def say_plainly(self, record: logging.LogRecord) -> None:
        """As Snakemake does, with what would steer a terminal escaped."""
        text = self.others.format(record)
        if not text or text == "None" or text.startswith(self.skipped):
            return
        if meaning := next((what for said, what in STOPPING.items() if text.startswith(said)), ""):
            if self.interrupted:
                return
            self.interrupted, text = True, f"stopping: {meaning}; the same command goes on from there"
        style = {"ERROR": "red", "CRITICAL": "red", "WARNING": "yellow"}.get(record.levelname, "")
        self.say("\n".join(map(on_one_line, text.splitlines())), style)

    def say(self, text: str, style: str = "") -> None:
        self.console.print(Text(text, style))

    def on_run_info(self, record: Any) -> None:
        again = bool(self.jobs)
        self.jobs = Counter({rule: count for rule, count in record.stats.items() if rule != "total"})
        self.started = monotonic()
        if self.runs:
            self.say(f"{self.jobs.total()} jobs")
        elif again or self.common_settings.verbose:  # a dry run says them before its jobs and behind them
            self.say_plainly(record)

    def on_job_info(self, record: Any) -> None:
        names = ", ".join(map(on_one_line, record.wildcards.values()))
        what = record.rule_name.replace("_", " ")
        title = f"{what}: {names}" if names else what
        self.running[record.jobid] = RunningJob(
            record.rule_name, title, list(record.log), record.resources.get("mem_mb")
        )
        if not self.watcher.is_alive() and not self.closed.is_set():
            self.watcher.start()

    def on_job_finished(self, record: Any) -> None:
        job = self.running.pop(record.job_id, None)
        if job is None:
            return
        self.ended[job.rule] += 1
        done, total = self.ended.total(), max(self.jobs.total(), self.ended.total())
        rest = self.time_left() if done < total else ""
        line = f"{done:{len(str(total))}} of {total}  {job.title}, {duration(job.seconds)}{rest}"
        self.say("\n".join((line, *(f"  {note}" for note in note_lines(job.logs)))))

    def on_job_error(self, record: Any) -> None:
        job = self.running.pop(record.jobid, None)
        own = [log for log in record.log if job is None or job.wrote(log)]
        message = record.rule_msg or ""  # of a cluster
        said = [self.exits.pop(record.thread, ""), message, *chain.from_iterable(map(log_lines, own))]
        if self.interrupted:
            self.say(f"stopped: {job.title if job else record.rule_name}")
            return
        killed = killed_line(said, job.mem_mb if job else "unknown")
        causes = [killed] if killed else error_lines(own) or [on_one_line(line) for line in message.splitlines()[:1]]
        cause = "\n".join(f"  {line}" for line in causes)
        if cause and self.causes.get(record.jobid) == cause:  # another attempt met the same
            return
        self.causes[record.jobid] = cause
        title = f"{job.title}, after {duration(job.seconds)}" if job else record.rule_name
        logs = [f"  log: {log}" for log in record.log]
        self.say("\n".join(filter(None, (f"failed: {title}", cause, *logs))), "red")

    def on_error(self, record: Any) -> None:
        """What stopped Snakemake: its message without the places in rules that raised it."""
        if record.exception == "RuleException" and "CalledProcessError" in record.getMessage():
            self.exits[record.thread] = record.getMessage()
            return  # a script ended; `on_job_error` says why
        lines = record.getMessage().splitlines()
        if record.exception == "LockException":
            lines = [LOCKED]
        if record.exception == "WorkflowError" and not self.common_settings.verbose:
            told = [line for line in lines if line.strip() and not line.startswith(("WorkflowError", '  File "'))]
            lines = [f"error: {line}" if number == 0 else line for number, line in enumerate(told)]
        self.say("\n".join(map(on_one_line, lines)), "red")

    def time_left(self) -> str:
        for job in self.running.values():
            job.look()
        running = [(job.rule, job.seconds, job.share) for job in self.running.values()]
        left = seconds_left(self.jobs, self.ended, running, monotonic() - self.started, self.forecast)
        return f"; {about(left)}" if left else ""

    def show_running(self) -> None:
        """Below all lines of a terminal, as long as anything runs."""
        if not self.on_terminal or not self.runs:
            return
        if not self.running:
            self.live.stop()
            return
        self.live.start()
        lines = [f"  … {line}" for line in self.state_lines()]
        self.live.update(Text("\n".join(lines), "dim", no_wrap=True, overflow="ellipsis"), refresh=True)

    def state_lines(self) -> list[str]:
        total = f"{self.ended.total()} of {self.jobs.total()} jobs{self.time_left()}"
        return [*(job.state_line() for job in self.running.values()), total]

    def watch(self) -> None:
        while not self.closed.wait(REFRESH if self.on_terminal else REMIND):
            with self.changing:
                if self.on_terminal:
                    self.show_running()
                elif self.running:
                    self.say("\n".join(f"  … {line}" for line in self.state_lines()))

    def close(self) -> None:
        self.closed.set()
        with self.changing:
            self.live.stop()
        super().close()

    writes_to_stream = True
    writes_to_file = False
    has_filter = False
    has_formatter = True
    needs_rulegraph = False


def register_plugin() -> str:
    """Makes the plugin known to Snakemake where it is not installed but found in a checkout. Returns its name."""
    LoggerPluginRegistry().register_plugin(__name__, sys.modules[__name__])
    return "loratory"
