"""What every rule's script does around its one call: a log, fixed threads, GPUs, and errors that people can read."""

import contextlib
import errno
import io
import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from loratory.data.files import lost_files, note_files
from loratory.devices import lease_devices
from loratory.errors import InputError, hide_secrets, short_value

TRANSIENT = ("network", "checksum", "device", "killed")  # reasons of errors that another attempt may not meet again
STORAGE = {  # what an operating system says of a disk that does not do as it should: what helps
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some space there, or ask for a larger quota",
    errno.EFBIG: "raise the limit of file sizes (`ulimit -f`)",
    errno.EROFS: "make it writable, or set `pathvars: {results: …}` to a folder that is",
    errno.EACCES: "give the rights to it",
    errno.EIO: "check the disk",
}
OUT_OF_MEMORY = re.compile(r"out of memory|(can't|[Cc]annot) allocate memory")  # as torch and the system say it


@contextlib.contextmanager
def log_job(snakemake: Any, threads: int = 1) -> Iterator[None]:
    """Sends output to the rule's log. Bad input ends the job with one line there, a fault of ours with a traceback.

    Snakemake cannot be told which failures another attempt would meet again. So bad input leaves its line beside the
    log, and the attempts behind the first end with it at once.

    Args:
        snakemake: the script's own; `resources.attempt` counts its attempts from 1. With `params.device: cuda` it
            leases `resources.gpu` GPUs of its host.
        threads: for numerical libraries. Sums depend on it in the last digits, so it comes from the config and not
            from how many cores happen to be free.
    """
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    quiet = {"TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    os.environ.update(quiet)
    path = Path(snakemake.log[0])
    refusal = refusal_file(path)
    try:
        with open_log(path) as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            try:
                refuse_again(refusal, snakemake.resources.get("attempt", 1))
                for folder in filter(os.path.isdir, snakemake.input):
                    require_files(folder)
                with lease_devices(snakemake.resources.get("gpu", 0)) if uses_gpu(snakemake) else nullcontext():
                    yield
                for folder in filter(os.path.isdir, snakemake.output):
                    note_files(folder)
            except InputError as error:
                print(f"error: {error}", flush=True)
                if error.reason not in TRANSIENT:
                    refusal.write_text(str(error))
                raise SystemExit(1) from None
            except KeyboardInterrupt:
                print("stopped by Ctrl-C", flush=True)
                raise SystemExit(130) from None
            except Exception as error:
                if line := storage_problem(error) or memory_problem(error):
                    print(f"error: {line}", flush=True)
                else:
                    traceback.print_exc()  # into the log, which Snakemake shows
                raise SystemExit(1) from None
    except OSError as error:  # the log itself cannot be written
        print(f"error: {storage_problem(error) or error}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None


def uses_gpu(snakemake: Any) -> bool:
    return snakemake.params.get("device") == "cuda"


class Log(io.TextIOWrapper):
    """A job's log, which other people read: libraries write addresses into it as they are."""

    def write(self, text: str) -> int:
        super().write(hide_secrets(text))
        return len(text)


def open_log(path: Path) -> Log:
    return Log(open(path, "wb"), encoding="utf-8", errors="backslashreplace", line_buffering=True)


def require_files(folder: Path | str) -> None:
    """Raises: InputError where a file that a job put into the folder is gone."""
    if lost := lost_files(folder):
        fix = "remove the folder, then the same command makes it again"
        raise InputError(folder, "a file of this folder is gone", lost[0], "all that was put there", fix, "lost")


def refusal_file(log: Path | str) -> Path:
    """Where the line of bad input outlives the log, which Snakemake deletes before the next attempt."""
    return Path(f"{log}.refused")


def refuse_again(refusal: Path, attempt: int) -> None:
    """Raises: InputError if an earlier attempt at this job ended with bad input."""
    if attempt == 1:
        refusal.unlink(missing_ok=True)
    elif refusal.is_file():
        where, _, line = refusal.read_text().partition(": ")
        raise InputError(where, line)


def storage_problem(error: BaseException) -> str:
    """One line for a full or read-only disk, by number or by what libraries make of it; "" for any other error."""
    said = str(error)
    for code, fix in STORAGE.items():
        if getattr(error, "errno", None) == code or f"os error {code})" in said or os.strerror(code) in said:
            place = getattr(error, "filename", None) or "the results"
            return f"{place}: {os.strerror(code)}; fix: {fix}, then the same command again"
    return ""


def memory_problem(error: BaseException) -> str:
    """One line for memory that a machine or a GPU has no more of; "" for any other error."""
    said = str(error)
    if not isinstance(error, MemoryError) and not OUT_OF_MEMORY.search(said):
        return ""
    return (
        f"there is not enough memory ({short_value(said or 'no more could be had')}); fix: let the job ask for more, "
        "run fewer jobs at once, or make batches smaller (`batch_tokens`)"
    )
