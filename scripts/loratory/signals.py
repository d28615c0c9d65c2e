"""How a run answers a signal that is sent to its whole process group, as `timeout` and schedulers do."""

import _thread
import signal
from types import FrameType


def answer_aside(number: signal.Signals) -> None:
    """Has the handler of a signal called in a thread of its own.

    Snakemake's handler of SIGTERM takes locks that the main thread may hold where the signal meets it: called there,
    it would wait for itself. A `threading.Thread` takes such locks too when it is started; this one takes none.
    """
    handler = signal.getsignal(number)
    if not callable(handler):
        return

    def start_handler(signum: int, frame: FrameType | None) -> None:
        _thread.start_new_thread(handler, (signum, frame))

    signal.signal(number, start_handler)
