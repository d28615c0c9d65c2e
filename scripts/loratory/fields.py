"""Types of config fields that several sections share."""

import posixpath
from typing import Annotated, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints

from loratory.errors import short_value

Values = TypeVar("Values", bound=tuple)


def require_distinct(values: Values) -> Values:
    """`values`, which must differ: each of them names something that is made.

    Raises:
        ValueError: one is given twice.
    """
    twice = next((value for value in values if values.count(value) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice} is given twice")
    return values


def renamed_keys(**names: str) -> ConfigDict:
    """The `model_config` of options that had other names before, `{old: what it is called now}`.

    It stands in the JSON schema, where `loratory.problems` finds it. A validator of the raw entry would not do: what
    that returns is no longer read as JSON, and its lists would be refused.
    """
    return ConfigDict(json_schema_extra={"renamed": dict(names)})


def require_plain_folder(path: str) -> str:
    """`path`, in which no letter means more to Snakemake or a shell than itself.

    Raises:
        ValueError: one does.
    """
    if not path.strip() or not path.isprintable() or set(path) & set("{}<>*?") or path.startswith("~"):
        raise ValueError(f"`{short_value(path)}` is no folder to write into, expected none of {{ }} < > * ? ~ in it")
    return path


def require_folder(path: str) -> str:
    """`path`, which rules write below: no wildcard, and relative only to what lies below the working directory.

    Raises:
        ValueError: it is something else.
    """
    plain = posixpath.normpath(require_plain_folder(path.removeprefix("<results>/")))
    if plain in (".", "/", "//") or plain.split("/")[0] == "..":
        what = f"`{short_value(path)}` leads out of the folder where Snakemake runs, or is that folder"
        raise ValueError(f"{what}, expected one below it, or an absolute path if that is meant")
    return path


Name = Annotated[str, StringConstraints(pattern="^[a-z][a-z0-9_]{0,63}$")]  # of folders, so no longer than they may be
DomainName = Annotated[str, StringConstraints(pattern="^[a-z][a-z0-9_]{0,63}(-[a-z0-9_]{1,64})?$")]
Folder = Annotated[str, AfterValidator(require_plain_folder)]
Names = Annotated[tuple[Name, ...], AfterValidator(require_distinct)]
DomainNames = Annotated[tuple[DomainName, ...], AfterValidator(require_distinct)]
Modules = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1), AfterValidator(require_distinct)
]
Counts = Annotated[tuple[Annotated[int, Field(ge=1)], ...], AfterValidator(require_distinct)]
Rates = Annotated[tuple[Annotated[float, Field(gt=0)], ...], AfterValidator(require_distinct)]
Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], AfterValidator(require_distinct)]
