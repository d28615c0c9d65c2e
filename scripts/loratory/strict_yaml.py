"""YAML files, read more strictly than YAML asks: what it allows and no author means is an error.

The profiles call `check_config_files` before Snakemake opens any file, so this module imports nothing heavy.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from loratory.errors import InputError

MAX_NODES = 100_000  # keys and values, each alias counted as what it stands for


def load_yaml(path: Path | str) -> dict[str, Any]:
    """The keys and values of a YAML file.

    Raises:
        InputError: no such file, not UTF-8, not YAML, no mapping, a key twice in one mapping, an alias inside of what
            it stands for, or aliases that stand for more than `MAX_NODES` keys and values.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        root, raw = yaml.compose(text, Loader=yaml.SafeLoader), None
        if root is not None:
            count_nodes(root, path, {})
            raw = yaml.SafeLoader("").construct_document(root)
    except OSError as error:
        raise InputError(path, "the file cannot be read", error.strerror, "a config file") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{path}:{line}", "not UTF-8", fix="save the file as UTF-8") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise InputError(f"{path}:{mark.line + 1 if mark else 1}", "not YAML", error.problem) from None
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(path, "not YAML", str(error)) from None
    except RecursionError:
        raise InputError(path, "lists or keys stand too deep inside one another", expected="a config file") from None
    if raw is not None and not isinstance(raw, dict):
        raise InputError(path, "no config", raw, "keys with values")
    return raw or {}


def count_nodes(node: yaml.Node, path: Path | str, counts: dict[yaml.Node, int]) -> int:
    """How many keys and values a node stands for.

    Args:
        counts: those of the nodes seen so far, 0 while what is inside a node is counted.
    """
    at = f"{path}:{node.start_mark.line + 1}"
    if node in counts:
        if not counts[node]:
            raise InputError(at, "an alias stands inside of what it names")
        return counts[node]
    counts[node] = 0
    if isinstance(node, yaml.MappingNode):
        require_distinct_keys(node, path)
        inside = [part for pair in node.value for part in pair]
    else:
        inside = node.value if isinstance(node, yaml.SequenceNode) else []
    counts[node] = 1 + sum(count_nodes(part, path, counts) for part in inside)
    if counts[node] > MAX_NODES:
        raise InputError(at, "aliases of aliases", f"{counts[node]} values", f"at most {MAX_NODES}")
    return counts[node]


def require_distinct_keys(node: yaml.MappingNode, path: Path | str) -> None:
    lines: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise InputError(f"{path}:{line}", "a list or mapping as a key", expected="a name")
        if first := lines.get((key.tag, key.value)):
            raise InputError(f"{path}:{line}", f"the key stands twice, first in line {first}", key.value, "it once")
        lines[key.tag, key.value] = line


def check_config_files(arguments: Iterable[str]) -> None:
    """Ends the process with one line where a file after `--configfile` is no config file.

    Snakemake opens these files before the Snakefile, and shows a traceback of its own for what it did not expect.

    Args:
        arguments: Snakemake's command line.
    """
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--configfile", "--configfiles", nargs="+", action="extend", default=[])
    try:
        for path in parser.parse_known_args(list(arguments))[0].configfile:
            check_path_variables(path, load_yaml(path).get("pathvars"))
    except InputError as error:
        raise SystemExit(str(error)) from None


def check_path_variables(where: Path | str, given: Any) -> None:
    """Snakemake takes it that `pathvars` holds texts by name, and reads it before the Snakefile too."""
    if given is not None and not isinstance(given, dict):
        raise InputError(f"{where}: pathvars", "wrong value", given, "keys with values")
    for name, value in (given or {}).items():
        if not isinstance(value, str):
            raise InputError(f"{where}: pathvars.{name}", "wrong value", value, "a folder")
