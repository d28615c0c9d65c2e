"""The one exception for bad input: its message says what is wrong and how to mend it."""

MAX_VALUE_LENGTH = 40  # longest piece of a user's value that an error line repeats


class InputError(Exception):
    """Bad input, described in one line.

    `{where}: {what} ({value}); expected {expected}; fix: {fix}`

    Args:
        where: `file:record`, `file:line` or the config key.
        what: what is wrong.
        value: the offending value; cut to 40 characters.
        expected: what would have been right.
        fix: what the user can do.
        reason: short slug for `rejects.tsv`, such as `residue`; words joined by `_`.
    """

    def __init__(
        self,
        where: object,
        what: str,
        value: object = None,
        expected: str | None = None,
        fix: str | None = None,
        reason: str = "malformed",
    ):
        self.where, self.reason = on_one_line(where), reason
        line = what
        if value is not None:
            line += f" ({short_value(value)})"
        if expected:
            line += f"; expected {expected}"
        if fix:
            line += f"; fix: {fix}"
        self.detail = on_one_line(line)
        super().__init__(f"{self.where}: {self.detail}")


def on_one_line(value: object) -> str:
    """`value` as text, in which line ends and what would steer a terminal are escaped."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in str(value))


def short_value(value: object) -> str:
    """`value` on one line, cut to 40 characters."""
    text = value if isinstance(value, str) else repr(value)
    text = " ".join(text.split()) or repr(value)
    return text if len(text) <= MAX_VALUE_LENGTH else text[: MAX_VALUE_LENGTH - 1] + "…"
