"""Where a training runs and keeps its checkpoints."""

from importlib.metadata import version
from pathlib import Path
from shutil import rmtree
from typing import Any

from loratory.training.checkpoint import facts_digest


class Job:
    """Where a training runs, and keeps checkpoints that no other facts and no other PyTorch go on from."""

    def __init__(self, device: str, checkpoints: Path | str, title: str, **facts: Any):
        self.device, self.title = device, title
        self.folder = Path(checkpoints) / facts_digest(title=title, version=version("torch"), **facts)

    @property
    def folder_and_title(self) -> tuple[Path, str]:
        return self.folder, self.title

    def remove_checkpoints(self) -> None:
        """The outcome is stored: its checkpoints may go."""
        rmtree(self.folder, ignore_errors=True)
