"""The environments in envs/: what a rule's script imports is there, in the versions of the lock."""

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from studies import ROOT
from test_packaging import LOCK

SCRIPTS = ROOT / "scripts"
PROVIDERS = packages_distributions()
CONDA_NAMES = {"matplotlib-base": "matplotlib"}
ENVIRONMENTS = sorted(path.name for path in (ROOT / "envs").glob("*.yaml"))
BODIES = [
    body
    for path in sorted((ROOT / "workflow" / "rules").glob("*.smk"))
    for body in re.split(r"\n(?=rule \w+:)", path.read_text())
    if "script:" in body
]
NAMES = r'rule (\w+):.*conda:\s+"\.\./\.\./envs/([\w.]+)".*script:\s+"\.\./\.\./scripts/(\w+\.py)"'
RULES = {found[1]: (found[2], found[3]) for body in BODIES if (found := re.search(NAMES, body, re.DOTALL))}


def test_every_rule_with_a_script_names_an_environment_and_all_are_named():
    assert len(RULES) == len(BODIES) == len([*SCRIPTS.glob("*.py")])
    assert {environment for environment, _ in RULES.values()} == {*ENVIRONMENTS}


@cache
def pins(environment: str) -> dict[str, str]:
    """{package by its name in the lock: version} of an environment."""
    parts = yaml.safe_load((ROOT / "envs" / environment).read_text())["dependencies"]
    from_pip = [text.split("==") for part in parts if isinstance(part, dict) for text in part["pip"]]
    from_conda = [part.split("=") for part in parts if isinstance(part, str) and part != "pip"]
    return {canonicalize_name(CONDA_NAMES.get(name, name)): version for name, version in from_conda + from_pip}


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_an_environment_holds_the_versions_of_the_lock(environment):
    named = pins(environment)
    assert named == {"python": "3.11"} | {name: LOCK[name] for name in named if name != "python"}


@cache
def installed(environment: str) -> set[str]:
    """The packages of an environment and all that they need."""
    todo, found = [*pins(environment)], set()
    while todo:
        name = canonicalize_name(todo.pop())
        if name in found:
            continue
        found.add(name)
        try:
            needed = [Requirement(text) for text in requires(name) or ()]
        except PackageNotFoundError:
            continue
        todo += [each.name for each in needed if not each.marker or each.marker.evaluate({"extra": ""})]
    return found


def modules_named(tree: ast.AST) -> Iterator[str]:
    """What a file imports when it is loaded: not within functions, nor for types alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        ):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        yield from modules_named(node)


@cache
def imports(path: Path) -> set[str]:
    """The packages that are loaded with a file, through the library's modules."""
    todo, seen, found = [path], set(), set()
    while todo:
        file = todo.pop()
        if file in seen:
            continue
        seen.add(file)
        for name in modules_named(ast.parse(file.read_text())):
            parts = name.split(".")
            if parts[0] != "loratory":
                found.add(parts[0])
                continue
            places = [SCRIPTS.joinpath(*parts[:depth]) for depth in range(1, len(parts) + 1)]
            files = [file for place in places for file in (place.with_suffix(".py"), place / "__init__.py")]
            todo += [file for file in files if file.is_file()]
    return found - sys.stdlib_module_names


@pytest.mark.parametrize("rule", RULES)
def test_a_rules_environment_has_what_its_script_imports(rule):
    environment, script = RULES[rule]
    there = installed(environment)
    absent = [name for name in imports(SCRIPTS / script) if not {*map(canonicalize_name, PROVIDERS[name])} & there]
    assert absent == []
