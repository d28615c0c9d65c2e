"""Starts the processes that share a training, and ends them together."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from tempfile import TemporaryDirectory
from types import FrameType

import torch
from torch import distributed
from torch.multiprocessing import ProcessContext, ProcessExitedException, start_processes
from torch.multiprocessing.spawn import ProcessException

from loratory.errors import InputError
from loratory.training.fit import STOPS, TrainingStopped

GRACE = 5.0  # seconds that processes have to end by themselves once one has failed, and again once they are asked to


def run_processes(count: int, device: str, function: Callable[[], object]) -> None:
    """Runs a function in so many processes of this host, which share its trainings; one is this process itself.

    They are forked: nothing is sent to them, and nothing here may have used a GPU before. Process k takes the k-th
    GPU. Where one fails, all end; where this one is killed, they save and end as on Ctrl-C.

    Raises:
        InputError: what one of them raised; or one was killed.
        TrainingStopped: SIGTERM or Ctrl-C came, and was passed on to them.
        RuntimeError: one of them failed otherwise; its traceback is printed.
    """
    if count == 1:
        function()
        return
    with TemporaryDirectory() as folder:
        errors: SimpleQueue[tuple[str, str, str]] = get_context("fork").SimpleQueue()
        given = (function, count, device, f"file://{folder}/store", errors)
        context = start_processes(run_one, given, count, join=False, start_method="fork")
        assert isinstance(context, ProcessContext)
        with pass_signals_on(context) as received:
            try:
                while not context.join(grace_period=GRACE):
                    pass
            except ProcessException as error:
                if not received:
                    raise failure(error, count, errors) from None
        if received:
            raise TrainingStopped(143)


def run_one(
    index: int,
    function: Callable[[], object],
    count: int,
    device: str,
    store: str,
    errors: "SimpleQueue[tuple[str, str, str]]",
) -> None:
    """What process `index` does: it joins the others, and is silent unless it is the first."""
    names = {"RANK": index, "LOCAL_RANK": index, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    os.environ.update({name: str(value) for name, value in names.items()})  # as launchers do; accelerate reads them
    if device == "cuda":
        torch.cuda.set_device(index)
    with ExitStack() as stack:
        if index:
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(redirect_stdout(nowhere))
            stack.enter_context(redirect_stderr(nowhere))
        try:
            backend = "nccl" if device == "cuda" else "gloo"
            distributed.init_process_group(backend, init_method=store, rank=index, world_size=count)
            function()
        except InputError as error:
            errors.put((error.where, error.detail, error.reason))
            sys.exit(1)
        except KeyboardInterrupt:
            sys.exit(130)
        distributed.destroy_process_group()


@contextmanager
def pass_signals_on(context: ProcessContext) -> Iterator[list[int]]:
    """Inside, SIGTERM and Ctrl-C ask the processes to finish their step and save; the list holds what came."""
    received: list[int] = []

    def ask_to_stop(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        for process in context.processes:
            process.terminate()

    before = {}
    with suppress(ValueError):  # not the main thread
        before = {number: signal.signal(number, ask_to_stop) for number in STOPS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def failure(error: ProcessException, count: int, errors: "SimpleQueue[tuple[str, str, str]]") -> Exception:
    """What to raise of the first process that failed."""
    if not errors.empty():
        where, detail, reason = errors.get()
        return InputError(where, detail, reason=reason)
    name = f"process {error.error_index} of {count}"
    if isinstance(error, ProcessExitedException):
        what = f"it was killed ({error.signal_name})" if error.signal_name else f"it ended with {error.exit_code}"
        fix = "see that memory suffices; the same command goes on from the last checkpoint"
        return InputError(name, what, fix=fix, reason="killed")
    print(error.msg, flush=True)
    return RuntimeError(f"{name}: {error.msg.strip().splitlines()[-1]}")
