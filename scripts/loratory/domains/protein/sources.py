"""What the config can say about proteins."""

import difflib
from typing import Annotated, ClassVar, Literal, Self, get_args

from pydantic import AfterValidator, Field, model_validator

from loratory.domains.contract import (
    DatasetOptions,
    Encoding,
    FilesOptions,
    Locations,
    Options,
    SequenceDatasetOptions,
    SimulationOptions,
    TableOptions,
    TaskOptions,
    Text,
)
from loratory.fields import Name, require_distinct

FAMILIES = {"causal": ("nll", "text", "sample"), "masked": ("nll",)}
AUDIO, FOLDED = False, True
LABELLED = ("generate", "determine")  # what is asked of a protein by one of its labels
COMPUTED = ("calculate", "design")  # and by what follows from its sequence
ANSWERED = ("determine", "calculate")  # whose answer is no sequence


class Files(FilesOptions):
    """FASTA files with UniRef, UniProt or bare headers, tables, or both: pooled, plain or compressed."""

    LOCATIONS: ClassVar[tuple[str, ...]] = ("fasta", "tables", "labels")
    PATTERNS: ClassVar[tuple[str, ...]] = LOCATIONS

    fasta: Locations = Field([], description="FASTA: a file, a pattern (`*.fa.gz`), or a list of them")
    tables: Locations = Field([], description="CSV, TSV or parquet with a row a protein, likewise")
    columns: TableOptions = Field(TableOptions(), description="columns of the tables")
    labels: Locations = Field(
        [],
        description="CSV, TSV or parquet with the columns of `dataset.labels` and an id; none: they are in `tables`",
    )
    label_id: Text = Field("Entry", description="column of the label tables that holds ids or accessions of records")
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


class Label(Options):
    """A property that records are labelled with."""

    column: Text = Field(description="column that holds its values")
    separator: Text | None = Field(";", description="between several values of a cell; null: a cell is one value")
    levels: int | None = Field(None, ge=1, le=4, description="fields of an EC number that are kept, 1 for its class")
    names: dict[Text, Text] = Field({}, description="{value: what it is called}; if given, no other value is a label")
    several: bool = Field(
        False, description="a record may have more than one value (keywords, domains); else that is malformed"
    )
    required: bool = Field(False, description="records without a value are left out")


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
    labels: dict[Name, Label] = Field({}, description="{property, such as `superfamily`: where records have it from}")


Quantity = Literal["weight", "pi", "gravy", "instability"]
Quantities = Annotated[tuple[Quantity, ...], AfterValidator(require_distinct)]
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)


class Task(TaskOptions):
    """What is asked of a protein, how it becomes tokens, and what a generated one must be to count as valid."""

    ask: Literal["sequence", "generate", "determine", "calculate", "design"] = Field(
        "sequence",
        description="`sequence`: to write it, as in pretraining; `generate` it by its label, or `determine` its label,"
        " as in ProLLaMA's instructions; `calculate` what follows from it or `design` it by that, this project's"
        " interpretation of X-LoRA's protein tasks",
    )
    label: Name | None = Field(None, description="of `dataset.labels`, by which `generate` and `determine` ask")
    quantities: Quantities = Field(
        QUANTITIES,
        min_length=1,
        description="of `calculate` and `design`: kDa, isoelectric point, mean hydropathy, instability index",
    )
    min_label: int = Field(10, ge=1, description="fewest train records of a label that samples are judged by")
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

    @model_validator(mode="after")
    def check_question(self) -> Self:
        if (self.label is None) == (self.ask in LABELLED):
            raise ValueError(f"`ask: {self.ask}` {'needs' if self.label is None else 'has no use for'} `label`")
        if self.quantities != QUANTITIES and self.ask not in COMPUTED:
            raise ValueError(f"`ask: {self.ask}` has no use for `quantities`")
        if self.tokens == "letters" and self.ask in ANSWERED:
            raise ValueError(f"`tokens: letters` writes sequences, and the answer to `ask: {self.ask}` is none")
        return self

    @property
    def question(self) -> str:
        return self.ask

    def choose_outputs(self, outputs: tuple[str, ...]) -> tuple[str, ...]:
        """Sequences are sampled; other answers are written once."""
        return tuple(output for output in outputs if output != ("sample" if self.ask in ANSWERED else "text"))

    def dataset_conflict(self, dataset: DatasetOptions) -> str | None:
        """Neither the closed alphabet of `letters` nor what follows from a sequence has an X; a label must be read."""
        if getattr(dataset, "max_ambiguous", 0):
            if self.tokens == "letters":
                return (
                    "`task.tokens: letters` cannot write the X that `dataset.max_ambiguous` keeps; expected `tokens:"
                    " text`, or `max_ambiguous: 0`"
                )
            if self.ask in COMPUTED:
                return (
                    f"`task.ask: {self.ask}` knows no weight of the X that `dataset.max_ambiguous` keeps; expected"
                    " `max_ambiguous: 0`"
                )
        labels = getattr(dataset, "labels", {})
        if self.label is None or self.label in labels:
            return None
        near = difflib.get_close_matches(self.label, labels, n=1, cutoff=0.5)
        return (
            f"`task.label: {self.label}` is not among `dataset.labels` ({', '.join(labels) or 'none'})"
            f"; {f'did you mean `{near[0]}`?' if near else 'say there which column holds it'}"
        )


def require_length_order(min_length: int, max_length: int) -> None:
    if min_length > max_length:
        raise ValueError(f"min_length {min_length} > max_length {max_length}")
