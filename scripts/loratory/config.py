"""The config file as typed models: the one source of keys, defaults, checks and the JSON schema.

The models are put together from what is registered: each domain, method and mixer brings its own options, so adding
one adds its keys here without an edit. Reading a config imports neither torch nor pandas.
"""

import re
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    create_model,
    model_validator,
)

from loratory import registry
from loratory.adapters.contract import BaseWeightsMethod
from loratory.bases.options import WhisperOptions
from loratory.domains.contract import Options
from loratory.errors import InputError, short_value
from loratory.problems import first_problem

RESOURCES = Path(__file__).parents[2] / "resources"  # what the project ships, wherever it runs
COMMIT = re.compile("[0-9a-f]{40}")
NAME = "[a-z][a-z0-9_]*"
Name = Annotated[str, StringConstraints(pattern=f"^{NAME}$")]
Family = Literal["causal", "encoder", "whisper", "folding"]


def require_distinct(values: tuple) -> tuple:
    """`values`, which must differ: each of them names something that is made."""
    twice = next((value for value in values if values.count(value) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice} is given twice")
    return values


Names = Annotated[tuple[Name, ...], AfterValidator(require_distinct)]
Rates = Annotated[tuple[Annotated[float, Field(gt=0)], ...], AfterValidator(require_distinct)]
Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], AfterValidator(require_distinct)]


class Schedule(Options):
    """How long something is trained, and with what."""

    steps: int = Field(200, ge=1, description="optimizer steps")
    batch_tokens: int = Field(4096, ge=1, description="most positions of a batch, padding included")
    warmup: float = Field(0.05, ge=0, le=1, description="share of the steps with a rising learning rate")
    decay: Literal["cosine", "constant"] = Field("cosine", description="learning rate after the warm-up")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay of AdamW")
    clip: float = Field(1.0, gt=0, description="largest norm of all gradients together")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="of the forward pass; bf16 is autocast")
    save_every: int = Field(200, ge=0, description="steps between checkpoints")
    threads: int = Field(1, ge=1, description="CPU threads; sums depend on it in the last digits, so it is set here")


class Training(Schedule):
    """One training of something."""

    learning_rate: float = Field(1e-3, gt=0, description="highest learning rate")


class Sweep(Schedule):
    """A training for each learning rate."""

    learning_rates: Rates = Field((1e-3,), min_length=1, description="grid; the best on `valid` is kept")

    @model_validator(mode="before")
    @classmethod
    def one_rate(cls, given):
        if isinstance(given, dict) and "learning_rate" in given:
            raise ValueError(f"`learning_rate` was renamed to `learning_rates`, a list: [{given['learning_rate']}]")
        return given


class Corpus(Options):
    """General data that bases are pretrained on: the entry of one domain under `general`."""


class Pretrain(Options):
    """Train a small base of the family from nothing, on the general data."""

    domains: Names = Field(min_length=1, description="which corpora of `general` it reads")
    architecture: dict[str, Any] = Field(description="fields of the Hugging Face config of the family")
    vocabulary: int = Field(1024, ge=64, description="tokens of the tokenizer that is trained first")
    training: Training = Field(Training(), description="of all its weights")
    seed: int = Field(0, ge=0, description="of its initial weights and of its batches")
    dtype: Literal["float32", "float16"] = Field("float32", description="of the stored weights; trained in float32")


class Audio(Options):
    """Ears for a causal base: frozen Whisper encoder, stacked frames, trained projector."""

    encoder: Name = Field(description="a base of family whisper")
    stack: int = Field(5, ge=1, description="encoder frames that make one prefix embedding")
    hidden: int = Field(256, ge=1, description="width of the projector's hidden layer")
    corpus: Name | None = Field(None, description="corpus of `general` that a given base's projector learns from")
    training: Training = Field(Training(), description="of the projector of a given base, which itself stays frozen")


class BaseEntry(Options):
    """A frozen base, from exactly one of `path`, `hub` and `pretrain`."""

    family: Family = Field(description="how it reads and what it can be asked")
    path: str | None = Field(None, description="folder with safetensors, config and tokenizer, or OpenAI's `.pt`")
    hub: str | None = Field(None, description="Hugging Face hub id, with `revision`; see also `bases_root`")
    revision: str | None = Field(None, description="commit of the hub repository, 40 hexadecimal digits")
    pretrain: Pretrain | None = Field(None, description="train it in the workflow")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="in which its frozen weights are held in memory")
    audio: Audio | None = Field(None, description="audio prefix of a causal base")
    whisper: WhisperOptions | None = Field(None, description="how a base of family whisper is asked")
    parameters: int | None = Field(
        None, ge=1, description="numbers in its weights, for a forecast before it is on disk"
    )
    licence: str | None = Field(None, description="licence of the weights")
    note: str = Field("", description="one line for the tables: what this base is and is not")

    @model_validator(mode="after")
    def one_origin(self):
        given = [origin for origin in ("path", "hub", "pretrain") if getattr(self, origin) is not None]
        if len(given) != 1:
            raise ValueError(f"given: {', '.join(given) or 'none'}; expected one of `path`, `hub` and `pretrain`")
        if self.hub and not self.revision:
            raise ValueError("`hub` needs `revision` (a commit): a moving branch cannot be reproduced")
        if self.revision and not COMMIT.fullmatch(self.revision):
            raise ValueError(
                f"`revision` is no whole commit ({short_value(self.revision)}); expected 40 hexadecimal digits"
            )
        if self.precision != "fp32" and self.family == "folding":
            raise ValueError("a folding base has its own precision; leave `precision` out")
        if self.audio and self.family != "causal":
            raise ValueError("only a causal base takes `audio`")
        if self.whisper and self.family != "whisper":
            raise ValueError("only a base of family whisper takes `whisper`")
        if self.path and self.path.endswith(".pt") and self.family != "whisper":
            raise ValueError("only a base of family whisper may be a `.pt` file (OpenAI's format)")
        return self

    @property
    def corpora(self) -> tuple[str | None, ...]:
        """The corpora of `general` that it learns from here, if any."""
        return self.pretrain.domains if self.pretrain else (self.audio.corpus,) if self.audio else ()

    @property
    def has_audio(self) -> bool:
        """Ears are made here, or come with the folder."""
        return self.audio is not None or bool(self.path and Path(self.path, "audio").is_dir())

    @property
    def training(self) -> Training | None:
        learnt = self.pretrain or self.audio
        return learnt and learnt.training


class Evaluation(Options):
    """What is scored and how."""

    max_records: int | None = Field(200, ge=1, description="test records a domain, by id hash; none means all")
    max_valid: int = Field(100, ge=1, description="valid records a domain for choices made on `valid`")
    samples: int = Field(32, ge=0, description="sequences written by each system where a domain generates")
    folded: int | None = Field(10, ge=1, description="of these samples, the first that are folded; none means all")
    temperature: float = Field(1.0, gt=0, description="of sampled sequences; transcripts are greedy")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus of sampled sequences; a small one cuts the rare end")
    batch_tokens: int = Field(8192, ge=1, description="most positions of an evaluation batch")
    min_records: int = Field(10, ge=1, description="fewest records behind a printed number")
    min_groups: int = Field(3, ge=1, description="fewest groups of records behind a printed number")
    resamples: int = Field(1000, ge=100, description="bootstrap resamples behind each 95 % interval")


class Compare(Options):
    """The adapters of one base as methods that are compared, on every domain that trains them there."""

    base: Name = Field(description="the base that they adapt")
    against: Name = Field("lora", description="the adapter that each of the others is paired with")


class CompareMixers(Options):
    """The mixtures of one base, all of the same experts, on the domains of these experts."""

    base: Name = Field(description="the base that they mix experts of")
    against: Name = Field("uniform", description="the mixture that each of the others is paired with")
    prompts: dict[Name, Names] = Field(
        {}, description="{name: domains}: a test record of each, as one input whose routing is drawn token by token"
    )


class Resources(Options):
    """What jobs ask for; a profile may set more per rule."""

    device: Literal["cpu", "cuda"] = Field("cpu", description="where models run")
    threads: int = Field(1, ge=1, description="CPU threads of a prediction job")
    mem_mb: int = Field(2500, ge=500, description="memory of such a job; doubled at a second attempt")
    runtime: int = Field(240, ge=1, description="minutes a job may take")
    gpu: int = Field(0, ge=0, description="GPUs such a job asks the scheduler for")


BASES_ROOT = (
    "folder of published models, one subfolder named as the entry each: bases with `hub` are taken from there instead "
    "of the hub; also replaces `{bases_root}` in `path`"
)
SWEEP_FIELDS = {"training": (Sweep, Field(Sweep(), description="of every adapter of this entry"))}
EXPERTS = Field(description="{domain: its adapter}, in the order of the gate's outputs")
FEATURES = Field(False, description="compute what the gate reads of the base once, and keep it on disk")
CHECKPOINTING = Field(False, description="compute activations anew in the backward pass: less memory, more time")
MIXTURE_FIELDS = {
    "base": (Name, Field(description="the base that all experts were trained on")),
    "experts": (dict[Name, Name], EXPERTS),
    "training": (Sweep, Field(Sweep(), description="of what the mixer trains")),
    "features": (bool, FEATURES),
    "gradient_checkpointing": (bool, CHECKPOINTING),
}


def entry_model(noun: str, name: str, module, extra: dict) -> type[BaseModel]:
    """The config entry of one registered kind: its own options, its name, and what every such entry has.

    Raises:
        TypeError: the kind has an option of a name that every entry has.
    """
    own = getattr(module, noun.capitalize())
    if taken := own.model_fields.keys() & extra.keys():
        raise TypeError(f"{noun} {name}: the option `{min(taken)}` has the name of one that every {noun} has")
    return create_model(f"{name}_{noun}", __base__=own, __doc__=own.__doc__, **{noun: (Literal[name], ...)}, **extra)


def entry_type(noun: str, extra: dict):
    """The type of an entry that names its kind under the key `noun`."""
    kinds = [
        entry_model(noun, name, registry.load_module(noun, name), extra) for name in registry.registered_names(noun)
    ]
    return Annotated[Union[tuple(kinds)], Field(discriminator=noun)] if len(kinds) > 1 else kinds[0]  # noqa: UP007


def domain_models(name: str) -> tuple[type[BaseModel], type[BaseModel]]:
    """The models of a domain's entries under `domains` and under `general`."""
    own = registry.load_module("domain", name, "sources")
    source = Annotated[own.Files | own.Simulation, Field(discriminator="kind")]
    corpus = {
        "source": (source, Field(description="raw files, or the simulator that writes such files")),
        "dataset": (own.Dataset, Field(own.Dataset(), description="what is kept of them and how it is split")),
        "task": (own.Task, Field(own.Task(), description="how a record is put to a model")),
    }
    adapters = (dict[Name, Names], Field({}, description="{base: adapters trained on this domain}"))
    return (
        create_model(f"{name}_domain", __base__=Options, **corpus, adapters=adapters),
        create_model(f"{name}_corpus", __base__=Corpus, **corpus),
    )


@cache
def config_model() -> type[BaseModel]:
    """The model of the whole config."""
    pairs = {name: domain_models(name) for name in registry.registered_names("domain")}
    absent = Field(None, validate_default=False)  # a domain may be left out, yet not be left empty
    domains = create_model("domains", __base__=Options, **{n: (pair[0], absent) for n, pair in pairs.items()})
    general = create_model("general", __base__=Options, **{n: (pair[1], absent) for n, pair in pairs.items()})
    return create_model(
        "config",
        __base__=Options,
        __doc__="One study: domains, bases, adapters, mixtures, and how they are compared.",
        title=(str, Field("Loratory", description="heading of the report")),
        pathvars=(dict[str, str], Field({}, description="Snakemake's path variables, such as `results`")),
        data_root=(str, Field("data", description="replaces `{data_root}` in locations")),
        bases_root=(str | None, Field(None, description=BASES_ROOT)),
        seeds=(Seeds, Field((0,), min_length=1, description="one training of everything for each")),
        split_seed=(int, Field(0, ge=0, description="decides which group is in which split")),
        domains=(domains, Field(description="what adapters learn and what is reported")),
        general=(general, Field(general(), description="what bases are pretrained on")),
        bases=(dict[Name, BaseEntry], Field(min_length=1, description="frozen pretrained models by name")),
        adapters=(
            dict[Name, entry_type("method", SWEEP_FIELDS)],
            Field({}, description="methods with their settings by name"),
        ),
        mixtures=(
            dict[Name, entry_type("mixer", MIXTURE_FIELDS)],
            Field({}, description="mixers over adapters by name"),
        ),
        folding=(Name | None, Field(None, description="a base of family folding, judged on `domains.structure`")),
        compare=(Compare | None, Field(None, description="what `compare_methods` tells of")),
        compare_mixers=(CompareMixers | None, Field(None, description="what `compare_mixers` tells of")),
        evaluation=(Evaluation, Field(Evaluation(), description="what is scored and how")),
        resources=(Resources, Field(Resources(), description="what jobs ask for")),
    )


@cache
def config_schema() -> dict:
    """The JSON schema of the whole config."""
    return config_model().model_json_schema()


def read_config(raw: dict, where: str) -> BaseModel:
    """Checks a config dict (as Snakemake merged it) and fills in `{data_root}`, `{bases_root}` and `{resources}`.

    Raises:
        InputError: the first thing that is wrong, with file, key, value, what is allowed and the nearest name.
    """
    try:
        config = config_model().model_validate(raw)
    except ValidationError as error:
        raise first_problem(error, raw, where, config_schema()) from None
    config = fill_locations(config, where)
    check_names(config, where)
    return config


def load_config(path) -> BaseModel:
    """Reads a YAML config file.

    Raises:
        InputError: as `read_config`, or the file is not YAML.
    """
    try:
        raw = yaml.safe_load(Path(path).read_text())
    except yaml.MarkedYAMLError as error:
        raise InputError(f"{path}:{error.problem_mark.line + 1}", "not YAML", error.problem) from None
    return read_config(raw or {}, str(path))


def entries_by_name(group: BaseModel) -> dict[str, BaseModel]:
    """The entries that the config gives, by name, in the config's order of registration."""
    return {name: value for name in type(group).model_fields if (value := getattr(group, name)) is not None}


def check_names(config: BaseModel, where: str) -> None:
    """Everything that is named exists and fits.

    Raises:
        InputError: the first thing that does not.
    """
    domains, bases = entries_by_name(config.domains), config.bases
    if not domains and not any(base.pretrain for base in bases.values()):
        raise InputError(
            f"{where}: domains", "no domain is configured", expected=", ".join(registry.registered_names("domain"))
        )
    for name, base in bases.items():
        check_base(f"{where}: bases.{name}", base, config)
    for domain, given in domains.items():
        for base, adapters in given.adapters.items():
            at = f"{where}: domains.{domain}.adapters"
            require_known(at, "base", base, bases)
            if bases[base].family == "folding":
                raise InputError(f"{at}.{base}", "a folding base takes no adapters", fix="leave it out")
            check_fit(f"{at}.{base}", domain, bases[base])
            for adapter in adapters:
                require_known(f"{at}.{base}", "adapter", adapter, config.adapters)
                check_precision(f"{at}.{base}", config.adapters[adapter], base, bases[base])
    for name, mixture in config.mixtures.items():
        check_mixture(f"{where}: mixtures.{name}", mixture, config)
    if config.compare is not None:
        check_comparison(f"{where}: compare", config.compare, config)
    if config.compare_mixers is not None:
        check_mixers(f"{where}: compare_mixers", config.compare_mixers, config)
    if config.folding is not None:
        require_known(f"{where}: folding", "base", config.folding, bases)
        if bases[config.folding].family != "folding":
            at = f"{where}: folding"
            raise InputError(at, "not a folding base", bases[config.folding].family, "a base of family folding")


def check_base(at: str, base: BaseEntry, config) -> None:
    if base.audio:
        encoder = base.audio.encoder
        require_known(f"{at}.audio.encoder", "base", encoder, config.bases)
        if config.bases[encoder].family != "whisper":
            family = config.bases[encoder].family
            raise InputError(f"{at}.audio.encoder", "not a Whisper base", family, "a base of family whisper")
    at = f"{at}.pretrain.domains" if base.pretrain else f"{at}.audio.corpus"
    for domain in base.corpora:
        require_known(at, "corpus of `general`", str(domain), entries_by_name(config.general))
        check_fit(at, domain, base)
    if base.audio and not any(is_spoken(domain) for domain in base.corpora):
        raise InputError(at, "nothing to learn hearing from", ", ".join(base.corpora), "a spoken domain")


def is_spoken(domain: str) -> bool:
    return registry.load_module("domain", domain, "sources").AUDIO


def check_fit(at: str, domain: str, base: BaseEntry) -> None:
    """A base of this family can answer what the domain asks, and hear what is spoken."""
    families = registry.base_families(domain)
    if base.family not in families:
        what = f"the domain {domain} has no task for a base of family {base.family}"
        raise InputError(at, what, expected=f"a base of family {' or '.join(families)}")
    if is_spoken(domain) and base.family == "causal" and not base.has_audio:
        raise InputError(at, f"this base cannot hear {domain}", expected="a causal base with `audio:`")


def check_precision(at: str, adapter, name: str, base: BaseEntry) -> None:
    """Small steps of weights that are themselves trained would be rounded away."""
    if base.precision != "fp32" and isinstance(adapter, BaseWeightsMethod):
        what = f"{adapter.method} trains the base's own weights, and {name} holds them in half precision"
        raise InputError(at, what, base.precision, "a base with `precision: fp32`")


def check_mixture(at: str, mixture, config) -> None:
    require_known(f"{at}.base", "base", mixture.base, config.bases)
    family = config.bases[mixture.base].family
    if family != "causal":
        raise InputError(f"{at}.base", f"{mixture.base} cannot be mixed on", family, "a base of family causal")
    if len(mixture.experts) < 2:
        raise InputError(f"{at}.experts", "too few experts", len(mixture.experts), "at least 2")
    check_features(at, mixture, family)
    domains = entries_by_name(config.domains)
    for domain, adapter in mixture.experts.items():
        require_known(f"{at}.experts", "domain", domain, domains)
        require_known(f"{at}.experts.{domain}", "adapter", adapter, config.adapters)
        trained = domains[domain].adapters
        if adapter not in trained.get(mixture.base, ()):
            on = [base for base, adapters in trained.items() if adapter in adapters]
            what = f"{domain} trains {adapter} on {' and '.join(on) or 'no base'}"
            fix = f"name it under domains.{domain}.adapters.{mixture.base}"
            raise InputError(f"{at}.experts.{domain}", what, adapter, f"an adapter of base {mixture.base}", fix)


def check_features(at: str, mixture, family: str) -> None:
    if mixture.features and not (mixture.trained and mixture.reads == "hidden"):
        what, expected = "nothing of this mixer learns from the base's last states", "a trained mixer that reads them"
        raise InputError(f"{at}.features", what, mixture.mixer, expected, "leave `features` out")
    if mixture.features and family == "whisper":
        what, fix = "a base that hears frames and writes tokens keeps no features", "leave `features` out"
        raise InputError(f"{at}.features", what, mixture.base, "a base of family causal or encoder", fix)


def check_comparison(at: str, compare: Compare, config) -> None:
    """Everything is compared with one adapter, so every domain must train it."""
    require_known(f"{at}.base", "base", compare.base, config.bases)
    domains = entries_by_name(config.domains).items()
    given = {name: domain.adapters[compare.base] for name, domain in domains if compare.base in domain.adapters}
    if not given:
        fix = "name it under `adapters` of a domain"
        raise InputError(f"{at}.base", "no domain trains an adapter on this base", compare.base, fix=fix)
    for domain, adapters in given.items():
        if compare.against not in adapters:
            fix = f"name it under domains.{domain}.adapters.{compare.base}"
            what = f"{domain} does not train it on {compare.base}"
            raise InputError(f"{at}.against", what, compare.against, f"one of {', '.join(adapters)}", fix)


def check_mixers(at: str, compare: CompareMixers, config) -> None:
    """Recovery is a share of what the experts gain, so all mixtures must have the same."""
    require_known(f"{at}.base", "base", compare.base, config.bases)
    mixtures = {name: mixture for name, mixture in config.mixtures.items() if mixture.base == compare.base}
    require_known(f"{at}.against", "mixture", compare.against, mixtures)
    experts = mixtures[compare.against].experts
    for name, mixture in mixtures.items():
        if mixture.experts != experts:
            what = f"mixture {name} has other experts than {compare.against}"
            given, expected = (", ".join(map("@".join, zip(e.values(), e))) for e in (mixture.experts, experts))
            raise InputError(f"{at}.against", what, given, expected, "compare it in a study of its own")
    for name, domains in compare.prompts.items():
        check_prompt(f"{at}.prompts.{name}", domains, experts, config.bases[compare.base])


def check_prompt(at: str, domains: tuple[str, ...], experts, base: BaseEntry) -> None:
    if base.family != "causal":
        raise InputError(at, "only a causal base reads texts of several domains", base.family, "no prompts")
    if len(domains) < 2:
        raise InputError(at, "too few domains", len(domains), "at least 2")
    for place, domain in enumerate(domains):
        require_known(at, "domain", domain, experts)
        if place and is_spoken(domain):
            raise InputError(at, "what is heard stands before all text", domain, fix="name it first")


def require_known(at: str, noun: str, name: str, allowed) -> None:
    if name not in allowed:
        raise registry.unknown_name_error(at, noun, name, allowed)


def fill_locations(config: BaseModel, where: str) -> BaseModel:
    """A copy with `{data_root}`, `{bases_root}` and `{resources}` filled in, everywhere a location is given.

    Raises:
        InputError: a base lies under `{bases_root}`, which is not given.
    """
    for name, base in config.bases.items():
        if "{bases_root}" in (base.path or "") and config.bases_root is None:
            fix = "give it, as with `--config bases_root=/folder`"
            raise InputError(f"{where}: bases.{name}.path", "`bases_root` is not set", base.path, fix=fix)

    def fill_location(location: str) -> str:
        return location.replace("{data_root}", config.data_root.rstrip("/")).replace("{resources}", str(RESOURCES))

    def fill_sources(group):
        placed = {
            name: given.model_copy(update={"source": given.source.map_locations(fill_location)})
            for name, given in entries_by_name(group).items()
            if given.source.kind == "files"
        }
        return group.model_copy(update=placed)

    def base_path(path: str) -> str:
        return fill_location(path.replace("{bases_root}", (config.bases_root or "").rstrip("/")))

    bases = {
        name: base.model_copy(update={"path": base_path(base.path)}) if base.path else base
        for name, base in config.bases.items()
    }
    return config.model_copy(
        update={"domains": fill_sources(config.domains), "general": fill_sources(config.general), "bases": bases}
    )


def published_folder(config: BaseModel, name: str) -> str | None:
    """Where the files of a base with `hub` lie already: its folder under `bases_root`, if that is given."""
    return str(Path(config.bases_root, name)) if config.bases_root and config.bases[name].hub else None


def domain_options(domain: str, part: str, values: dict):
    """A domain's `Files`, `Dataset` or `Task` from plain values, as rules pass them."""
    return getattr(registry.load_module("domain", domain, "sources"), part)(**values)


def domain_source(domain: str, values: dict):
    """A domain's source (`Files` or `Simulation`) from plain values."""
    return domain_options(domain, {"files": "Files", "simulate": "Simulation"}[values["kind"]], values)


def adapter_entry(values: dict):
    """An entry of `adapters` from plain values."""
    return TypeAdapter(entry_type("method", SWEEP_FIELDS)).validate_python(values)


def mixture_entry(values: dict):
    """An entry of `mixtures` from plain values."""
    return TypeAdapter(entry_type("mixer", MIXTURE_FIELDS)).validate_python(values)


def is_simulated(config: BaseModel) -> bool:
    """Whether any domain that is reported on comes from a simulator, in whole or in part."""
    sources = [given.source for given in entries_by_name(config.domains).values()]
    return any(
        domain_source.kind == "simulate" or domain_source.added_simulation is not None for domain_source in sources
    )
