"""A run says one line a job, how far its trainings are and how long the rest takes; nothing said steers a terminal."""

import io
import logging
from types import SimpleNamespace

import pytest
from rich.console import Console
from snakemake_interface_logger_plugins.common import LogEvent
from studies import shipped

from loratory.config import read_config
from loratory.errors import InputError
from loratory.forecast import RULES, forecast_by_rule
from loratory.job import log_job
from loratory.terminal import about, duration, error_lines, job_seconds_left, read_training, seconds_left
from loratory.training import progress
from loratory.training.progress import Progress, announce_trainings
from snakemake_logger_plugin_loratory import LogHandler


@pytest.fixture
def log(tmp_path, capsys):
    """A function that writes what was printed so far as a job's log."""

    def write(path=tmp_path / "job.log"):
        path.write_text(path.read_text() if path.exists() else "")
        with open(path, "a") as stream:
            stream.write(capsys.readouterr().out)
        return path

    return write


def test_the_log_of_a_job_says_which_of_its_trainings_is_where(log):
    announce_trainings(3)
    assert read_training(log()) is None
    for title in ("seed 0 lr 0.1", "seed 0 lr 0.2"):
        told = Progress(title, 0, 4)
        told(0, 2.5)
        told(3, 1.25)
    state = read_training(log())
    assert str(state) == "training 2 of 3, step 4 of 4, loss 1.2500"
    assert state.share == pytest.approx(2 / 3)


def test_trainings_that_a_checkpoint_has_ended_count(log):
    announce_trainings(2)
    Progress("seed 0", 4, 4)
    Progress("seed 1", 0, 4)(0, 1.0)
    assert read_training(log()).share == pytest.approx(0.625)


def test_the_log_of_an_earlier_run_says_nothing(log):
    Progress("seed 0", 0, 4)(3, 1.0)
    path = log()
    written = path.stat().st_mtime
    assert read_training(path, written) and read_training(path, written + 1) is None


def test_a_training_of_many_steps_does_not_flood_its_log(log, monkeypatch):
    clock = iter(range(0, 10**9))  # a second a step
    monkeypatch.setattr(progress, "perf_counter", lambda: float(next(clock)))
    told = Progress("long", 0, 100_000)
    for step in range(100_000):
        told(step, 1.0)
    assert 100 < len(log().read_text().splitlines()) < 700


def test_the_time_left_is_the_forecast_first_and_the_measured_pace_later():
    jobs, forecast = {"train": 10, "draw": 0}, {"train": 60.0}
    assert seconds_left(jobs, {}, [], 0, forecast) == 600
    slow = seconds_left(jobs, {"train": 5}, [], 3000, forecast)  # ten times as slow as was forecast
    assert 2400 < slow < 3000
    assert seconds_left(jobs, {"train": 10}, [], 6000, forecast) == 0


def test_what_runs_counts_by_the_share_that_it_says_or_by_its_time():
    jobs, forecast = {"train": 2}, {"train": 60.0}
    left = [seconds_left(jobs, {}, [("train", 60.0, share)], 0, forecast) for share in (0.75, None, 0.25)]
    assert left == sorted(left) and len({*left}) == 3


def test_without_a_forecast_nothing_is_said_until_something_is_done():
    assert seconds_left({"train": 2}, {}, [], 5, {}) is None
    assert seconds_left({"train": 2}, {"train": 1}, [], 5, {}) == pytest.approx(5)


def test_every_rule_that_opens_a_model_has_a_forecast_of_its_jobs():
    assert forecast_by_rule(read_config(shipped("config"), "study"), 2).keys() == {*RULES.values()}


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (75, "1 min 15 s"), (120, "2 min"), (3700, "1 h 1 min"), (7200, "2 h")]
)
def test_a_duration_is_said_as_people_do(seconds, text):
    assert duration(seconds) == text


def test_a_guess_is_not_said_to_the_second():
    assert [about(seconds) for seconds in (3, 47, 500)] == ["about 10 s left", "about 50 s left", "about 8 min left"]


def test_a_log_tells_its_lines_of_bad_input_or_the_end_of_its_traceback(tmp_path):
    (tmp_path / "bad").write_text("reads\nerror: a.csv:3: \x1b[31mbad\nerror: a.csv:3: \x1b[31mbad\nends\n")
    assert error_lines([tmp_path / "bad"]) == [r"a.csv:3: \x1b[31mbad"]
    (tmp_path / "fault").write_text("Traceback:\n  File x\nKeyError: 'a'\n\n")
    (tmp_path / "slurm").write_text("srun: error: n1: task 0: Exited with exit code 1\n")
    assert error_lines([tmp_path / "fault", tmp_path / "absent", tmp_path / "slurm"]) == ["KeyError: 'a'"]


class Run:
    """The plugin, told of a run event by event; `said` is what a file would get."""

    def __init__(self, **settings):
        plain = {"stdout": False, "nocolor": False, "quiet": None, "show_failed_logs": True, "printshellcmds": False}
        given = SimpleNamespace(**plain | {"dryrun": False, "verbose": False, "debug_dag": False} | settings)
        self.handler = LogHandler(given, None)
        self.stream = io.StringIO()
        self.handler.console = Console(file=self.stream, highlight=False, markup=False, emoji=False, soft_wrap=True)

    def tell(self, event, message="None", level=logging.INFO, **facts):
        record = logging.LogRecord("snakemake", level, "", 0, message, None, None)
        record.__dict__.update(facts, event=event)
        self.handler.emit(record)

    def start(self, number, rule="train_sweep", log=(), mem_mb=500, **wildcards):
        facts = {"rule_name": rule, "wildcards": wildcards, "log": [*map(str, log)], "resources": {"mem_mb": mem_mb}}
        self.tell(LogEvent.JOB_INFO, jobid=number, **facts)

    def fail(self, number, rule="train_sweep", log=(), message=None):
        self.tell(LogEvent.JOB_ERROR, jobid=number, rule_name=rule, log=[*map(str, log)], rule_msg=message)

    @property
    def said(self) -> list[str]:
        return self.stream.getvalue().splitlines()


@pytest.fixture
def run():
    run = Run()
    run.tell(LogEvent.RUN_INFO, "Job stats", stats={"train_sweep": 2, "all": 1, "total": 3})
    yield run
    run.handler.close()


def test_a_job_is_one_line_when_it_ends_with_how_far_the_run_is(run):
    run.tell(None, "Select jobs to execute...")
    run.start(1, domain="protein", adapter="lora")
    run.tell(LogEvent.JOB_STARTED, jobs=[1])
    run.tell(LogEvent.JOB_FINISHED, job_id=1)
    run.tell(LogEvent.PROGRESS, done=1, total=3)
    assert len(run.said) == 2
    assert run.said[0] == "3 jobs" and run.said[1].startswith("1 of 3  train sweep: protein, lora, 0 s")


def test_what_a_job_has_to_say_stands_below_its_line(run, tmp_path):
    log = tmp_path / "log"
    log.write_text("note: 9 of 10 records kept; left out: too_short 1\nwritten\n")
    run.start(1, log=[log, tmp_path / "absent"], domain="protein")
    run.tell(LogEvent.JOB_FINISHED, job_id=1)
    assert run.said[2:] == ["  9 of 10 records kept; left out: too_short 1"]


def test_what_runs_is_said_with_its_training_and_the_time_left(run, tmp_path):
    log = tmp_path / "log"
    run.start(1, log=[log], domain="protein")
    log.write_text("2 trainings\na: step 1 of 10, loss 2.5\n")
    run.handler.running[1].started -= 1000  # what it did before its first step tells nothing of the pace
    assert run.handler.state_lines()[0] == "train sweep: protein: training 1 of 2, step 1 of 10, loss 2.5"
    run.handler.running[1].started -= 80
    log.write_text(log.read_text() + "a: step 5 of 10, loss 1.5\n")
    one, total = run.handler.state_lines()
    assert one == "train sweep: protein: training 1 of 2, step 5 of 10, loss 1.5; about 5 min left"
    assert total.startswith("0 of 3 jobs; about ")


def test_a_job_takes_as_long_as_its_own_pace_says():
    assert job_seconds_left([(1000.0, 0.1)], 1005.0) is None
    assert job_seconds_left([(1000.0, 0.1), (1080.0, 0.5)], 1080.0) == pytest.approx(100)
    assert job_seconds_left([(1000.0, 0.1), (1080.0, 0.5)], 1100.0) == pytest.approx(80)
    assert job_seconds_left([(1000.0, 0.1), (1080.0, 0.5)], 9000.0) == 0


def test_a_failed_job_says_its_cause_and_its_log_once_however_often_it_was_tried(run, tmp_path):
    for _ in range(2):
        (tmp_path / "log").unlink(missing_ok=True)
        run.start(1, "build_dataset", [tmp_path / "log"], domain="protein")
        (tmp_path / "log").write_text("error: a.csv:3: bad\n")
        run.tell(LogEvent.ERROR, "RuleException:\nCalledProcessError in file x, line 3", exception="RuleException")
        run.fail(1, "build_dataset", [tmp_path / "log"])
        run.tell(None, "Trying to restart job 1.")
    assert run.said[1:] == ["failed: build dataset: protein, after 0 s", "  a.csv:3: bad", f"  log: {tmp_path}/log"]


KILLED = (
    "  it was killed, most likely for want of memory (asked for 500 MB); fix: let it ask for more, in the config's "
)


def test_a_job_that_this_machine_kills_says_so_each_time_with_what_it_had_asked_for(run, tmp_path):
    (tmp_path / "log").write_text("a: step 5 of 10, loss 1.5\n")
    for asked in (500, 1000):
        run.start(1, log=[tmp_path / "log"], mem_mb=asked, domain="protein")
        ended = "CalledProcessError in file x, line 3:\nCommand 'python a.py' died with <Signals.SIGKILL: 9>."
        run.tell(LogEvent.ERROR, f"RuleException:\n{ended}", exception="RuleException")
        run.fail(1, log=[tmp_path / "log"])
    assert run.said[2].startswith(KILLED)
    assert run.said[5].startswith(KILLED.replace("500", "1000"))


@pytest.mark.parametrize(
    ("message", "log"),
    [
        ("SLURM-job '9' failed, SLURM status is: 'OUT_OF_MEMORY'.", ""),
        ("SLURM-job '9' failed, SLURM status is: 'FAILED'.", "Command 'x' died with <Signals.SIGKILL: 9>.\nthe end\n"),
        ("Job failed", "Command 'x' returned non-zero exit status 137.\n"),
    ],
)
def test_so_does_one_that_a_cluster_kills(run, tmp_path, message, log):
    (tmp_path / "9.log").write_text(log)
    run.start(1, domain="protein")
    run.fail(1, log=[tmp_path / "9.log"], message=message)
    assert run.said[2].startswith(KILLED)


def test_a_job_that_fails_beside_one_that_is_killed_says_its_own_cause(run, tmp_path):
    run.start(1, domain="protein")
    run.start(2, log=[tmp_path / "log"], domain="lncrna")
    (tmp_path / "log").write_text("error: a.csv:3: bad\n")
    run.fail(1, message="SLURM status is: 'OUT_OF_MEMORY'")
    run.fail(2, log=[tmp_path / "log"], message="SLURM status is: 'FAILED'")
    assert run.said[2].startswith(KILLED) and run.said[4] == "  a.csv:3: bad"


def test_what_a_cluster_says_of_a_job_that_it_does_not_take_is_said_and_not_what_an_earlier_run_wrote(run, tmp_path):
    (tmp_path / "log").write_text("error: mended since\n")
    run.start(1, log=[tmp_path / "log"], domain="protein")
    run.fail(1, log=[tmp_path / "log"], message="SLURM sbatch failed: invalid partition 'gpu'.\n    sbatch call: …")
    assert run.said[2] == "  SLURM sbatch failed: invalid partition 'gpu'."


@pytest.mark.parametrize("dryrun", [False, True])
def test_what_stops_a_run_is_said_without_the_places_that_raised_it_and_harms_no_terminal(dryrun):
    run = Run(dryrun=dryrun)
    raised = 'WorkflowError in file "/a/common.smk", line 3:\na.yaml: \x1b]0;x\x07 bad\n  File "/a/common.smk", line 3'
    run.tell(LogEvent.ERROR, raised, exception="WorkflowError")
    assert run.said == [r"error: a.yaml: \x1b]0;x\x07 bad"]


@pytest.mark.parametrize(
    "says",
    [
        "Terminating processes on user request, this might take some time.",
        "Will exit after finishing currently running jobs (scheduler).",
    ],
    ids=["Ctrl-C", "SIGTERM"],
)
def test_a_job_that_a_signal_ends_has_not_failed(says, run):
    run.start(1, domain="protein")
    for _ in range(2):
        run.tell(None, says)
    run.fail(1)
    assert len(run.said) == 3
    assert "the same command goes on" in run.said[1] and run.said[2] == "stopped: train sweep: protein"


def test_a_locked_folder_is_said_in_one_line_with_what_to_do(run):
    run.tell(LogEvent.ERROR, "LockException:\nError: Directory cannot be locked.", exception="LockException")
    assert len(run.said) == 2 and "--unlock" in run.said[1]


def test_what_has_no_line_of_its_own_is_said_as_snakemake_does(run):
    run.tell(None, "Nothing to be done (all requested files are present and up to date).")
    run.tell(None, "the disk is \x1b[2Jslow", logging.WARNING)
    assert run.said[1:] == [
        "Nothing to be done (all requested files are present and up to date).",
        r"the disk is \x1b[2Jslow",
    ]


def test_the_cause_of_a_failure_is_known_when_the_next_attempt_has_emptied_the_log(tmp_path):
    log = tmp_path / "job.log"
    with (
        pytest.raises(SystemExit),
        log_job(SimpleNamespace(input=[], output=[], log=[str(log)], resources={}, params={})),
    ):
        raise InputError("a.fasta:2", "no residues", "J")
    told = error_lines([log])
    log.write_text("")
    assert told == error_lines([log]) == ["a.fasta:2: no residues (J)"]
