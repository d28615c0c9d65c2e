"""What every rule's script does around its one call: a log, fixed threads, and errors that people can read."""

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def log_job(path: Path | str, threads: int = 1) -> Iterator[None]:
    """Sends output to the rule's log. Bad input ends the job with one line there, a fault of ours with a traceback.

    Args:
        threads: for numerical libraries. Sums depend on it in the last digits, so it comes from the config and not
            from how many cores happen to be free.
    """
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    quiet = {"TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    os.environ.update(quiet)
    from loratory.errors import InputError

    with open(path, "w", buffering=1) as log:
        sys.stdout = sys.stderr = log
        try:
            yield
        except InputError as error:
            print(f"error: {error}", flush=True)
            raise SystemExit(1) from None
        except Exception:
            traceback.print_exc()  # into the log, which Snakemake shows
            raise SystemExit(1) from None
        finally:
            sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
