"""Rows of files → prompt and answer, whichever of the usual layouts they have."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from loratory.data.files import TextDecoder, read_blocks, read_byte_lines, read_lines
from loratory.data.json_lines import parse_json, parse_object
from loratory.data.ledger import Ledger
from loratory.data.tables import read_table
from loratory.domains.text.sources import Columns, Files
from loratory.errors import InputError

TABLES = {".csv", ".tsv", ".parquet"}
LAYOUTS = "`prompt` and `completion`; `prompt`, `choices` and `answer`; `instruction` and `output`; or `messages`"
ROLES = ("system", "user", "assistant")
OTHERWISE = "of more answers, name the right one `completion`: exact match is the accuracy then"


@dataclass(frozen=True)
class Row:
    """A row of a file.

    Attributes:
        where: `file:row`.
        values: {key of Columns: value} of what it has a value of.
        names: what its file calls all that it has a value of.
        columns: what the config calls them.
    """

    where: str
    values: Mapping[str, Any]
    names: Iterable[str]
    columns: Columns

    def text(self, key: str) -> str:
        """A text without the white space around it; numbers are taken as they are written.

        Raises:
            InputError: it is missing, empty, or something else.
        """
        value, name = self.values.get(key), getattr(self.columns, key)
        if value is None:
            raise self.missing_key_error(f"`{name}`")
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not isinstance(value, str) and not is_number:
            raise InputError(self.where, f"`{name}` is no text", value, "a text", reason="no_text")
        return self.filled_text(name, str(value))

    def filled_text(self, name: str, text: str) -> str:
        """The text without the white space around it.

        Raises:
            InputError: nothing is left.
        """
        if not text.strip():
            raise InputError(self.where, f"`{name}` is empty", expected="a text", reason="no_text")
        return text.strip()

    def items(self, key: str) -> list[Any]:
        """A list, which a cell of a table writes as JSON; empty if it is none."""
        value = self.values.get(key)
        if isinstance(value, str):
            try:
                value = parse_json(self.where, value)
            except InputError:
                return []
        return value if isinstance(value, list) else []

    def missing_key_error(self, expected: str) -> InputError:
        given = f"it has {', '.join(self.names) or 'none'}"
        fix = "say in the source's `columns` what they are called"
        return InputError(
            self.where, f"a key is missing, or has no value; {given}", None, expected, fix, "missing_key"
        )


def read_rows(path: str, files: Files, ledger: Ledger) -> Iterator[Row]:
    """Yields the rows of a file, read as its suffix says.

    Raises:
        InputError: as `read_byte_lines` and `read_table`; a malformed row, with `on_error: fail`.
    """
    columns = files.columns.model_dump()
    if TABLES & {*PurePath(path).suffixes}:
        for where, cells in read_table(path, columns, ledger, files.encoding, optional=columns):
            values = {key: cell for key, cell in cells.items() if cell}
            yield Row(where, values, [columns[key] for key in values], files.columns)
        return
    before = ledger.n_in
    is_array = next(read_blocks(path), b"").lstrip()[:1] == b"["
    for where, row in (array_objects if is_array else line_objects)(path, files.encoding, ledger):
        values = {key: row[name] for key, name in columns.items() if row.get(name) is not None}
        yield Row(where, values, [name for name in row if row[name] is not None], files.columns)
    if ledger.n_in == before:
        raise InputError(path, "the file holds no rows", expected="one JSON object on each line", reason="empty")


def line_objects(path: str, encoding: str, ledger: Ledger) -> Iterator[tuple[str, dict[str, Any]]]:
    """Objects on lines; a line that is none, or not of the encoding, goes to the ledger."""
    decoder = TextDecoder(path, encoding)
    for number, line in read_byte_lines(path):
        if not line.strip():
            continue
        ledger.count_record()
        where = f"{path}:{number}"
        try:
            row = parse_object(where, decoder.decode_line(line, number))
        except InputError as error:
            ledger.note_error(error)
        else:
            yield where, row
    decoder.check_encoding()


def array_objects(path: str, encoding: str, ledger: Ledger) -> Iterator[tuple[str, dict[str, Any]]]:
    """Objects of one JSON array, numbered from 1."""
    text = "\n".join(line for _, line in read_lines(path, encoding))
    rows = parse_json(path, text, "one JSON array, or one object on each line")
    for number, row in enumerate(rows, start=1):
        ledger.count_record()
        if isinstance(row, dict):
            yield f"{path}:{number}", row
        else:
            where, expected = f"{path}:{number}", "an array of objects"
            ledger.note_error(InputError(where, "not a JSON object", row, expected, reason="json"))


def parse_row(row: Row) -> dict[str, Any]:
    """`prompt`, `answer` and `choices` (two, sorted; none of a completion), by the layout that the row's keys tell.

    Raises:
        InputError: no layout has these keys, or a value is not what its key says.
    """
    given, choices = row.values, []
    if "prompt" in given:
        if "completion" in given and "choices" in given:
            what, fix = "a row of both questions", "leave out `completion`, or `choices` and `answer`"
            raise InputError(row.where, what, ", ".join(row.names), "one of them", fix, "question")
        prompt = row.text("prompt")
        if "choices" in given:
            choices = parse_choices(row)
            answer = right_choice(row, choices)
        else:
            answer = row.text("completion")
    elif "instruction" in given:
        prompt, answer = row.text("instruction"), row.text("output")
        if str(given.get("input", "")).strip():
            prompt = f"{prompt}\n\n{row.text('input')}"
    elif "messages" in given:
        prompt, answer = parse_chat(row)
    else:
        raise row.missing_key_error(LAYOUTS)
    return {"prompt": prompt, "answer": answer, "choices": sorted(choices)}


def parse_choices(row: Row) -> list[str]:
    """The two answers, in the order of the row."""
    items = row.items("choices")
    texts = [row.filled_text(row.columns.choices, item) for item in items if isinstance(item, str)]
    if len({*texts}) != 2 or len(items) != 2:
        what, expected = f"`{row.columns.choices}` are not two different answers", 'two texts, such as ["no", "yes"]'
        raise InputError(row.where, what, row.values["choices"], expected, OTHERWISE, "choices")
    return texts


def right_choice(row: Row, choices: list[str]) -> str:
    """The choice that the answer names: by its text, or else by its place from 0."""
    answer = row.values.get("answer")
    if answer is None:
        raise row.missing_key_error(f"`{row.columns.answer}`")
    text = str(answer).strip()
    if isinstance(answer, str) and text in choices:
        return text
    if not isinstance(answer, bool) and text in ("0", "1"):
        return choices[int(text)]
    expected = f"{' or '.join(choices)}, or its place, 0 or 1"
    raise InputError(row.where, "the answer is not among the choices", answer, expected, reason="answer")


def parse_chat(row: Row) -> tuple[str, str]:
    """The turns before the last one as text, and the last one, which is the assistant's.

    Before a first answer, what system and user say stands one below the other; in a longer chat, who says it as well.
    """
    turns = []
    for number, turn in enumerate(row.items("messages"), start=1):
        role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, dict) else (None, None)
        if role not in ROLES or not isinstance(content, str):
            expected = f"`role` ({', '.join(ROLES)}) and `content`, a text"
            raise InputError(row.where, f"turn {number} of the chat is malformed", turn, expected, reason="messages")
        turns.append((role, row.filled_text(f"content of turn {number}", content)))
    if len(turns) < 2 or turns[-1][0] != "assistant":
        expected = "a list of turns, the last of them the assistant's"
        raise InputError(row.where, "not a chat with an answer", row.values["messages"], expected, reason="messages")
    *before, (_, answer) = turns
    is_first = all(role != "assistant" for role, _ in before)
    return "\n\n".join(content if is_first else f"{role}: {content}" for role, content in before), answer
