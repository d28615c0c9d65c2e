"""How far a training is: a bar on a terminal, and lines of a job's log that `loratory.terminal` reads again."""

import sys
from time import perf_counter

from tqdm import tqdm

PAUSE = 5.0  # seconds from one line of a training to the next, at the least
SHARE = 0.01  # of the time that it has taken so far, which keeps the log of a week short


class Progress:
    """A bar on a terminal; elsewhere, as in the log of a job, a plain line now and then."""

    def __init__(self, title: str, done: int, steps: int):
        self.title, self.steps = title, steps
        self.started = self.told = perf_counter()
        self.bar = tqdm(desc=title, unit="step", initial=done, total=steps) if sys.stderr.isatty() else None
        if done and self.bar is None:
            print(f"{title}: step {done} of {steps}, continued", flush=True)

    def __call__(self, step: int, loss: float) -> None:
        now = perf_counter()
        due = now - self.told > max(PAUSE, SHARE * (now - self.started))
        if self.bar is not None:
            self.bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            self.bar.update()
        elif due or step in (0, self.steps - 1):
            self.told = now
            print(f"{self.title}: step {step + 1} of {self.steps}, loss {loss:.4f}", flush=True)


def announce_trainings(count: int) -> None:
    """Says in the log of a job how many trainings follow."""
    print(f"{count} trainings", flush=True)
