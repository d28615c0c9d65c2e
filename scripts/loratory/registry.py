"""Finding what is registered: a kind is a module of a package, named as in the config.

Nothing is imported to list names, so that reading a config stays light.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, overload

from loratory.errors import InputError

if TYPE_CHECKING:
    from loratory.domains.contract import BuildModule, MetricsModule, SimulateModule, SourcesModule, TaskModule

PACKAGES = {
    "domain": "loratory.domains",
    "family": "loratory.bases.families",
    "method": "loratory.adapters.methods",
    "mixer": "loratory.mixers.methods",
    "pretraining": "loratory.training.pretraining",
}


def registered_domain(name: str) -> str:
    """The domain of an entry of the config: `lncrna` of `lncrna-cow`, one of several datasets of that domain."""
    return name.partition("-")[0]


def registered_names(noun: str) -> list[str]:
    """The registered names of `noun` (`domain`, `family`, `method`, `mixer` or `pretraining`), sorted."""
    package = importlib.import_module(PACKAGES[noun])
    modules = pkgutil.iter_modules(package.__path__)
    return sorted(m.name for m in modules if m.ispkg or noun != "domain")


@overload
def load_module(noun: Literal["domain"], name: str, part: Literal["sources"]) -> SourcesModule: ...
@overload
def load_module(noun: Literal["domain"], name: str, part: Literal["build"]) -> BuildModule: ...
@overload
def load_module(noun: Literal["domain"], name: str, part: Literal["task"]) -> TaskModule: ...
@overload
def load_module(noun: Literal["domain"], name: str, part: Literal["metrics"]) -> MetricsModule: ...
@overload
def load_module(noun: Literal["domain"], name: str, part: Literal["simulate"]) -> SimulateModule: ...
@overload
def load_module(noun: str, name: str, part: str = "") -> Any: ...
def load_module(noun: str, name: str, part: str = "") -> Any:
    """The module of a registered name (of a domain: of its entry's name), or one `part` (submodule) of it.

    Raises:
        InputError: no such name.
    """
    name = registered_domain(name) if noun == "domain" else name
    if name not in registered_names(noun):
        raise unknown_name_error("config", noun, name, registered_names(noun))
    return importlib.import_module(".".join(filter(None, [PACKAGES[noun], name, part])))


def unknown_name_error(where: object, noun: str, name: object, allowed: Iterable[object]) -> InputError:
    """The error for a name that is not among `allowed`, with the nearest one."""
    names = sorted(map(str, allowed))
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    fix = f"did you mean `{near[0]}`?" if near else None
    expected = f"one of {', '.join(names)}" if names else "one that is configured; there is none"
    return InputError(where, f"unknown {noun}", name, expected, fix)


def base_families(domain: str) -> Mapping[str, tuple[str, ...]]:
    """The families of bases that have a task in a domain, and what they predict there."""
    return load_module("domain", domain, "sources").FAMILIES


def family_outputs(domain: str, family: str) -> tuple[str, ...]:
    """What is predicted for a domain by a base of a family."""
    return base_families(domain)[family]


def is_spoken(domain: str) -> bool:
    """Whether a domain's examples carry audio."""
    return load_module("domain", domain, "sources").AUDIO


def is_folded(domain: str) -> bool:
    """Whether a domain's samples are proteins to be folded."""
    return load_module("domain", domain, "sources").FOLDED
