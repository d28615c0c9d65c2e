"""The config's sections, and the whole study as far as it does not depend on what is registered.

`models` fills in the rest: the entries of domains, of methods and of mixers.
"""

from typing import TYPE_CHECKING, Annotated, Generic, Literal, Self, TypeVar

from pydantic import AfterValidator, Field, model_validator

from loratory.adapters.contract import Method
from loratory.bases.options import BaseEntry, Decoding
from loratory.data.splits import FEWEST_GROUPS, FEWEST_RECORDS
from loratory.domains.contract import DatasetOptions, Options, TaskOptions
from loratory.fields import Counts, DomainNames, Folder, Name, Names, Seeds, require_folder
from loratory.lifecycle.contract import Procedure
from loratory.mixers.contract import Mixer
from loratory.training.schedule import AdapterSweep, Sweep

BASES_ROOT = (
    "folder of published models, one subfolder named as the entry each: bases with `hub` are taken from there instead "
    "of the hub; also replaces `{bases_root}` in `path`"
)


SHARED = (
    "folder that several studies share: a dataset or base that one of them made is copied by the others and not made "
    "anew; simulated and downloaded files lie there"
)


class PathVariables(Options):
    """Snakemake's path variables: where results go. A relative folder lies below the one where Snakemake runs."""

    results: Annotated[str, AfterValidator(require_folder)] = Field("results", description="everything that is made")
    logs: Annotated[str, AfterValidator(require_folder)] = Field("<results>/logs", description="what jobs say")
    benchmarks: Annotated[str, AfterValidator(require_folder)] = Field(
        "<results>/benchmarks", description="seconds and memory of jobs"
    )


class Corpus(Options):
    """General data that bases are pretrained on: the entry of one domain under `general`.

    Attributes:
        source: the domain's `Files` or `Simulation`; dataset: its `Dataset`; task: its `Task`.
    """

    source: Options
    dataset: DatasetOptions
    task: TaskOptions


class Domain(Corpus):
    """What adapters learn: an entry under `domains`, called as its domain.

    Of further entries of the domain, the name has a second part behind a hyphen: `lncrna-cow`.
    """

    adapters: dict[Name, Names] = Field({}, description="{base: adapters trained on this domain}")
    transfer: DomainNames = Field((), description="other entries of the domain, whose systems are tested here too")
    show_records: bool = Field(
        True,
        description="the report shows single test records: voices, texts, users' pasts; false where the report goes to"
        " people who may not have them",
    )


Entry = TypeVar("Entry", bound=Corpus)


class Group(Options, Generic[Entry]):
    """Entries under their names, None for a domain that the config has none of; see `entries_by_name`."""


class Evaluation(Options):
    """What is scored and how."""

    max_records: int | None = Field(200, ge=1, description="test records a domain, by id hash; none means all")
    max_valid: int = Field(100, ge=1, description="valid records a domain for choices made on `valid`")
    samples: int = Field(32, ge=0, description="sequences written by each system where a domain generates")
    folded: int | None = Field(10, ge=1, description="of these samples, the first that are folded; none means all")
    max_folded_length: int | None = Field(
        1024, ge=1, description="longest sequence that is folded, residues; none means as long as memory allows"
    )
    ranked_users: int = Field(
        50, ge=0, description="test users for each of whom every item is ranked, by id hash, where a domain ranks"
    )
    models_rank: bool = Field(False, description="models rank too: a prompt for every item for each such user")
    temperature: float = Field(1.0, gt=0, description="of sampled sequences; of transcripts, see `decoding`")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus of sampled sequences; a small one cuts the rare end")
    decoding: Decoding = Field(Decoding(), description="how bases of family whisper write transcripts")
    batch_tokens: int = Field(8192, ge=1, description="most positions of an evaluation batch")
    min_records: int = Field(FEWEST_RECORDS, ge=1, description="fewest records behind a printed number")
    min_groups: int = Field(FEWEST_GROUPS, ge=1, description="fewest groups of records behind a printed number")
    resamples: int = Field(1000, ge=100, description="bootstrap resamples behind each 95 % interval")

    @model_validator(mode="after")
    def check_numbers(self) -> Self:
        if "folded" in self.model_fields_set and self.folded is not None and self.folded > self.samples:
            raise ValueError(f"folded {self.folded} is above samples {self.samples}")
        return self


class Compare(Options):
    """The adapters of one base as methods that are compared, on every domain that trains them there."""

    base: Name = Field(description="the base that they adapt")
    against: Name = Field("lora", description="the adapter that each of the others is paired with")


class CompareMixers(Options):
    """The mixtures of one base, all of the same experts, on the domains of these experts."""

    base: Name = Field(description="the base that they mix experts of")
    against: Name = Field("uniform", description="the mixture that each of the others is paired with")
    prompts: dict[Name, DomainNames] = Field(
        {}, description="{name: domains}: a test record of each, as one input whose routing is drawn token by token"
    )


class CompareSplits(Options):
    """One adapter under several ways to split the same data: how much of a score is leakage."""

    base: Name = Field(description="the base that it adapts")
    adapter: Name = Field("lora", description="the adapter, which every one of the entries trains")
    entries: DomainNames = Field(min_length=2, description="entries of one domain, the strictest splits last")


class ServeThroughput(Options):
    """How fast a base answers for many of its adapters, measured by `serve_throughput` on this machine."""

    base: Name = Field(description="the base whose adapters of low rank are asked")
    adapters: Counts = Field(
        (1, 10, 100), min_length=1, description="numbers of adapters; the study's stand under as many names"
    )
    requests: int = Field(64, ge=1, description="requests, which come at once, for the adapters in turn")
    prompt_tokens: int = Field(64, ge=1, description="tokens that each reads")
    tokens: int = Field(16, ge=1, description="tokens that each writes at most")
    most_peft: int = Field(100, ge=0, description="the most adapters that PEFT is asked for, beside the engine")


class Resources(Options):
    """What jobs ask for; a profile may set more per rule."""

    device: Literal["cpu", "cuda"] = Field("cpu", description="where models run")
    threads: int = Field(1, ge=1, description="CPU threads of a prediction job")
    mem_mb: int = Field(2500, ge=500, description="memory of such a job; doubled at a second attempt")
    runtime: int = Field(240, ge=1, description="minutes a job may take")
    gpu: int = Field(0, ge=0, description="GPUs such a job asks the scheduler for")


if TYPE_CHECKING:  # the real entries are made by `models.entry_model`, a class for each registered name

    class AdapterEntry(Method):
        """An entry of `adapters`: a method with its options, and how it is trained."""

        method: str
        training: AdapterSweep

    class MixtureEntry(Mixer):
        """An entry of `mixtures`: a mixer with its options, what it mixes, and how it is trained."""

        mixer: str
        base: str
        experts: dict[str, str]
        training: Sweep
        features: bool
        gradient_checkpointing: bool

    class StageEntry(Procedure):
        """An entry of `lifecycle`: a procedure with its options, and what it is done with."""

        procedure: str
        base: str
        domains: tuple[str, ...]
        adapter: str

else:
    AdapterEntry, MixtureEntry, StageEntry = Method, Mixer, Procedure


class Study(Options):
    """One study: domains, bases, adapters, mixtures, and how they are compared."""

    title: str = Field("Loratory", description="heading of the report")
    pathvars: PathVariables = Field(PathVariables(), description="Snakemake's path variables")
    data_root: str = Field("data", min_length=1, description="replaces `{data_root}` in locations")
    bases_root: str | None = Field(None, min_length=1, description=BASES_ROOT)
    shared: Folder | None = Field(None, description=SHARED)
    seeds: Seeds = Field((0,), min_length=1, description="one training of everything for each")
    split_seed: int = Field(0, ge=0, description="decides which group is in which split")
    domains: Group[Domain] = Field(description="what adapters learn and what is reported")
    general: Group[Corpus] = Field(Group[Corpus](), description="what bases are pretrained on")
    bases: dict[Name, BaseEntry] = Field(min_length=1, description="frozen pretrained models by name")
    adapters: dict[Name, AdapterEntry] = Field({}, description="methods with their settings by name")
    mixtures: dict[Name, MixtureEntry] = Field({}, description="mixers over adapters by name")
    lifecycle: dict[Name, StageEntry] = Field(
        {}, description="what is done to adapters around their training, by name"
    )
    folding: Name | None = Field(None, description="a base of family folding, judged on `domains.structure`")
    compare: Compare | None = Field(None, description="what `compare_methods` tells of")
    compare_mixers: CompareMixers | None = Field(None, description="what `compare_mixers` tells of")
    compare_splits: CompareSplits | None = Field(None, description="what `compare_splits` tells of")
    serve_throughput: ServeThroughput | None = Field(None, description="what `serve_throughput` measures")
    evaluation: Evaluation = Field(Evaluation(), description="what is scored and how")
    resources: Resources = Field(Resources(), description="what jobs ask for")


def entries_by_name(group: Group[Entry]) -> dict[str, Entry]:
    """The entries that the config gives, by name, in the config's order of registration."""
    return {name: value for name in type(group).model_fields if (value := getattr(group, name)) is not None}
