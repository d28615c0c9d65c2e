"""Which GPUs of this host a job uses: it leases as many as it asks for, so that jobs side by side take others.

A lease is a locked file for each GPU, in a folder of this user. The system lets go of a lock when the last process
that holds it ends, however it ends, so none is ever left behind.
"""

import fcntl
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from platform import node
from time import sleep

from loratory.errors import InputError

VISIBLE = "CUDA_VISIBLE_DEVICES"
PAUSE = 1.0  # seconds from one look for free GPUs to the next


@contextmanager
def lease_devices(wanted: int) -> Iterator[None]:
    """Inside, this process sees so many GPUs, which no other job of this user has leased; it waits for free ones.

    GPUs that were chosen for it are taken as they are: where CUDA_VISIBLE_DEVICES, as schedulers set it, names no
    more.

    Args:
        wanted: 0 leases none: all that are visible are shared with other jobs.

    Raises:
        InputError: fewer are there.
    """
    devices, given = visible_devices(), os.environ.get(VISIBLE)
    if len(devices) < max(1, wanted):
        what, expected = "a job asks for GPUs that are not there", f"{max(1, wanted)} that PyTorch sees"
        fix = "run it where they are, or set `device: cpu`"
        raise InputError(f"{node()}: resources.device", what, f"{len(devices)} found", expected, fix, "device")
    if not wanted or (given is not None and len(devices) == wanted):
        yield
        return
    with ExitStack() as locks:
        chosen = take_free(devices, wanted, locks)
        if not chosen:
            print(f"waits for {wanted} of {len(devices)} GPUs, which other jobs have leased", flush=True)
        while not chosen:
            sleep(PAUSE)
            chosen = take_free(devices, wanted, locks)
        os.environ[VISIBLE] = ",".join(chosen)
        print(f"runs on GPU {os.environ[VISIBLE]} of {node()}", flush=True)
        try:
            yield
        finally:
            os.environ.pop(VISIBLE)
            if given is not None:
                os.environ[VISIBLE] = given


def visible_devices() -> list[str]:
    """The GPUs that this process may use, by number or by what CUDA_VISIBLE_DEVICES calls them; none is touched."""
    import torch

    count, given = torch.cuda.device_count(), os.environ.get(VISIBLE)
    names = [str(number) for number in range(count)] if given is None else given.split(",")
    return [name.strip() for name in names[:count]]


def take_free(devices: list[str], wanted: int, locks: ExitStack) -> list[str]:
    """The first GPUs that are free, which `locks` then holds; none where they are fewer than wanted."""
    with ExitStack() as taken:
        chosen: list[str] = []
        for device in devices:
            if len(chosen) < wanted and take_lock(device, taken):
                chosen.append(device)
        if len(chosen) < wanted:
            return []
        locks.push(taken.pop_all())
        return chosen


def take_lock(device: str, locks: ExitStack) -> bool:
    file = open(lock_file(device), "a+")  # noqa: SIM115 closed by `locks`
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return False
    locks.enter_context(file)
    file.truncate(0)
    print(f"leased by process {os.getpid()}", file=file, flush=True)  # for people
    return True


def lock_file(device: str) -> Path:
    """Of a GPU, in a folder that is this user's alone; numbers mean the same within one job of a scheduler."""
    folder = Path(tempfile.gettempdir(), f"loratory-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise InputError(folder, "the folder of leased GPUs is another user's", fix="have it removed")
    job = os.environ.get("SLURM_JOB_ID", "")
    return folder / re.sub(r"[^\w.-]", "_", f"gpu{job and f'-{job}'}-{device}.lock")
