"""What the config can say about chains with a backbone."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from loratory.domains.contract import FilesOptions, TaskOptions
from loratory.domains.protein import sources as protein

FAMILIES = {"folding": ("structure",)}
AUDIO, FOLDED = False, False
# Of the files that a folder stands for, each plain or gzipped; SCOPe's domains have none.
SUFFIXES = (".pdb", ".ent", ".cif", ".mmcif", ".jsonl", ".json", "")


class Simulation(protein.Simulation):
    """Simulated proteins whose backbone follows from their sequence, in the format of `chain_set.jsonl`."""

    n: int = Field(800, ge=1, description="chains in all")


class Files(FilesOptions):
    """PDB or mmCIF files (one record for each chain of model 1), `chain_set.jsonl` or TS50's JSON; plain or gzip."""

    LOCATIONS: ClassVar[tuple[str, ...]] = ("chains",)

    chains: list[str] = Field(min_length=1, description="files, or folders standing for all such files below them")
    origin: Literal["experiment", "predicted"] | None = Field(
        None, description="what chains are whose file does not say it; predicted ones never judge a folding base"
    )
    simulated: Simulation | None = Field(None, description="simulated chains that are added to those of the files")

    def file_paths(self) -> list[str]:
        """The files, those of a folder in order; a location that does not exist is kept for the reader to name."""
        return [path for location in self.chains for path in structure_files(Path(location))]

    @property
    def added_simulation(self) -> Simulation | None:
        return self.simulated


class Dataset(protein.ResidueOptions):
    """Which chains are kept, and which of them count as related."""

    resolved: float = Field(0.9, ge=0, le=1, description="least share of residues with all of N, CA, C and O")


class Task(TaskOptions):
    """A sequence is folded as it is: nothing to choose."""


def structure_files(location: Path) -> list[str]:
    if not location.is_dir():
        return [str(location)]
    return sorted(str(path) for path in location.rglob("*") if path.is_file() and is_structure_file(path))


def is_structure_file(path: Path) -> bool:
    bare = path.with_suffix("") if path.suffix == ".gz" else path
    return not path.name.startswith(".") and bare.suffix.lower() in SUFFIXES
