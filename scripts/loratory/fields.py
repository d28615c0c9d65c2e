"""Types of config fields that several sections share."""

from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field, StringConstraints

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


def refuse_old_keys(given: Any, names: dict[str, str]) -> Any:
    """`given`, an entry of the config, which must not use a key by the name it had before.

    Args:
        names: {old key: what it is called now}.

    Raises:
        ValueError: it does.
    """
    old = next((key for key in names if isinstance(given, dict) and key in given), None)
    if old is not None:
        raise ValueError(f"`{old}` was renamed to {names[old]}")
    return given


Name = Annotated[str, StringConstraints(pattern="^[a-z][a-z0-9_]*$")]
Names = Annotated[tuple[Name, ...], AfterValidator(require_distinct)]
Rates = Annotated[tuple[Annotated[float, Field(gt=0)], ...], AfterValidator(require_distinct)]
Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], AfterValidator(require_distinct)]
