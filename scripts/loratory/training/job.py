"""What the config's `training` means to the loop, and where a job keeps its checkpoints."""

from importlib.metadata import version
from pathlib import Path
from shutil import rmtree

from loratory.training.checkpoint import facts_digest
from loratory.training.fit import Recipe


def training_recipe(schedule, rate: float) -> Recipe:
    """The loop's recipe from the config's `training` at one learning rate."""
    fields = ("steps", "warmup", "weight_decay", "clip", "decay", "precision", "save_every")
    return Recipe(learning_rate=rate, **{name: getattr(schedule, name) for name in fields})


class Job:
    """Where a training runs, and keeps checkpoints that no other facts and no other PyTorch go on from."""

    def __init__(self, device: str, checkpoints, title: str, **facts):
        self.device, self.title = device, title
        self.folder = Path(checkpoints) / facts_digest(title=title, version=version("torch"), **facts)

    @property
    def folder_and_title(self) -> tuple[Path, str]:
        return self.folder, self.title

    def remove_checkpoints(self) -> None:
        """The outcome is stored: its checkpoints may go."""
        rmtree(self.folder, ignore_errors=True)
