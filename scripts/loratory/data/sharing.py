"""Folders that several studies share: what was made once, of the same by the same code, is copied."""

import fcntl
import json
import shutil
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any

from loratory.data.files import LISTING, atomic_write, lost_files, note_files

KEY_LENGTH = 20  # hexadecimal digits of a shared folder's name


def share_folder(
    store: Path | str | None,
    facts: dict[str, Any],
    out: Path | str,
    make: Callable[[Path], None],
    names: Iterable[str] = (),
) -> None:
    """Makes the folder `out`, or copies it from the one in `store` that the same facts once made there.

    Copied and not linked: Snakemake dates outputs anew, and one study's date would make another study run again.

    Args:
        store: None shares nothing. Two studies that run at once wait for one another's folders there.
        facts: all that decides what is made, as JSON has it: options, digests of inputs and of code.
        make: makes a folder, whole or not at all.
        names: the files that are copied; all if none are named.
    """
    if store is None:
        return make(Path(out))
    kept = Path(store) / fact_key(facts)
    kept.parent.mkdir(parents=True, exist_ok=True)
    with open(kept.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.is_dir() or lost_files(kept):
            make(kept)
            note_files(kept)
    with atomic_write(out) as aside:
        if not names:
            shutil.copytree(kept, aside, ignore=shutil.ignore_patterns(LISTING))
        for name in names:
            aside.mkdir(parents=True, exist_ok=True)
            shutil.copy2(kept / name, aside / name)
    return None


def fact_key(facts: dict[str, Any]) -> str:
    return sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:KEY_LENGTH]
