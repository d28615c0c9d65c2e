"""Where a training runs and keeps its checkpoints."""

from __future__ import annotations

from copy import copy
from pathlib import Path
from shutil import rmtree
from typing import Any

from loratory.provenance import package_versions
from loratory.training.checkpoint import facts_digest


class Job:
    """Where a training runs, and keeps checkpoints that no other facts go on from.

    Args:
        title: of this training, among those that have the same outcome.
        out: where the outcome goes. made_with: all that it depends on besides, in values of JSON: code, data, config.
    """

    def __init__(self, device: str, checkpoints: Path | str, title: str, out: Path | str = "", **made_with: Any):
        self.device, self.title = device, title
        self.home = Path(checkpoints) / facts_digest(out=str(out))
        self.folder = self.home / facts_digest(title=title)
        self.made_with = made_with | {"device": device, "versions": package_versions()}

    @property
    def folder_and_title(self) -> tuple[Path, str]:
        return self.folder, self.title

    def at_rate(self, rate: float) -> Job:
        """The same training at one of several learning rates, with checkpoints of its own."""
        trial = copy(self)
        trial.title, trial.made_with = f"{self.title} lr {rate:g}", self.made_with | {"rate": rate}
        trial.folder = self.home / facts_digest(title=trial.title)
        return trial

    def remove_checkpoints(self) -> None:
        """The outcome is stored: the checkpoints of all its trainings may go."""
        rmtree(self.home, ignore_errors=True)
