"""What pydantic finds wrong with a config file, in one line that its author can act on."""

import re
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from loratory import registry
from loratory.errors import InputError, short_value

Model = TypeVar("Model", bound=BaseModel)

KINDS = ("kind", "method", "mixer", "procedure")  # keys that say which options an entry has
SCALARS = ("int_type", "float_type", "bool_type")
IN_YAML = {  # by pydantic's error types: what is expected, in a YAML author's words in place of Python's
    "int_type": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "keys with values",
    "model_type": "keys with values",
    "model_attributes_type": "keys with values",
    "string_type": "text",
    "string_too_short": "at least one letter",
    "string_pattern_mismatch": "small letters, digits and _, a letter first, 64 at most",
}


def read_fields(model: type[Model], given: dict[str, Any], where: object) -> Model:
    """What a file from elsewhere says, as a model of its fields.

    Args:
        given: the content of the file `where`.

    Raises:
        InputError: a field is missing, or its value is none that the model takes.
    """
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise first_problem(error, given, str(where), {}) from None


def first_problem(error: ValidationError, raw: dict[str, Any], where: str, schema: dict[str, Any]) -> InputError:
    """The most telling of pydantic's complaints: where, what, the value, what is allowed, and the nearest name.

    Args:
        raw: what was checked. where: the file. schema: the model's JSON schema.
    """
    problems = error.errors(include_url=False)
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    loc, kind, value, context = problem["loc"], problem["type"], problem["input"], problem.get("ctx", {})
    path = key_path(loc, raw)
    if kind == "extra_forbidden":
        noun = "domain" if path[:-1] in (["domains"], ["general"]) else "key"
        group, at = group_schema(loc[:-1], schema), problem_location(where, path[:-1])
        if path[-1] in group.get("renamed", {}):
            return InputError(at, f"`{path[-1]}` was renamed to {group['renamed'][path[-1]]}")
        return registry.unknown_name_error(at, noun, path[-1], group["properties"])
    if kind == "literal_error":
        return registry.unknown_name_error(
            problem_location(where, path), path[-1], value, quoted_names(context["expected"])
        )
    if kind == "union_tag_invalid":
        key = quoted_names(context["discriminator"])[0]
        return registry.unknown_name_error(
            problem_location(where, [*path, key]), key, context["tag"], quoted_names(context["expected_tags"])
        )
    if kind in ("missing", "union_tag_not_found"):
        tag = [] if kind == "missing" else quoted_names(context["discriminator"])
        return InputError(problem_location(where, [*path, *tag]), "the key is missing", fix="add it")
    message = problem["msg"]
    if kind == "too_short":
        fewest = context["min_length"]
        expected = "at least one entry" if fewest == 1 else f"at least {fewest} entries"
        return InputError(problem_location(where, path), "wrong value", value, expected)
    if kind not in IN_YAML and not message.startswith("Input should be "):
        return InputError(problem_location(where, path), message.removeprefix("Value error, "))
    expected = IN_YAML.get(kind) or message.removeprefix("Input should be ").partition(",")[0]
    fix = "leave the quotes out" if kind in SCALARS and isinstance(value, str) and value[:1].isdigit() else None
    given = "nothing" if value is None else value
    return InputError(problem_location(where, path), "wrong value", given, expected, fix)


def problem_location(where: str, path: list[Any]) -> str:
    return ": ".join(filter(None, [where, ".".join(map(short_value, path))]))


def quoted_names(text: str) -> list[str]:
    """The names that pydantic quotes in a message."""
    return re.findall(r"'([^']*)'", text)


def key_path(loc: tuple, raw: Any) -> list[Any]:
    """pydantic's location as the keys of the file: without union tags and its mark for a bad key."""
    path, here = [], raw
    for part in loc:
        if part == "[key]" or (isinstance(here, dict) and part not in here and part in map(here.get, KINDS)):
            continue
        path.append(part)
        known = (isinstance(here, dict) and part in here) or (isinstance(here, (list, tuple)) and part < len(here))
        here = here[part] if known else None
    return path


def group_schema(loc: tuple, schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of the group of keys at pydantic's location, whose tags say which kind of entry it is in."""

    def resolve_reference(node: dict[str, Any]) -> dict[str, Any]:
        node = next((option for option in node.get("anyOf", []) if "$ref" in option), node)
        return schema["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node

    node = resolve_reference(schema)
    for part in loc:
        tags = node.get("discriminator", {}).get("mapping", {})
        named = node.get("properties", {}) | {tag: {"$ref": model} for tag, model in tags.items()}
        node = resolve_reference(named.get(part) or next(iter(node["patternProperties"].values())))
    return node
