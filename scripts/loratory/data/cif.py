"""The values of a CIF file, by its grammar: https://www.iucr.org/resources/cif/spec/version1.1/cifsyntax.

Biopython and biotite read mmCIF as the wwPDB writes it. Neither takes all of what the grammar allows and other
programs write: keywords and names in any case, comments anywhere, tabs, several data blocks; and Biopython does not
notice a table that ends in the middle of a row.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

from loratory.errors import InputError

START = re.compile(r"(?:\s|#[^\n]*(?:\n|\Z))*data_", re.IGNORECASE)
TOKEN = re.compile(
    r"""^;(?P<text>.*?)\n;(?=\s|\Z)          # lines between two semicolons, each the first of its line
      | '(?P<single>[^\n]*?)'(?=\s|\Z)       # a quote within quotes is no end unless white space follows
      | "(?P<double>[^\n]*?)"(?=\s|\Z)
      | \#[^\n]*
      | (?P<bare>\S+)""",
    re.MULTILINE | re.DOTALL | re.VERBOSE,
)
KEYWORD = re.compile(r"(?:data_|save_|loop_|stop_|global_).*", re.IGNORECASE | re.DOTALL)


@dataclass
class Block:
    """A data block: `items` holds the values of each name, in small letters; "" where the file has `.` or `?`."""

    name: str
    items: dict[str, list[str]] = field(default_factory=dict)

    def category(self, name: str) -> dict[str, list[str]]:
        """The columns of a category, by their names within it."""
        return {
            key.removeprefix(f"{name}."): values for key, values in self.items.items() if key.startswith(f"{name}.")
        }


def is_cif(text: str) -> bool:
    """Whether a text begins, after comments, with a data block."""
    return START.match(text) is not None


def read_blocks_of_cif(path: Path | str, text: str) -> list[Block]:
    """The data blocks of a CIF file, whose content is `text`.

    Raises:
        InputError: with the line, for text that does not end, a value without a name, or a table whose last row is
            not whole.
    """
    blocks = [Block("")]
    names: list[str] = []  # of the item or table that is being read
    values: list[str] = []
    for token in TOKEN.finditer(text):
        word = token["bare"]
        in_a_row = bool(names) and len(values) % len(names) != 0  # there `_x` is a value, as some entries have it
        if word is None:
            if not token[0].startswith("#"):
                values.append(token[0][1:-1] if token["text"] is None else token["text"])
        elif KEYWORD.fullmatch(word) or (word.startswith("_") and not in_a_row):
            if values or not word.startswith("_"):
                store_values(path, text, token.start(), blocks[-1], names, values)
                names, values = [], []
            if word.startswith("_"):
                names.append(word.lower())
            elif word.lower().startswith("data_"):
                blocks.append(Block(word[len("data_") :]))
        else:
            check_bare_value(path, text, token)
            values.append("" if word in (".", "?") else word)
    store_values(path, text, len(text), blocks[-1], names, values)
    return blocks


def store_values(path: Path | str, text: str, place: int, block: Block, names: list[str], values: list[str]) -> None:
    """Puts the values of an item or a table, which ends at `place` of the text, into the block."""
    if not names and values:
        raise broken_cif(path, text, place, "a value without a name", values[0])
    if names and len(values) % len(names):
        raise broken_cif(path, text, place, f"the table of `{names[0]}` ends within a row", f"{len(values)} values")
    block.items |= {name: values[start :: len(names)] for start, name in enumerate(names)}


def check_bare_value(path: Path | str, text: str, token: re.Match[str]) -> None:
    """Raises: InputError for what begins as quoted text and never ends."""
    first_of_line = token.start() == 0 or text[token.start() - 1] == "\n"
    if token[0][0] in "'\"" or (token[0][0] == ";" and first_of_line):
        raise broken_cif(path, text, token.start(), "text in quotes does not end", token[0])


def broken_cif(path: Path | str, text: str, place: int, what: str, value: str) -> InputError:
    line = text.count("\n", 0, place) + 1
    fix = "fetch or write it again"
    return InputError(f"{path}:{line}", f"malformed mmCIF file: {what}", value, fix=fix, reason="structure")
