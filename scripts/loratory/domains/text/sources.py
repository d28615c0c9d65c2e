"""Options of the text domain."""

from typing import ClassVar, Literal

from pydantic import Field

from loratory.domains.contract import (
    DatasetOptions,
    Encoding,
    FilesOptions,
    Locations,
    Options,
    SimulationOptions,
    TaskOptions,
    Text,
)

FAMILIES = {"causal": ("nll", "text", "choice")}
AUDIO, FOLDED = False, False
OUTPUTS = {"completion": ("nll", "text"), "choice": ("choice",)}  # of each question

Question = Literal["completion", "choice"]


class Columns(Options):
    """The keys, or columns, that rows are read from. Which layout a row has is told by the keys that it has."""

    id: Text = Field("id", description="of a row, if there is one; else rows are named after their file and line")
    group: Text = Field("group", description="if there is one: rows of one value never stand in two splits")
    prompt: Text = Field("prompt", description="what is read")
    completion: Text = Field("completion", description="of a prompt: what is written")
    choices: Text = Field("choices", description="of a prompt: the two answers, the same in all rows")
    answer: Text = Field("answer", description="of choices: the right one, or its place, from 0")
    instruction: Text = Field("instruction", description="of Alpaca's layout: what is read")
    input: Text = Field("input", description="of Alpaca's layout: what is read behind the instruction, if anything")
    output: Text = Field("output", description="of Alpaca's layout: what is written")
    messages: Text = Field("messages", description="of chats: turns with `role` and `content`; the last is written")


class Files(FilesOptions):
    """Rows of prompt and completion, prompt and choices, Alpaca's layout, or chats; pooled, plain or compressed."""

    LOCATIONS: ClassVar[tuple[str, ...]] = ("records",)
    PATTERNS: ClassVar[tuple[str, ...]] = LOCATIONS

    records: Locations = Field(
        min_length=1,
        description="JSON objects on lines, or one JSON array of them; by suffix also .csv, .tsv and .parquet with"
        " cells of text: a file, a pattern (`*.jsonl.gz`), or a list of them",
    )
    columns: Columns = Field(Columns(), description="what is where in a row")
    encoding: Encoding = Field("utf-8", description="text encoding of the files")


class Simulation(SimulationOptions):
    """Questions about made-up market stalls, some of them twice in nearly the same words."""

    n: int = Field(400, ge=20, description="different questions; a third has a near-copy besides")
    ask: Question = Field("completion", description="`completion`: for an aisle or a price; `choice`: for yes or no")


class Dataset(DatasetOptions):
    """Which rows are kept, and which may not stand in two splits."""

    similarity: float = Field(
        0.8,
        ge=0.2,
        le=1,
        description="share of common runs of five words (Jaccard index) from which two prompts never stand in two"
        " splits; words that open or close every prompt do not count, nor do case and punctuation",
    )
    max_prompt: int | None = Field(None, ge=1, description="characters; rows with a longer prompt are left out")
    max_completion: int | None = Field(None, ge=1, description="characters; rows with a longer answer are left out")


class Task(TaskOptions):
    """Which question the rows put, and how it becomes tokens."""

    ask: Question = Field(
        "completion", description="`completion`: rows say what is written; `choice`: which of two answers is right"
    )
    separator: str = Field("\n", description="between prompt and answer; of a chat, its template says that")

    @property
    def question(self) -> str:
        return self.ask

    def choose_outputs(self, outputs: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(output for output in outputs if output in OUTPUTS[self.ask])
