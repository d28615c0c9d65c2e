"""Finding what is registered: a kind is a module of a package here, or an entry point of another installed package.

Nothing is imported to list names, so that reading a config stays light. A config chooses among what is installed: no
value of it is ever the path of code.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from loratory.errors import InputError

if TYPE_CHECKING:
    from loratory.domains.contract import (
        BuildModule,
        MetricsModule,
        SimulateModule,
        SourcesModule,
        TaskModule,
        ViewsModule,
    )

PACKAGES = {
    "domain": "loratory.domains",
    "family": "loratory.bases.families",
    "method": "loratory.adapters.methods",
    "mixer": "loratory.mixers.methods",
    "pretraining": "loratory.training.pretraining",
    "procedure": "loratory.lifecycle.procedures",
}
GROUPS = {  # of entry points, `name = module`: of a domain the package that holds its modules
    "domain": "loratory.domains",
    "family": "loratory.families",
    "method": "loratory.methods",
    "mixer": "loratory.mixers",
    "pretraining": "loratory.pretraining",
    "procedure": "loratory.procedures",
}
NAME = re.compile("[a-z][a-z0-9_]*")


def registered_domain(name: str) -> str:
    """The domain of an entry of the config: `lncrna` of `lncrna-cow`, one of several datasets of that domain."""
    return name.partition("-")[0]


def registered_names(noun: str) -> list[str]:
    """The registered names of `noun` (`domain`, `family`, `method`, `mixer`, `pretraining` or `procedure`), sorted.

    Raises:
        InputError: as `outside_entries`.
    """
    return sorted([*own_names(noun), *outside_entries(noun)])


def claimed_names(noun: str) -> list[str]:
    """As `registered_names`, without a look at whether two packages claim one name: for what is imported at once."""
    return sorted({*own_names(noun), *(entry.name for entry in entry_points(group=GROUPS[noun]))})


def own_names(noun: str) -> list[str]:
    """The names that this project registers."""
    package = importlib.import_module(PACKAGES[noun])
    return [m.name for m in modules_in(*package.__path__) if m.ispkg or noun != "domain"]


@cache
def modules_in(*folders: str) -> tuple[pkgutil.ModuleInfo, ...]:
    """Looked for once: names are asked for with every example."""
    return tuple(pkgutil.iter_modules(folders))


@cache
def outside_entries(noun: str) -> dict[str, EntryPoint]:
    """{name: entry point} of what other installed packages register.

    Raises:
        InputError: it is no name for a config, or two packages have one name, or a package one of this project's.
    """
    found: dict[str, EntryPoint] = {}
    own = own_names(noun)
    for entry in entry_points(group=GROUPS[noun]):
        where, fix = f"{GROUPS[noun]} of {package_title(entry)}", "uninstall one, or rename the entry point"
        if not NAME.fullmatch(entry.name) or entry.attr:
            raise InputError(where, "wrong entry point", f"{entry.name} = {entry.value}", "name_of_letters = a.module")
        if entry.name in own or entry.name in found:
            other = "loratory" if entry.name in own else package_title(found[entry.name])
            raise InputError(where, f"{other} has a {noun} of the same name", entry.name, fix=fix)
        found[entry.name] = entry
    return found


def package_title(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.module


def outside_packages(**kinds: str) -> dict[str, str]:
    """{package: its version} of those of some kinds (`method="lora"`) that are not of this project."""
    named = {noun: registered_domain(name) if noun == "domain" else name for noun, name in kinds.items()}
    entries = [outside_entries(noun).get(name) for noun, name in named.items()]
    return {entry.dist.name: entry.dist.version for entry in entries if entry and entry.dist}


def code_path(noun: str, name: str, part: str = "") -> Path:
    """Where the code of a registered name lies, below the library; of another package, the whole of it, absolute."""
    name = registered_domain(name) if noun == "domain" else name
    entry = outside_entries(noun).get(name)
    if entry is None:
        return Path(*PACKAGES[noun].split(".")[1:], name, part).with_suffix(".py")
    spec = find_spec(entry.module.partition(".")[0])
    if spec is None or spec.origin is None:
        raise load_error(noun, entry, "no such module, or one without an `__init__.py`")
    return Path(spec.origin).parent if spec.submodule_search_locations else Path(spec.origin)


def load_error(noun: str, entry: EntryPoint, reason: object) -> InputError:
    what = f"its {noun} `{entry.name}` cannot be loaded: {reason}"
    return InputError(package_title(entry), what, entry.value, fix="reinstall or uninstall the package")


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
def load_module(noun: Literal["domain"], name: str, part: Literal["views"]) -> ViewsModule: ...
@overload
def load_module(noun: str, name: str, part: str = "") -> Any: ...
def load_module(noun: str, name: str, part: str = "") -> Any:
    """The module of a registered name (of a domain: of its entry's name), or one `part` (submodule) of it.

    Raises:
        InputError: no such name, or the package that registers it cannot be loaded.
    """
    module = module_name(noun, name)
    try:
        return importlib.import_module(f"{module}.{part}" if part else module)
    except ImportError as error:
        entry = outside_entries(noun).get(registered_domain(name))
        if entry is None:
            raise
        raise load_error(noun, entry, error) from error


def module_name(noun: str, name: str) -> str:
    """Of the module of a registered name (of a domain: of its entry's name).

    Raises:
        InputError: no such name.
    """
    name = registered_domain(name) if noun == "domain" else name
    if name not in registered_names(noun):
        raise unknown_name_error("config", noun, name, registered_names(noun))
    entry = outside_entries(noun).get(name)
    return entry.module if entry else f"{PACKAGES[noun]}.{name}"


def unknown_name_error(where: object, noun: str, name: object, allowed: Iterable[object]) -> InputError:
    """The error for a name that is not among `allowed`, with the nearest one."""
    names = sorted(map(str, allowed))
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    fix = f"did you mean `{near[0]}`?" if near else None
    expected = f"one of {', '.join(names)}" if names else "one that is configured; there is none"
    return InputError(where, f"unknown {noun}", name, expected, fix)


def base_families(domain: str) -> Mapping[str, tuple[str, ...]]:
    """The families of bases that have a task in a domain, the usual one first, and what they predict there."""
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


def has_views(domain: str) -> bool:
    """Whether a domain has something to show of single records."""
    return find_spec(f"{module_name('domain', domain)}.views") is not None
