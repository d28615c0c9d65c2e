"""Reading a config file: its models, its locations, its checks."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from loratory.config.checks import check_names
from loratory.config.models import config_model, config_schema
from loratory.config.sections import Group, Study, entries_by_name
from loratory.domains.contract import FilesOptions
from loratory.errors import InputError
from loratory.problems import first_problem

RESOURCES = Path(__file__).parents[3] / "resources"  # what the project ships, wherever it runs


def read_config(raw: dict[str, Any], where: str) -> Study:
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


def load_config(path: Path | str) -> Study:
    """Reads a YAML config file.

    Raises:
        InputError: as `read_config`, or the file is not YAML.
    """
    try:
        raw = yaml.safe_load(Path(path).read_text())
    except yaml.MarkedYAMLError as error:
        raise InputError(f"{path}:{error.problem_mark.line + 1}", "not YAML", error.problem) from None
    return read_config(raw or {}, str(path))


def fill_locations(config: Study, where: str) -> Study:
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


def published_folder(config: Study, name: str) -> str | None:
    """Where the files of a base with `hub` lie already: its folder under `bases_root`, if that is given."""
    return str(Path(config.bases_root, name)) if config.bases_root and config.bases[name].hub else None


def is_simulated(config: Study) -> bool:
    """Whether any domain that is reported on comes from a simulator, in whole or in part."""
    sources = [given.source for given in entries_by_name(config.domains).values()]
    return any(not isinstance(source, FilesOptions) or source.added_simulation is not None for source in sources)
