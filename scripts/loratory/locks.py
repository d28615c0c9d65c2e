"""Who holds Snakemake's lock of the current folder, so that a lock does not outlive a run that was killed."""

import os
from collections.abc import Iterable
from pathlib import Path

LOCKS = Path(".snakemake/locks")  # Snakemake deletes it whole, notes included, when a run ends by itself
JOBS = Path(".snakemake/scripts")  # what jobs run lies there, in the text of their command lines too


def note_lock_owner() -> None:
    """Writes beside the lock which process holds it; nothing on systems that do not say."""
    if here := this_system():
        LOCKS.mkdir(parents=True, exist_ok=True)
        (LOCKS / f"{os.getpid()}.owner").write_text(f"{here}\n{start_tick(os.getpid())}\n")


def remove_lost_locks() -> str:
    """Removes the locks if all runs that took them were killed, and their jobs too. Returns what there is to say.

    Of a lock whose owner is of another user or machine, of another start of this one, or unknown, nothing is known.
    """
    notes = [*LOCKS.glob("*.owner")]
    locks = [*LOCKS.glob("*.lock")]
    outputs = [*LOCKS.glob("*.output.lock")]  # one for each run
    if not notes or len(outputs) > len(notes) or not all(map(is_lost, notes)):
        return ""
    if jobs := running_jobs():
        numbers = ", ".join(map(str, jobs))
        return f"a run here was killed, but jobs of it go on (process {numbers}): wait for them, or end them"
    try:
        for path in (*notes, *locks):  # notes first: of two runs that come here at once, one gets no further
            path.unlink()
    except FileNotFoundError:
        return ""
    return "the run that held this folder was killed: its lock is removed"


def is_lost(note: Path) -> bool:
    """Is this the note of a process of ours on this system that is no more?"""
    system, tick = note.read_text().splitlines()
    return note.stat().st_uid == os.getuid() and system == this_system() and tick != start_tick(note.stem)


def this_system() -> str:
    """The running kernel and the namespace of its processes; "" where it does not say."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def start_tick(process: int | str) -> str:
    """When the process began, in ticks of the kernel, which no setting of clocks moves; "" if it has ended."""
    try:
        state, *fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else fields[18]


def running_jobs() -> Iterable[int]:
    """Processes that run a script of this folder."""
    scripts = f"{JOBS.resolve()}/"
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if scripts in os.fsdecode(path.read_bytes()):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return sorted(found)
