"""JSON objects, one on each line. Imported while the config is read: nothing heavy."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loratory.data.files import read_lines
from loratory.errors import InputError


def read_objects(path: Path | str, encoding: str = "utf-8") -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields `(line number from 1, object)`; empty lines are passed over.

    Raises:
        InputError: as `read_lines` and `parse_object`.
    """
    for number, line in read_lines(path, encoding):
        if line.strip():
            yield number, parse_object(f"{path}:{number}", line)


def parse_json(where: str, text: str, expected: str = "JSON") -> Any:
    """Raises:
    InputError: the text is not JSON, or spells out half of a surrogate pair, which no file can hold.
    """
    try:
        value = json.loads(text)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        what, fix = "half of a surrogate pair, which no text holds", "write both halves, or leave the line out"
        raise InputError(where, what, expected="Unicode text", fix=fix, reason="encoding") from None
    except (ValueError, RecursionError) as error:
        raise InputError(where, "not JSON", error, expected, reason="json") from None
    return value


def parse_object(where: str, line: str) -> dict[str, Any]:
    """Raises:
    InputError: the line is not one JSON object.
    """
    value = parse_json(where, line, "one JSON object on each line")
    if not isinstance(value, dict):
        raise InputError(where, "not a JSON object", line, "one JSON object on each line", reason="json")
    return value
