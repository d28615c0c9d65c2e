"""Options of the lncRNA domain."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from loratory.domains.contract import (
    FilesOptions,
    Locations,
    SequenceDatasetOptions,
    SimulationOptions,
    TableOptions,
    TaskOptions,
    Text,
)

FAMILIES = {"causal": ("choice",), "encoder": ("choice",)}
AUDIO, FOLDED = False, False

HeaderFormat = Literal[
    "auto", "gencode", "biomart", "ensembl", "refseq", "gffread", "trinity", "stringtie", "lncipedia", "plain"
]


class Columns(TableOptions):
    """The columns that are read of tables (CSV, TSV or parquet)."""

    group: Text | None = Field(None, description="gene; rows of one gene never stand in two splits")
    label: Text = Field("label", description="class of a transcript, as `labels` names it")


class Files(FilesOptions):
    """Transcripts in FASTA files, whose class is the field that names their file, or in tables with a column for it.

    Pooled, plain or compressed; each is a file, a pattern (`*.fa.gz`), or a list of them.
    """

    LOCATIONS: ClassVar[tuple[str, ...]] = ("coding", "noncoding", "tables", "genes")
    PATTERNS: ClassVar[tuple[str, ...]] = ("coding", "noncoding", "tables")

    coding: Locations = Field([], description="FASTA of mRNAs, such as GENCODE `pc_transcripts`")
    noncoding: Locations = Field([], description="FASTA of lncRNAs, such as GENCODE `lncRNA_transcripts`")
    tables: Locations = Field([], description="CSV, TSV or parquet with a row a transcript of either class")
    columns: Columns = Field(Columns(), description="columns of the tables")
    labels: dict[str, Literal["coding", "noncoding"]] = Field(
        {"coding": "coding", "noncoding": "noncoding", "0": "coding", "1": "noncoding"},
        description="{value of the column `label`: class}",
    )
    genes: str | None = Field(None, description="table of transcript and gene, where headers do not name the gene")
    header: HeaderFormat = Field("auto", description="who wrote the headers; `plain`: they name no gene")

    @model_validator(mode="after")
    def check_files(self) -> Self:
        if not self.tables and not (self.coding and self.noncoding):
            raise ValueError("no files of both classes are named; expected `coding` and `noncoding`, or `tables`")
        return self


class Simulation(SimulationOptions):
    """Transcripts of an invented species, in GENCODE's format."""

    genes: int = Field(300, ge=8, description="genes of each class")
    isoforms: int = Field(3, ge=1, description="most transcripts of a gene")
    shortest: int = Field(200, ge=150, description="nucleotides of the shortest transcript")
    longest: int = Field(900, ge=150, description="nucleotides of the longest transcript")

    @model_validator(mode="after")
    def check_lengths(self) -> Self:
        if self.shortest > self.longest:
            raise ValueError(f"shortest {self.shortest} exceeds longest {self.longest}")
        return self


class Dataset(SequenceDatasetOptions):
    """Which transcripts are kept, and which may not stand in two splits."""

    min_length: int = Field(200, ge=1, description="nucleotides; 200 is what `long` non-coding means")
    max_length: int = Field(20_000, ge=1, description="nucleotides")
    max_ambiguous: float = Field(0.01, ge=0, lt=1, description="largest share of letters other than A C G T U")
    identity: float = Field(
        0.8, gt=0, le=1, description="share of equal nucleotides that makes two transcripts similar"
    )
    coverage: float = Field(0.8, gt=0, le=1, description="share of a transcript that must align to be similar")
    covered: Literal["shorter", "both"] = Field(
        "shorter", description="`shorter`: so much of one of the two is enough (isoforms, contained transcripts)"
    )

    compat: Literal["official"] | None = Field(
        None,
        description="`official`: the audit also counts what test would share with train if records were split as"
        " LoRA-BERT's code does, transcript and longest frame apart at random (our reading of it); the splits stay",
    )

    @model_validator(mode="after")
    def check_lengths(self) -> Self:
        if self.min_length > self.max_length:
            raise ValueError(f"min_length {self.min_length} exceeds max_length {self.max_length}")
        return self


class Task(TaskOptions):
    """How a transcript is cut into windows that a model reads."""

    prompt: str = Field("[Classify RNA] ", description="what a causal base reads before the sequence")
    layout: Literal["3-mers", "letters", "sequence"] = Field(
        "3-mers", description="how nucleotides are written: `atg cga`, `a t g c g a` or `ATGCGA`"
    )
    reads: Literal["transcript", "frame"] = Field(
        "transcript",
        description="what is cut into windows; `frame`: the longest open reading frame, with its stop codon",
    )
    window: int = Field(384, ge=3, description="nucleotides that a model reads at once")
    stride: int | None = Field(None, ge=1, description="nucleotides between window starts; half a window by default")
    max_windows: int | None = Field(None, ge=1, description="most windows of a transcript, evenly spread; default all")

    @model_validator(mode="after")
    def check_stride(self) -> Self:
        if self.stride and self.stride > self.window:
            raise ValueError(f"stride {self.stride} exceeds window {self.window}: nucleotides would go unread")
        return self
