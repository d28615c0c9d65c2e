"""Which code a result came from."""

import re
from collections.abc import Collection, Iterable
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

from loratory.registry import PACKAGES as REGISTRIES
from loratory.registry import code_path, outside_entries

LIBRARY = Path(__file__).parent
PACKAGES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "numpy")  # make the numbers
IMPORT = re.compile(r"^\s*from (loratory[\w.]*) import (\([^)]*\)|.*)", re.MULTILINE)


@cache
def code_digest(*parts: str | Path) -> str:
    """A short digest of the library's modules at `parts` (files or folders) and of all that they import from it.

    Rules carry it as a parameter: Snakemake notices an edited script, but not an edited module that it imports. What a
    registry finds by its name is imported by nobody, so rules name it: a domain's task, a method, a family of bases.
    """
    digest = sha256()
    for module in reachable_modules(parts):
        digest.update(module.read_bytes())
    return digest.hexdigest()[:16]


def reachable_modules(parts: tuple[str | Path, ...]) -> list[Path]:
    """The modules at `parts` and, transitively, those they import."""
    found: set[Path] = set()
    waiting = {module for part in parts for module in module_files(LIBRARY / part)}
    while waiting:
        found |= waiting
        waiting = {needed for module in waiting for needed in direct_imports(module)} - found
    return sorted(found)


def module_files(path: Path) -> list[Path]:
    """A file, or those of a folder; with a folder of a registry, the packages that register more of its kind."""
    if not path.is_dir():
        return [path]
    inside = [noun for noun, package in REGISTRIES.items() if package_folder(package).is_relative_to(path)]
    outside = {code_path(noun, name) for noun in inside for name in outside_entries(noun)}
    return [*path.rglob("*.py"), *(file for place in outside for file in module_files(place))]


def package_folder(package: str) -> Path:
    return LIBRARY.parent.joinpath(*package.split("."))


@cache
def direct_imports(module: Path) -> frozenset[Path]:
    """The library's modules that a module imports, at its top or inside a function."""
    places = set()
    for package, names in IMPORT.findall(module.read_text()):
        place = package_folder(package)
        places |= {place, *(place / name for name in re.findall(r"\w+", names))}
    candidates = [option for place in places for option in (place.with_suffix(".py"), place / "__init__.py")]
    return frozenset(candidate for candidate in candidates if candidate.is_file())


def package_versions() -> dict[str, str]:
    """The versions of the packages that a training's numbers depend on."""
    return {package: version(package) for package in PACKAGES}


def domain_modules(part: str, domains: Iterable[str]) -> list[Path]:
    """`part` (`task`, `build`, …) of each of the domains that entries of these names are of."""
    return [code_path("domain", domain, part) for domain in domains]


# The code of a training, for the rule that runs it and for the checkpoints that it goes on from.


def base_code(family: str, domains: Collection[str]) -> str:
    """Of a base that learns from these domains' general data, if from any."""
    pretraining = [code_path("pretraining", family)] if domains else []
    return code_digest("training/prepare.py", "bases", *pretraining, *domain_modules("task", domains))


def adapter_code(domain: str, method: str) -> str:
    parts = ("training/sweep.py", "bases", code_path("method", method))
    return code_digest(*parts, *domain_modules("task", [domain]))


def continued_code(domain: str, method: str) -> str:
    """Of a base that learns on, by an adapter, on a domain's general data."""
    return code_digest(
        "training/continued.py", "bases", code_path("method", method), *domain_modules("task", [domain])
    )


def features_code(domain: str) -> str:
    return code_digest("training/features.py", "bases", *domain_modules("task", [domain]))


def mixture_code(domains: Iterable[str]) -> str:
    return code_digest("training/mixture.py", "bases", "mixers/methods", *domain_modules("task", domains))


def stage_code(procedure: str, method: str, domains: Iterable[str]) -> str:
    parts = ("lifecycle/run.py", "bases", code_path("procedure", procedure), code_path("method", method))
    return code_digest(*parts, *domain_modules("task", domains))
