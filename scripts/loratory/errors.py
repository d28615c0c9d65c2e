"""The one exception for bad input: its message says what is wrong and how to mend it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

MAX_VALUE_LENGTH = 40  # longest piece of a user's value that an error line repeats
# What opens somebody's account: `user:password@` or a token in an address, an environment variable of a token, a token
# of the Hugging Face hub or of GitHub.
SECRET = re.compile(
    r"(?<=://)[^\s/?#@]+(?=@)|(?i:(?<=[?&])[\w.-]*(?:token|secret|signature|password|key|sig)=)[^&#\s'\"]+"
    r"|\b[A-Z][A-Z0-9_]*(?:TOKEN|SECRET|PASSWORD|KEY)=(?:\"[^\"\n]*\"|'[^'\n]*'|[^\s'\"]+)"
    r"|\b(?:hf|gh[opsur])_[A-Za-z0-9]{20,}"  # names of files have words after that, with _ between them
    r"|\bgithub_pat_\w{20,}"
)


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

    def __reduce__(self) -> tuple:
        """As it comes from another process."""
        return type(self), (self.where, self.detail, None, None, None, self.reason)


def hide_secrets(text: str) -> str:
    """`text` with … in place of passwords and tokens."""
    return SECRET.sub("…", text)


def on_one_line(value: object) -> str:
    """`value` as text, in which line ends and what would steer a terminal are escaped, and secrets left out."""
    text = hide_secrets(str(value))
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def short_value(value: object) -> str:
    """`value` on one line, cut to 40 characters, without secrets."""
    text = hide_secrets(value if isinstance(value, str) else repr(value))
    text = " ".join(text.split()) or repr(value)
    return text if len(text) <= MAX_VALUE_LENGTH else text[: MAX_VALUE_LENGTH - 1] + "…"


@contextmanager
def one_error(
    where: object,
    what: str,
    expected: str | None = None,
    fix: str | None = None,
    reason: str = "malformed",
    of: type[BaseException] | tuple[type[BaseException], ...] = BaseException,
) -> Iterator[None]:
    """Makes one `InputError` of what a library raises on content that it does not expect, with the library's words as
    the value.

    Args:
        of: what it is known to raise. By default everything: many libraries raise errors of many types, and their
            Rust parts panic, which is no `Exception`.
    """
    try:
        yield
    except (InputError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except of as error:
        text = str(error)
        value = f"{type(error).__name__}: {text}" if of is BaseException else text
        raise InputError(where, what, value or None, expected, fix, reason) from error
