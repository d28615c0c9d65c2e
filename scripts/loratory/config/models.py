"""The parts of the config that follow from what is registered: each domain, method and mixer brings its options."""

import re
from functools import cache
from types import ModuleType
from typing import Annotated, Any, Literal, Union

from pydantic import BaseModel, Field, TypeAdapter, create_model

from loratory import registry
from loratory.config.sections import AdapterEntry, Corpus, Domain, Group, MixtureEntry, StageEntry, Study
from loratory.fields import DomainName, DomainNames, Name
from loratory.training.schedule import RECOMPUTING, AdapterSweep, Sweep

ENTRY_NAME = re.compile("[a-z][a-z0-9_]{0,63}-[a-z0-9_]{1,64}")
Fields = dict[str, tuple[Any, Any]]  # {name: (type, default)}, as pydantic takes them

OF_ADAPTERS = Field(AdapterSweep(), description="of every adapter of this entry")
SWEEP_FIELDS: Fields = {"training": (AdapterSweep, OF_ADAPTERS)}
EXPERTS = Field(description="{domain: its adapter}, in the order of the gate's outputs")
FEATURES = Field(False, description="compute what the gate reads of the base once, and keep it on disk")
CHECKPOINTING = Field(False, description=RECOMPUTING)
MIXTURE_FIELDS: Fields = {
    "base": (Name, Field(description="the base that all experts were trained on")),
    "experts": (dict[DomainName, Name], EXPERTS),
    "training": (Sweep, Field(Sweep(), description="of what the mixer trains")),
    "features": (bool, FEATURES),
    "gradient_checkpointing": (bool, CHECKPOINTING),
}
STAGE_FIELDS: Fields = {
    "base": (Name, Field(description="the base that it begins with")),
    "domains": (DomainNames, Field(min_length=1, description="what is learnt and tested, in this order")),
    "adapter": (Name, Field(description="the adapter, an entry of `adapters` with one learning rate")),
}


def entry_model(noun: str, name: str, module: ModuleType, extra: Fields) -> type[BaseModel]:
    """The config entry of one registered kind: its own options, its name, and what every such entry has.

    Raises:
        TypeError: the kind has an option of a name that every entry has.
    """
    own = getattr(module, noun.capitalize())
    if taken := own.model_fields.keys() & extra.keys():
        raise TypeError(f"{noun} {name}: the option `{min(taken)}` has the name of one that every {noun} has")
    fields: dict[str, Any] = {noun: (Literal[name], ...), **extra}
    return create_model(f"{name}_{noun}", __base__=own, __doc__=own.__doc__, **fields)


def entry_type(noun: str, extra: Fields) -> Any:
    """The type of an entry that names its kind under the key `noun`."""
    kinds = [
        entry_model(noun, name, registry.load_module(noun, name), extra) for name in registry.registered_names(noun)
    ]
    return Annotated[Union[tuple(kinds)], Field(discriminator=noun)] if len(kinds) > 1 else kinds[0]  # noqa: UP007


def domain_models(name: str) -> tuple[type[Domain], type[Corpus]]:
    """The models of a domain's entries under `domains` and under `general`."""
    own = registry.load_module("domain", name, "sources")
    source: Any = Annotated[own.Files | own.Simulation, Field(discriminator="kind")]
    fields: dict[str, Any] = {
        "source": (source, Field(description="raw files, or the simulator that writes such files")),
        "dataset": (own.Dataset, Field(own.Dataset(), description="what is kept of them and how it is split")),
        "task": (own.Task, Field(own.Task(), description="how a record is put to a model")),
    }
    return (
        create_model(f"{name}_domain", __base__=Domain, **fields),
        create_model(f"{name}_corpus", __base__=Corpus, **fields),
    )


@cache
def config_model(names: tuple[str, ...] = ()) -> type[Study]:
    """The model of the whole config: `Study`, with the entries of what is registered in place of the general ones.

    Args:
        names: of entries of domains, beyond those that are just called as their domain.
    """
    pairs = {name: domain_models(name) for name in registry.registered_names("domain")}
    absent = Field(None, validate_default=False)  # a domain may be left out, yet not be left empty
    entries = {name: pairs[registry.registered_domain(name)] for name in (*pairs, *names)}
    domains: dict[str, Any] = {name: (pair[0], absent) for name, pair in entries.items()}
    general: dict[str, Any] = {name: (pair[1], absent) for name, pair in entries.items()}
    corpora = create_model("general", __base__=Group[Corpus], **general)
    filled: Fields = {
        "domains": (create_model("domains", __base__=Group[Domain], **domains), ...),
        "general": (corpora, corpora()),
        "adapters": (dict[Name, entry_type("method", SWEEP_FIELDS)], {}),  # type: ignore[misc]
        "mixtures": (dict[Name, entry_type("mixer", MIXTURE_FIELDS)], {}),  # type: ignore[misc]
        "lifecycle": (dict[Name, entry_type("procedure", STAGE_FIELDS)], {}),  # type: ignore[misc]
    }
    described = Study.model_fields
    fields: dict[str, Any] = {
        name: (kind, Field(default, description=described[name].description))
        for name, (kind, default) in filled.items()
    }
    return create_model("config", __base__=Study, __doc__=Study.__doc__, **fields)


@cache
def config_schema(names: tuple[str, ...] = ()) -> dict[str, Any]:
    """The JSON schema of `config_model(names)`."""
    return config_model(names).model_json_schema()


def entry_names(raw: dict[str, Any]) -> tuple[str, ...]:
    """Names under `domains` and `general` that say more than their domain, such as `lncrna-cow`, in their order."""
    groups = [group for group in (raw.get("domains"), raw.get("general")) if isinstance(group, dict)]
    names = dict.fromkeys(name for group in groups for name in group if ENTRY_NAME.fullmatch(name))
    return tuple(name for name in names if registry.registered_domain(name) in registry.registered_names("domain"))


def domain_options(domain: str, part: str, values: dict[str, Any]) -> Any:
    """A domain's `Files`, `Dataset` or `Task` from plain values, as rules pass them."""
    return getattr(registry.load_module("domain", domain, "sources"), part)(**values)


def domain_source(domain: str, values: dict[str, Any]) -> Any:
    """A domain's source (`Files` or `Simulation`) from plain values."""
    return domain_options(domain, {"files": "Files", "simulate": "Simulation"}[values["kind"]], values)


def adapter_entry(values: dict[str, Any]) -> AdapterEntry:
    """An entry of `adapters` from plain values."""
    return TypeAdapter(entry_type("method", SWEEP_FIELDS)).validate_python(values)


def mixture_entry(values: dict[str, Any]) -> MixtureEntry:
    """An entry of `mixtures` from plain values."""
    return TypeAdapter(entry_type("mixer", MIXTURE_FIELDS)).validate_python(values)


def stage_entry(values: dict[str, Any]) -> StageEntry:
    """An entry of `lifecycle` from plain values."""
    return TypeAdapter(entry_type("procedure", STAGE_FIELDS)).validate_python(values)
