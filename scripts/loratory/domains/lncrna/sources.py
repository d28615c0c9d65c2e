"""Options of the lncRNA domain."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from loratory.domains.contract import DatasetOptions, FilesOptions, SimulationOptions, TaskOptions

FAMILIES = {"causal": ("choice",), "encoder": ("choice",)}
AUDIO, FOLDED = False, False

HeaderFormat = Literal[
    "auto", "gencode", "biomart", "ensembl", "refseq", "gffread", "trinity", "stringtie", "lncipedia", "plain"
]


class Files(FilesOptions):
    """FASTA files of transcripts, plain or gzip. A transcript's class is the field that names its file."""

    LOCATIONS: ClassVar[tuple[str, ...]] = ("coding", "noncoding", "genes")

    coding: list[str] = Field(min_length=1, description="FASTA of mRNAs, such as GENCODE `pc_transcripts`")
    noncoding: list[str] = Field(min_length=1, description="FASTA of lncRNAs, such as GENCODE `lncRNA_transcripts`")
    genes: str | None = Field(None, description="table of transcript and gene, where headers do not name the gene")
    header: HeaderFormat = Field("auto", description="who wrote the headers; `plain`: they name no gene")


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


class Dataset(DatasetOptions):
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
