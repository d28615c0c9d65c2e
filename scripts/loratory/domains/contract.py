"""The words in which a domain speaks to the rest: options, examples, metrics. See `loratory.domains`."""

import codecs
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator


def check_encoding(name: str) -> str:
    try:
        codecs.lookup(name)
    except LookupError:
        raise ValueError(f"unknown text encoding `{name}`, expected utf-8, latin-1, …") from None
    return name


Encoding = Annotated[str, AfterValidator(check_encoding)]


class Options(BaseModel):
    """Settings: unknown keys are errors, values do not change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class SplitFractions(Options):
    train: float = Field(0.7, gt=0, lt=1, description="share of records that adapters learn from")
    gate: float = Field(0.1, gt=0, lt=1, description="share held out of train for gates")
    valid: float = Field(0.1, gt=0, lt=1, description="share that choices are made on")
    test: float = Field(0.1, gt=0, lt=1, description="share that is scored once")

    @model_validator(mode="after")
    def check_total(self):
        total = self.train + self.gate + self.valid + self.test
        if abs(total - 1) > 1e-9:
            raise ValueError(f"split fractions sum to {total:g}, expected 1")
        return self


class DatasetOptions(Options):
    """What every domain's dataset can be told."""

    on_error: Literal["fail", "skip"] = Field("fail", description="stop at a malformed record, or note and skip it")
    max_reject_fraction: float = Field(0.01, ge=0, le=1, description="most malformed records that `skip` tolerates")
    max_records: int | None = Field(None, ge=1, description="keep the records with the smallest id hashes")
    split: SplitFractions = Field(SplitFractions(), description="shares of the splits")


class FilesOptions(Options):
    """Where raw files are; subclasses add one field for each file or folder and name these fields in LOCATIONS.

    A location is a path or an https address; an address needs its digest in `sha256`.
    """

    LOCATIONS: ClassVar[tuple[str, ...]] = ()

    kind: Literal["files"] = "files"
    sha256: dict[str, str] = Field({}, description="{address: hex digest} of everything downloaded")
    licence: str | None = Field(None, description="licence of the data, carried into the dataset card")

    def all_locations(self) -> list[str]:
        """Every location named, in field order."""
        values = [getattr(self, name) for name in self.LOCATIONS]
        return [item for value in values if value for item in ([value] if isinstance(value, str) else value)]

    def map_locations(self, move: Callable[[str], str]):
        """A copy whose locations went through `move`."""
        values = {name: getattr(self, name) for name in self.LOCATIONS}
        moved = {
            name: move(value) if isinstance(value, str) else [move(item) for item in value]
            for name, value in values.items()
            if value
        }
        return self.model_copy(update=moved)

    def file_paths(self) -> list[str]:
        """The files whose change rebuilds the dataset; a folder's own files where a location is a folder."""
        return self.all_locations()


class TaskOptions(Options):
    """What every domain's task can be told."""

    max_new_tokens: int = Field(64, ge=1, description="longest continuation, where a model writes")
    chat: bool = Field(False, description="a causal base reads the prompt as a user's turn of its chat template")


@dataclass(frozen=True)
class Example:
    """One question to a model and its answer.

    Attributes:
        id: the record's id; several examples (windows) of one record share it and are averaged.
        group: the record's group; resampling unit of every interval.
        prompt: text that is read and never scored; with an encoder base, the sequence itself.
        target: text that is learnt and scored.
        choices: the possible targets when the task is a choice, the negative first; else empty.
        audio: path of the utterance's audio file, or "".
        alphabet: the letters that the target is made of, the last of which closes it and occurs nowhere else; a causal
            base reads, scores and writes them one by one and knows no others. Empty: text, as its tokenizer cuts it.
        chat: the prompt is a user's turn of the base's chat template.
    """

    id: str
    group: str
    prompt: str
    target: str
    choices: tuple[str, ...] = ()
    audio: str = ""
    alphabet: tuple[str, ...] = ()
    chat: bool = False


# One prediction, as `metrics.columns` receives it (a dict; None where an output does not apply):
#   id, group    of the record, or "sample-0001", … for samples
#   reference    the example's target
#   nll, tokens  summed negative log-likelihood of the target in nats, and its number of tokens (output "nll"): with
#                end-of-sequence, unless an alphabet's last letter closes it
#   p            probability of `choices[1]` among the choices, windows averaged in log odds (output "choice")
#   text         what the model wrote, without end-of-sequence (outputs "text" and "sample")
ROW = ("id", "group", "reference", "nll", "tokens", "p", "text")


def prediction_row(record: Mapping, reference: str, **filled) -> dict:
    """What a control without a language model says of a record; columns that are not `filled` are None."""
    return dict.fromkeys(ROW) | {"id": record["id"], "group": record["group"], "reference": reference} | filled


@dataclass(frozen=True)
class Metric:
    """A number computed from prediction columns (numpy arrays of equal length).

    Attributes:
        name, unit: as printed; `direction` is "up" if more is better, else "down".
        output: the prediction output it needs: "nll", "choice", "text", "sample", or "structure" (folded samples).
        value: columns -> float; NaN if undefined (a single class, no rows).
        where: columns -> (n,) bool, the rows that count (an age group, users with both classes): `value` sees them
            alone, and their number is printed. None: all rows.
        primary: the one metric of the domain that systems are ranked and recovered by.
        note: how it is computed, for the table's foot.
    """

    name: str
    unit: str
    direction: Literal["up", "down"]
    output: str
    value: Callable[[Mapping], float]
    primary: bool = False
    note: str = ""
    where: Callable[[Mapping], Sequence[bool]] | None = None

    @property
    def sign(self) -> int:
        """By which a difference is multiplied to be above 0 where it is for the better."""
        return 1 if self.direction == "up" else -1

    def row_selection(self, columns: Mapping) -> Sequence[bool] | slice:
        """What selects the rows that count."""
        return self.where(columns) if self.where else slice(None)

    def compute_value(self, columns: Mapping) -> float:
        """Its value on the rows that count."""
        rows = self.row_selection(columns)
        return float(self.value({name: column[rows] for name, column in columns.items()}))
