"""Dates of files, by which Snakemake decides what is up to date."""

import os
from contextlib import suppress
from pathlib import Path
from time import time

from loratory.errors import InputError

WHOLE = ".snakemake_timestamp"  # Snakemake's mark of a folder that is an output
AHEAD = 3600.0  # seconds by which the clocks of machines that share a folder may differ


def require_past_dates(folder: Path | str) -> None:
    """No file of results is dated in the future: whatever it was made of would look older, however it changed.

    Raises:
        InputError: some are; the clock was wrong when they were made, or is now.
    """
    if found := future_files(folder):
        what = f"dated in the future, as {len(found) - 1} other files: no change of what they were made of is seen"
        fix = "set the clock; or, if nothing has changed since, the same command with --touch, then without"
        raise InputError(min(found), what, fix=fix)


def mend_dates(folder: Path | str) -> None:
    """Dates of the future become now; Snakemake itself would leave logs, and what stands in folders, as they are."""
    now = time()
    for path in future_files(folder):
        os.utime(path, (now, now), follow_symlinks=False)


def future_files(folder: Path | str) -> list[str]:
    """Files of results that are dated in the future.

    Where a folder is an output as a whole, Snakemake looks at its own date and not at what lies in its folders, which
    may be tens of thousands of recordings or structures.
    """
    latest, found = time() + AHEAD, []
    for place, folders, names in os.walk(folder):
        if WHOLE in names:
            folders.clear()
        for path in (os.path.join(place, name) for name in names):
            with suppress(FileNotFoundError):  # another run's, which is gone by now
                if os.lstat(path).st_mtime > latest:
                    found.append(path)
    return found
