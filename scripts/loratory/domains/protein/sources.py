"""What the config can say about proteins."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from loratory.domains.contract import (
    DatasetOptions,
    Encoding,
    FilesOptions,
    Locations,
    SequenceDatasetOptions,
    SimulationOptions,
    TableOptions,
    TaskOptions,
)

FAMILIES = {"causal": ("nll", "sample"), "masked": ("nll",)}
AUDIO, FOLDED = False, True


class Files(FilesOptions):
    """FASTA files with UniRef, UniProt or bare headers, tables, or both: pooled, plain or compressed."""

    LOCATIONS: ClassVar[tuple[str, ...]] = ("fasta", "tables")
    PATTERNS: ClassVar[tuple[str, ...]] = LOCATIONS

    fasta: Locations = Field([], description="FASTA: a file, a pattern (`*.fa.gz`), or a list of them")
    tables: Locations = Field([], description="CSV, TSV or parquet with a row a protein, likewise")
    columns: TableOptions = Field(TableOptions(), description="columns of the tables")
    encoding: Encoding = Field("utf-8", description="text encoding of the headers and tables")

    @model_validator(mode="after")
    def check_files(self) -> Self:
        if not self.fasta and not self.tables:
            raise ValueError("neither `fasta` nor `tables` names a file")
        return self


class Simulation(SimulationOptions):
    """Simulated protein families in UniRef50's format."""

    n: int = Field(800, ge=1, description="sequences in all")
    families: int = Field(200, ge=1, description="ancestors that the sequences descend from")
    min_length: int = Field(50, ge=20, description="shortest sequence, residues")
    max_length: int = Field(160, ge=20, description="longest sequence, residues")

    @model_validator(mode="after")
    def check_families(self) -> Self:
        if self.families > self.n:
            raise ValueError(f"families {self.families} > n {self.n}: every family needs a sequence")
        require_length_order(self.min_length, self.max_length)
        return self


class ResidueOptions(SequenceDatasetOptions):
    """Which sequences of residues are kept, and which of them count as related."""

    min_length: int = Field(50, ge=1, description="shortest sequence kept, residues")
    max_length: int = Field(512, ge=1, description="longest sequence kept, residues")
    rare_residues: Literal["map", "drop"] = Field("map", description="U and O: read as C and K, or drop the record")
    identity: float = Field(0.3, gt=0, le=1, description="share of identical residues from which two are related")
    coverage: float = Field(0.8, gt=0, le=1, description="share of a sequence that must align")
    covered: Literal["shorter", "both"] = Field(
        "shorter", description="`shorter`: so much of one of the two is enough, at 40 bits (fragments, shared domains)"
    )

    @model_validator(mode="after")
    def check_lengths(self) -> Self:
        require_length_order(self.min_length, self.max_length)
        return self


class Dataset(ResidueOptions):
    """Which sequences are kept, and which of them count as related."""

    max_ambiguous: float = Field(
        0, ge=0, lt=1, description="largest share of B, Z, J and X that is kept, all written X; 0 drops such records"
    )
    too_long: Literal["drop", "crop", "windows"] = Field(
        "drop",
        description="longer than `max_length`: left out; cut to its first residues; or cut into pieces of that length,"
        " each a record, that never stand in two splits",
    )


class Task(TaskOptions):
    """How a sequence becomes tokens, and what a generated one must be to count as valid."""

    tokens: Literal["text", "letters"] = Field(
        "text",
        description="`letters`: each residue is one token, and probabilities are those among the twenty residues and,"
        " of a causal base, the closing bracket; `text`: as the base's tokenizer cuts it, among all of its tokens (of"
        " ESM-2: as fair-esm has it)",
    )
    min_length: int = Field(30, ge=1, description="shortest valid sample, residues")
    max_length: int = Field(1022, ge=1, description="longest valid sample, residues")

    @model_validator(mode="after")
    def check_lengths(self) -> Self:
        require_length_order(self.min_length, self.max_length)
        return self

    def dataset_conflict(self, dataset: DatasetOptions) -> str | None:
        """The closed alphabet of `letters` has no X."""
        if self.tokens == "text" or not getattr(dataset, "max_ambiguous", 0):
            return None
        return (
            "`task.tokens: letters` cannot write the X that `dataset.max_ambiguous` keeps; expected `tokens: text`, or"
            " `max_ambiguous: 0`"
        )


def require_length_order(min_length: int, max_length: int) -> None:
    if min_length > max_length:
        raise ValueError(f"min_length {min_length} > max_length {max_length}")
