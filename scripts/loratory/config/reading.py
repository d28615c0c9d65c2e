"""Reading a config file: its models, its locations, its checks."""

import json
import re
import sysconfig
from copy import deepcopy
from functools import reduce
from os.path import exists
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from loratory import registry
from loratory.config.checks import check_names
from loratory.config.models import config_model, config_schema, entry_names
from loratory.config.sections import Group, Study, entries_by_name
from loratory.config.values import check_values
from loratory.domains.contract import FilesOptions
from loratory.errors import InputError
from loratory.problems import first_problem, key_path
from loratory.strict_yaml import load_yaml

EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")  # YAML 1.1 takes 1e-3 for text: it wants 1.0e-3


def project_folder() -> Path:
    """Where the workflow, its configs and its resources are: around the library in a checkout, else where
    `pip install` puts them."""
    around = Path(__file__).parents[2]
    return around.parent if around.name == "scripts" else Path(sysconfig.get_path("data"), "share", "loratory")


PROJECT = project_folder()
RESOURCES = PROJECT / "resources"


def read_config(raw: dict[str, Any], where: str, overrides: Any = None) -> Study:
    """Checks a config dict (as Snakemake merged it) and fills in `{data_root}`, `{bases_root}` and `{resources}`.

    Args:
        overrides: what the command line gave of `raw`, inside of which Snakemake leaves numbers as text.

    Raises:
        InputError: the first thing that is wrong, with file, key, value, what is allowed and the nearest name; or two
            packages have one name.
    """
    for noun in registry.PACKAGES:
        registry.registered_names(noun)
    raw = restore_types(raw, overrides)
    check_values(raw, where)
    config = fill_locations(validate_types(raw, where), where)
    try:
        check_names(config, where)
    except InputError as error:
        if error.reason == "missing":
            require_inputs(config, where)  # names whatever else is not there, too
        raise
    return config


def load_config(path: Path | str) -> Study:
    """Reads a YAML config file.

    Raises:
        InputError: as `load_yaml` and `read_config`.
    """
    return read_config(load_yaml(path), str(path))


def restore_types(value: Any, given: Any) -> Any:
    """`value`, in which each text that `given` holds in the same place is the number that YAML reads there, if any."""
    if isinstance(value, dict) and isinstance(given, dict):
        return value | {key: restore_types(value[key], given[key]) for key in given if key in value}
    if isinstance(value, list) and value == given:
        return [restore_types(item, item) for item in value]
    if not isinstance(value, str) or value != given:
        return value
    try:
        read = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):
        return value
    return read if isinstance(read, int | float | None) else value


def validate_types(raw: dict[str, Any], where: str) -> Study:
    """The models of `raw`. A text is no number, and neither is true or false.

    Raises:
        InputError: the most telling thing that is wrong.
    """
    try:
        return strict_model(raw)
    except ValidationError as error:
        exponents = [problem["loc"] for problem in error.errors() if is_exponent(problem)]
        if not exponents:
            schema = config_schema(entry_names(raw))
            raise first_problem(error, raw, where, schema) from None
    raw = deepcopy(raw)
    for loc in exponents:
        *parents, last = key_path(loc, raw)
        place = reduce(lambda here, key: here[key], parents, raw)
        place[last] = float(place[last])
    check_values(raw, where)
    return validate_types(raw, where)


def strict_model(raw: dict[str, Any]) -> Study:
    """As JSON: of Python values, pydantic would want tuples where a YAML file has lists."""
    return config_model(entry_names(raw)).model_validate_json(json.dumps(raw), strict=True)


def is_exponent(problem: Any) -> bool:
    text = problem["input"]
    return problem["type"] == "float_type" and isinstance(text, str) and bool(EXPONENT.fullmatch(text))


def fill_locations(config: Study, where: str) -> Study:
    """A copy with `{data_root}`, `{bases_root}` and `{resources}` filled in, everywhere a location is given.

    Raises:
        InputError: a base lies under `{bases_root}`, which is not given, or under `{resources}`, which is not there.
    """
    for name, base in config.bases.items():
        at = f"{where}: bases.{name}.path"
        if "{bases_root}" in (base.path or "") and config.bases_root is None:
            fix = "give it, as with `--config bases_root=/folder`"
            raise InputError(at, "`bases_root` is not set", base.path, fix=fix)
        if "{resources}" in (base.path or "") and not RESOURCES.is_dir():
            what, fix = f"what the project ships is not at {RESOURCES}", "run in a clone of the repository"
            raise InputError(at, what, base.path, fix=fix)

    def fill_location(location: str) -> str:
        root = config.data_root.rstrip("/") or "/"
        return location.replace("{data_root}", root).replace("{resources}", str(RESOURCES))

    def fill_sources(group: Group[Any]) -> Group[Any]:
        placed = {
            name: given.model_copy(update={"source": given.source.map_locations(fill_location)})
            for name, given in entries_by_name(group).items()
            if isinstance(given.source, FilesOptions)
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


def require_inputs(config: Study, where: str) -> None:
    """Every local file and folder that the config names is there.

    Raises:
        InputError: all that are not, by name; or one that is a folder in a file's place.
    """
    corpora = [*entries_by_name(config.domains).values(), *entries_by_name(config.general).values()]
    sources = [given.source for given in corpora if isinstance(given.source, FilesOptions)]
    named = [path for source in sources for path in (*source.expand_patterns().all_locations(), *source.file_paths())]
    named += [path for name, base in config.bases.items() if (path := base.path or published_folder(config, name))]
    absent = [path for path in dict.fromkeys(named) if "://" not in path and not exists(path)]
    absent = [path for path in absent if not {*map(str, Path(path).parents)} & {*absent}]  # the folder says it for all
    if absent:
        what = f"{len(absent)} of the files and folders that it names do not exist: {', '.join(absent)}"
        fix = "mend the paths, or say where they begin, as with `--config data_root=/folder`"
        raise InputError(where, what, fix=fix)
    for path in (path for source in sources for path in source.file_paths() if Path(path).is_dir()):
        raise InputError(where, "a folder stands where a file belongs", path, "a file")


def check_library_options(config: Study, where: str, results: str) -> None:
    """Architectures of bases and options of adapters that are handed on to libraries are known there.

    Libraries are imported for that, so nothing is asked of what `results` holds already: tables are made without them.

    Raises:
        InputError: the first that is not.
    """
    for name, base in config.bases.items():
        if base.pretrain and not exists(f"{results}/bases/{name}/base.json"):
            from loratory.bases.architecture import check_architecture

            check_architecture(f"{where}: bases.{name}.pretrain.architecture", base.family, base.pretrain.architecture)
    for domain, given in entries_by_name(config.domains).items():
        for base_name, adapters in given.adapters.items():
            for name in adapters:
                if not exists(f"{results}/adapters/{domain}/{base_name}/{name}/runs.parquet"):
                    config.adapters[name].check_library_options(f"{where}: adapters.{name}")


def published_folder(config: Study, name: str) -> str | None:
    """Where the files of a base with `hub` lie already: its folder under `bases_root`, if that is given."""
    return str(Path(config.bases_root, name)) if config.bases_root and config.bases[name].hub else None


def is_simulated(config: Study) -> bool:
    """Whether any domain that is reported on comes from a simulator, in whole or in part."""
    sources = [given.source for given in entries_by_name(config.domains).values()]
    return any(not isinstance(source, FilesOptions) or source.added_simulation is not None for source in sources)
