"""The text of an answer while its tokens come."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

UNFINISHED = "\ufffd"  # what a tokenizer writes for bytes that are no character, or not yet
MOST_BYTES = 3  # that can still become one


class RowText:
    """What the tokens of one row say, up to a string that it was to stop at.

    Args:
        stops: the row ends before the first of these. limit: of tokens. live: parts of the text are asked for before
            the row has ended.

    Attributes:
        ids: tokens so far; none after the one that completes a stop. text: that can be said by now. reason: why the
            row has ended, "stop" or "length"; None as long as it goes on.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str], limit: int, live: bool):
        self.tokenizer, self.stops, self.limit, self.live = tokenizer, stops, limit, live or bool(stops)
        self.ids: list[int] = []
        self.text = ""
        self.reason: str | None = None

    def add_token(self, token: int | None) -> str:
        """Reads the next token, None where there is no further; returns what `text` has gained by it."""
        self.ids += [] if token is None else [token]
        if token is not None and not self.live:
            return ""
        text = str(self.tokenizer.decode(self.ids, clean_up_tokenization_spaces=False))
        ends = [text.index(stop) for stop in self.stops if stop in text]
        if ends:
            self.reason = "stop"
        elif token is None:
            self.reason = "stop" if len(self.ids) < self.limit else "length"
        text = text[: min(ends, default=len(text) if self.reason else self.settled_length(text))]
        new, self.text = text[len(self.text) :], text
        return new

    def settled_length(self, text: str) -> int:
        """How much of an unfinished text stays as it is: not a character's first bytes, nor what may begin a stop."""
        unfinished = len(text) - len(text.rstrip(UNFINISHED))
        settled = text[: len(text) - min(unfinished, MOST_BYTES)]
        begun = [n for stop in self.stops for n in range(1, len(stop)) if settled.endswith(stop[:n])]
        return max(len(settled) - max(begun, default=0), len(self.text))
