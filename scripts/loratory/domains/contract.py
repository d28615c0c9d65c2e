"""What a domain is made of: options, examples, metrics, and what each of its modules defines (the Protocols).

Imported while the config is read: nothing heavy.
"""

import codecs
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from glob import glob
from os.path import exists
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol, Self, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from loratory.data.clips import Clip
from loratory.data.splits import assign_splits
from loratory.errors import short_value

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from loratory.data.ledger import Ledger
    from loratory.data.records import Records
    from loratory.domains.views import Answers, View

Context: TypeAlias = tuple[tuple[int, int], ...]  # see `Example.context`
Columns: TypeAlias = "Mapping[str, np.ndarray]"  # what metrics look at: one array for each name, all of equal length


ASCII = "".join(map(chr, range(128)))


def check_encoding(name: str) -> str:
    try:
        codecs.lookup(name)
        written = ASCII.encode(name)  # some codecs are not of text
    except (LookupError, ValueError):
        raise ValueError(f"unknown text encoding `{name}`, expected utf-8, latin-1, …") from None
    if written != ASCII.encode():  # lines and fields are cut before they are decoded
        raise ValueError(f"text encoding `{name}` writes no ASCII, expected utf-8, latin-1, …; re-encode the files")
    return name


def check_digest(digest: str) -> str:
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise ValueError(f"`{short_value(digest)}` is no sha256 digest, expected 64 hexadecimal digits, small letters")
    return digest


def list_of_one(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Digest = Annotated[str, AfterValidator(check_digest)]
Encoding = Annotated[str, AfterValidator(check_encoding)]
Text = Annotated[str, Field(min_length=1)]
Locations = Annotated[list[Text], BeforeValidator(list_of_one, json_schema_input_type=Text | list[Text])]


class Options(BaseModel):
    """Settings: unknown keys are errors, values do not change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class SplitFractions(Options):
    train: float = Field(0.7, gt=0, lt=1, description="share of records that adapters learn from")
    gate: float = Field(0.1, gt=0, lt=1, description="share held out of train for gates")
    valid: float = Field(0.1, gt=0, lt=1, description="share that choices are made on")
    test: float = Field(0.1, gt=0, lt=1, description="share that is scored once")

    @model_validator(mode="after")
    def check_total(self) -> Self:
        total = self.train + self.gate + self.valid + self.test
        if abs(total - 1) > 1e-9:
            raise ValueError(f"split fractions sum to {total:g}, expected 1")
        return self


class DatasetOptions(Options):
    """Settings that the dataset of every domain has."""

    on_error: Literal["fail", "skip"] = Field("fail", description="stop at a malformed record, or note and skip it")
    max_reject_fraction: float = Field(0.01, ge=0, le=1, description="most malformed records that `skip` tolerates")
    max_records: int | None = Field(None, ge=1, description="keep the records with the smallest id hashes")
    split: SplitFractions = Field(SplitFractions(), description="shares of the splits")

    @property
    def drops_similar(self) -> bool:
        """Whether records that resemble one of a more protected split are dropped."""
        return True

    def forbids(self, count: str) -> bool:
        """Whether the audit stops where this count of its proof is not 0."""
        return True

    @property
    def split_limits(self) -> dict[str, int]:
        """{split: most records of it}, where a split has a limit of its own."""
        return {}

    def source_conflict(self, source: Options) -> str | None:
        """Why such a dataset cannot be made of a source; None if it can."""
        return None


RESEMBLES = ("resembles_test", "resembles_valid", "resembles_gate")
LET_THROUGH = {
    "searched": (),
    "clustered": RESEMBLES,
    "random": (*RESEMBLES, "genes_in_two_splits", "units_in_two_splits"),
}


class SequenceDatasetOptions(DatasetOptions):
    """Settings of datasets of sequences, whose splits may be made as weakly as is usual, to see what that is worth."""

    protocol: Literal["searched", "clustered", "random"] = Field(
        "searched",
        description="`searched`: related sequences share a split, and what a search still finds in another is dropped;"
        " `clustered`: without that search; `random`: each record alone. Only `searched` is proven not to leak",
    )

    @property
    def drops_similar(self) -> bool:
        return self.protocol == "searched"

    def forbids(self, count: str) -> bool:
        """What a weaker protocol lets through is counted and printed."""
        return count not in LET_THROUGH[self.protocol]


class FilesOptions(Options):
    """Where raw files are; subclasses add one field for each file or folder and name these fields in LOCATIONS.

    A location is a path or an https address; an address needs its digest in `sha256`. Fields named in PATTERNS, lists
    of files, may hold patterns too (`*`, `?`, `[…]`, `**` for folders).
    """

    LOCATIONS: ClassVar[tuple[str, ...]] = ()
    PATTERNS: ClassVar[tuple[str, ...]] = ()

    kind: Literal["files"] = "files"
    sha256: dict[str, Digest] = Field({}, description="{address: hex digest} of everything downloaded")
    licence: str | None = Field(None, description="licence of the data, carried into the dataset card")

    def all_locations(self) -> list[str]:
        """Every location named, in field order."""
        values = [getattr(self, name) for name in self.LOCATIONS]
        return [item for value in values if value for item in ([value] if isinstance(value, str) else value)]

    def expand_patterns(self) -> Self:
        """A copy in which the files that match stand in place of each pattern; one that none matches stays."""
        found = {
            name: [path for item in getattr(self, name) for path in matching_files(item)] for name in self.PATTERNS
        }
        return self.model_copy(update=found)

    def map_locations(self, move: Callable[[str], str]) -> Self:
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
        return self.expand_patterns().all_locations()

    def listed_files(self) -> list[str]:
        """Files that those of `file_paths` name, such as recordings, as far as they are there.

        They are read where they are, and a change of one rebuilds the dataset too.
        """
        return []

    @property
    def added_simulation(self) -> "SimulationOptions | None":
        """The simulator whose files are added to each list of locations, in a domain that has such an option."""
        return None


def matching_files(location: str) -> list[str]:
    """The files that a pattern matches, sorted; a path, an address and a pattern without a match as they are."""
    if "://" in location or not {*"*?["} & {*location} or exists(location):
        return [location]
    return sorted(path for path in glob(location, recursive=True) if Path(path).is_file()) or [location]


class TableOptions(Options):
    """The columns that are read of tables (CSV, TSV or parquet)."""

    id: Text | None = Field("id", description="of a row; null: rows are named after the file and their place in it")
    sequence: Text = Field("sequence", description="letters")
    group: Text | None = Field(None, description="rows of one value never stand in two splits, as those of a gene")

    def named_columns(self) -> dict[str, str]:
        """{what it holds: column} of the columns that have a name."""
        return {key: name for key, name in self.model_dump().items() if isinstance(name, str)}


class SimulationOptions(Options):
    """Size and traits of a domain's simulator, the other `source` beside raw files."""

    kind: Literal["simulate"] = "simulate"


class TaskOptions(Options):
    """Settings that the task of every domain has."""

    max_new_tokens: int = Field(64, ge=1, description="longest continuation, where a model writes")
    chat: bool = Field(False, description="a causal base reads the prompt as a user's turn of its chat template")

    @property
    def question(self) -> str:
        """Which of a domain's questions is put, if it has several; see `Metric.questions`."""
        return ""

    def choose_outputs(self, outputs: tuple[str, ...]) -> tuple[str, ...]:
        """Which of the outputs of a family of bases (FAMILIES) the question has: all of them, if there is but one."""
        return outputs

    def dataset_conflict(self, dataset: DatasetOptions) -> str | None:
        """Why records of such a dataset cannot be put to a model so; None if they can."""
        return None

    def base_conflict(self, base: Any) -> str | None:
        """Why a base of such a config entry cannot be asked so; None if it can."""
        return None


@dataclass(frozen=True)
class Example:
    """One question to a model and its answer.

    Attributes:
        id: the record's id; several examples (windows) of one record share it and are averaged.
        group: the record's group; resampling unit of every interval.
        prompt: text that is read and never scored; with an encoder base, the sequence itself.
        target: text that is learnt and scored.
        choices: the possible targets when the task is a choice, the negative first; else empty.
        audio: the utterance's sound; a path stands for a whole file that nothing is known of; "" if there is none.
        alphabet: the letters that the target is made of; a base reads, scores and writes them one by one and no
            others. Of a causal base, the last closes the target and occurs nowhere else. Empty: text, as its tokenizer
            cuts it.
        chat: the prompt is a user's turn of the base's chat template.
        asked: of what is to be continued freely, what it should have; the row's `reference`.
        context: who is asked about what, in numbers, for mixers that read it; empty where nothing is known. Rows of an
            item's key (above 0, alike for alike items) and how much it was liked, in any unit: first the item that is
            asked about, with 0, then what the user did before, oldest first.
    """

    id: str
    group: str
    prompt: str
    target: str
    choices: tuple[str, ...] = ()
    audio: Clip | str = ""
    alphabet: tuple[str, ...] = ()
    chat: bool = False
    asked: str = ""
    context: Context = ()


# One prediction, as `metrics.columns` receives it (a dict; None where an output does not apply):
#   id, group    of the record, or "sample-0001", … for samples
#   reference    the example's target, or what a sample is asked for
#   nll, tokens  summed negative log-likelihood of the target in nats, and its number of tokens (output "nll"): with
#                end-of-sequence, unless an alphabet's last letter closes it
#   p            probability of `choices[1]` among the choices, windows averaged in log odds (output "choice")
#   text         what the model wrote, without end-of-sequence (outputs "text" and "sample")
# and, where they are asked,
#   no_speech    whether the model takes the clip for silence (output "text" of a Whisper base)
#   too_long     whether the reference has more tokens than may be written (output "text")
# and, where a domain ranks,
#   above, tied  how many other candidates score higher than the reference, and how many as high (output "rank")
ROW = ("id", "group", "reference", "nll", "tokens", "p", "text")


def prediction_row(record: Mapping, reference: str, **filled: Any) -> dict:
    """The prediction of a control without a language model for a record; columns that are not `filled` are None."""
    return dict.fromkeys(ROW) | {"id": record["id"], "group": record["group"], "reference": reference} | filled


@dataclass(frozen=True)
class Metric:
    """A number computed from prediction columns (numpy arrays of equal length).

    Attributes:
        name, unit: as printed; `direction` is "up" if more is better, else "down".
        output: the prediction output it needs: "nll", "choice", "text", "rank", "sample", or "structure" (folded
            samples).
        value: columns -> float; NaN if undefined (a single class, no rows).
        where: columns -> (n,) bool, the rows that count (an age group, users with both classes): `value` sees them
            alone, and their number is printed. None: all rows.
        classes: columns -> (n,) the class of each row, of a metric that tells classes apart: a floor of records and
            groups holds for the rarest class. None: for all rows together.
        primary: the one metric of the domain that systems are ranked and recovered by.
        loss: at most one metric of the domain: what learning rates are chosen by, as a score of test records. Unless
            it is the primary one, it stands beside that wherever systems are compared.
        note: how it is computed, for the table's foot.
        questions: values of the task's `question` that it belongs to; () means all. Of those of one question, one is
            primary and at most one the loss.
        each: columns -> (n,) a name for each row: the metric is printed once more for the rows of each name that has
            enough of them. None: only for all together.
    """

    name: str
    unit: str
    direction: Literal["up", "down"]
    output: str
    value: Callable[[Columns], float]
    primary: bool = False
    note: str = ""
    where: "Callable[[Columns], np.ndarray] | None" = None
    classes: "Callable[[Columns], np.ndarray] | None" = None
    loss: bool = False
    questions: tuple[str, ...] = ()
    each: "Callable[[Columns], np.ndarray] | None" = None

    @property
    def sign(self) -> int:
        """By which a difference is multiplied to be above 0 where it is for the better."""
        return 1 if self.direction == "up" else -1

    def row_selection(self, columns: Columns) -> "np.ndarray | slice":
        """What selects the rows that count."""
        return self.where(columns) if self.where else slice(None)

    def compute_value(self, columns: Columns) -> float:
        """Its value on the rows that count."""
        rows = self.row_selection(columns)
        return float(self.value({name: column[rows] for name, column in columns.items()}))


class SourcesModule(Protocol):
    """`sources.py`: what the config can say. Imported while the config is read: pydantic and this contract only."""

    @property
    def FAMILIES(self) -> Mapping[str, tuple[str, ...]]:
        """{family of bases: outputs that are predicted there}.

        Outputs are "nll", "choice", "text", "rank", "sample" and, of a family that folds, "structure".
        """

    @property
    def AUDIO(self) -> bool:
        """Whether examples carry audio."""

    @property
    def FOLDED(self) -> bool:
        """Whether samples are proteins to be folded; `task.py` is then a FoldedTaskModule."""

    @property
    def Files(self) -> type[FilesOptions]:
        """Where raw files are and how they are read."""

    @property
    def Simulation(self) -> type[SimulationOptions]:
        """Size and traits of the simulator."""

    @property
    def Dataset(self) -> type[DatasetOptions]:
        """What is kept, and how records are grouped."""

    @property
    def Task(self) -> type[TaskOptions]:
        """How a record is put to a model."""


class BuildModule(Protocol):
    """`build.py`: raw files → records. `files` and `dataset` are the domain's own `Files` and `Dataset`; records are
    read as they are wanted (`data.records`)."""

    @property
    def COLUMNS(self) -> "Mapping[str, str | pa.DataType]":
        """{column: Arrow type or its name} of a record, beside `id` and `group`."""

    @property
    def DISTINCT(self) -> str:
        """The column of whose equal values one record is kept; "" where equal values are no copies."""

    @property
    def find_leaks(self) -> Callable[[Any, Any, Any], dict[str, str]] | None:
        """(held_out, others, dataset) -> {id among `others`: id of the held-out record that it resembles}.

        Called for each split with all less protected ones. None: nothing is looked for beyond the groups.
        """

    @property
    def group(self) -> "Callable[[Any, Any], Iterable[str]] | None":
        """(records, dataset) -> the group of each record: the unit that stands in one split and that is resampled.
        None: they have a column `group`."""

    def read(self, files: Any, dataset: Any, ledger: "Ledger") -> "Iterable[dict] | Records":
        """Validated records, with `id` and COLUMNS; every raw record is accounted for in the ledger.

        They are taken as they come, one at a time where they are yielded so, and lie on disk from then on; columns
        that only `split` knows may be missing. A key `where`, `file:record`, is what the ledger says of a copy
        (DISTINCT); it is not written. A domain with too many records for a dict each returns a subclass of `Records`,
        in id order, which is then what `split` and `summary` are given.

        Raises:
            InputError: malformed input, named by file and record; of single records only with `on_error: fail`.
        """

    def split(self, records: Any, dataset: Any, seed: int, ledger: "Ledger") -> "Records":
        """The records, in id order and with a column `group`, with a column `split`, one of `data.splits.SPLITS`, and
        all that depends on it; `partial(random_split, domain)` hashes the groups.

        Args:
            ledger: of records that are left out for it.

        Raises:
            InputError: the records cannot fill every split.
        """

    def proof(self, parts: Any, dataset: Any) -> dict[str, int]:
        """{name of a count that must be 0: count}, from {split: its records, as they are read back}."""

    def count_overlaps(self, held_out: Any, others: Any, dataset: Any) -> dict[str, dict]:
        """{what is shared: {`records`: how many held out share it with one of the others, `sensitivity`: the share of
        such pairs that the search finds, None if unknown}}: what the audit says beside the counts that must be 0.

        `no_overlaps`: nothing.
        """

    def summary(self, records: Any) -> dict[str, Any]:
        """Facts for the dataset card (JSON), from the records that were kept, with a column `split`."""


class TaskModule(Protocol):
    """`task.py`: records → questions. `task` is the domain's own `Task`."""

    def examples(self, records: list[dict], task: Any, family: str) -> list[Example]:
        """The examples for a base of a family in FAMILIES, one or more for each record, in the records' order."""

    def baselines(self, train: Sequence[dict], held_out: list[dict], task: Any) -> dict[str, list[dict]]:
        """{system: a row (see ROW) for each held-out record} of controls that need no language model.

        They learn from `train`, and read of a held-out record what a model may read. `no_baselines`: there are none.
        """


class RankingTaskModule(TaskModule, Protocol):
    """`task.py` of a domain with the output "rank", which is made of the output "choice" of all candidates."""

    def ranking_lists(self, parts: "Mapping[str, Records]", users: int) -> Iterable[list[dict]]:
        """Records of all candidates of one question, those of test that were chosen first; one list for each user.

        Args:
            parts: {split: its records}. users: most lists.
        """

    def fit_baselines(self, train: Sequence[dict], task: Any) -> dict[str, Callable[[list[dict]], list[dict]]]:
        """{system: records -> their rows, with `p`} of what `baselines` answers with."""


class SamplingTaskModule(TaskModule, Protocol):
    """`task.py` of a domain with the output "sample"."""

    def sample_prompts(self, test: list[dict], n: int, task: Any, family: str) -> list[Example]:
        """`n` examples with an empty target, to be continued freely; what they ask for may be that of test records."""

    def sample_baselines(self, test: list[dict], n: int, task: Any) -> dict[str, list[dict]]:
        """{system: rows with the ids of `n` samples, and their `text`} of controls that need no language model."""


class FoldedTaskModule(SamplingTaskModule, Protocol):
    """`task.py` of a domain whose samples are folded (FOLDED)."""

    def sample_residues(self, text: str) -> str | None:
        """The residues of a sample's text; None if it is no whole protein."""


class MetricsModule(Protocol):
    """`metrics.py`: predictions → numbers."""

    @property
    def METRICS(self) -> tuple[Metric, ...]:
        """What is computed, in the order of tables; of each question exactly one is primary."""

    @property
    def TRAIN_KEYS(self) -> tuple[str, ...]:
        """Columns of records whose values train may never have held, such as users; () for none. `columns` finds in
        scored records `known_{column}`, 1 or 0, and tables say how many of test are new."""

    @property
    def VERSION(self) -> int:
        """Of the metrics' meaning, from 1: raised when one of them changes what it means."""

    def columns(self, rows: list[dict], records: list[dict], task: Any) -> dict[str, "np.ndarray"]:
        """{column: array (n,)} of the n `rows` (see ROW): what METRICS look at.

        Args:
            records: those of the rows' split; of samples, those of train, which were learnt from.
        """


class IdentityMetricsModule(MetricsModule, Protocol):
    """`metrics.py` of a domain that knows how alike two of its records are."""

    def nearest_identities(self, texts: Sequence[str], records: Sequence[Mapping]) -> list[float]:
        """Of each text the largest identity (0–1) of what it holds to one of the records."""


class FoldingMetricsModule(MetricsModule, Protocol):
    """`metrics.py` of a domain with bases of family "folding": rows are what `evaluation.assess` computes."""

    def columns(self, rows: list[dict], records: list[dict] | None, task: Any) -> dict[str, "np.ndarray"]:
        """As of any domain; neither records nor task are needed, and both may be None."""

    def calibration_bins(self, columns: Columns) -> list[dict]:
        """Of each bin of confidence: `low`, `high`, `chains`, `residues`, mean `plddt` and mean `lddt` (JSON)."""


class SimulateModule(Protocol):
    """`simulate.py`: raw files of the public formats, made up."""

    def simulate(self, simulation: Any, population: str, seed: int, out: Path) -> dict[str, Any]:
        """Writes files into the folder `out`; returns the fields of `Files`, with paths relative to `out`.

        Args:
            simulation: the domain's own `Simulation`.
            population: "general" (what bases are pretrained on) or "domain" (what adapters learn): the two differ in
                distribution and share no record.
        """


class ViewsModule(Protocol):
    """`views.py`, which a domain may have besides: what its page shows of single records."""

    def show_records(self, answers: "Answers", task: Any) -> "list[View]":
        """Sections of the page, the same for the same answers; none where there is nothing to look at."""


def random_split(domain: str, records: "Records", dataset: DatasetOptions, seed: int, ledger: "Ledger") -> "Records":
    """`split` of a domain that has no rule of its own: by a hash of the group. `domain` is for the error."""
    homes = assign_splits(records.texts("group"), dataset.split.model_dump(), seed, domain)
    return records.with_column("split", homes)


def no_baselines(train: Sequence[dict], held_out: list[dict], task: Any) -> dict[str, list[dict]]:
    """`baselines` of a domain that has none."""
    return {}


def no_overlaps(held_out: list[dict], others: list[dict], dataset: Any) -> dict[str, dict]:
    """`count_overlaps` of a domain that looks for none."""
    return {}


def exact_overlap(held_out: Iterable[Hashable], others: Iterable[Hashable]) -> dict:
    """An entry of `count_overlaps` for values that are compared exactly, one for each record."""
    known = set(others)
    return {"records": sum(value in known for value in held_out), "sensitivity": 1.0}
