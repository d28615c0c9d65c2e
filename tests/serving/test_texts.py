"""Parts of a text that are said while its tokens come join to the text that all tokens say."""

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from loratory.serving.texts import RowText

BYTES = SimpleNamespace(decode=lambda ids, **options: bytes(ids).decode("utf-8", errors="replace"))


@given(st.text("abé€", max_size=12), st.lists(st.text("abé", min_size=1, max_size=3), max_size=3), st.booleans())
def test_parts_join_to_the_text_before_the_first_stop(text, stops, ended):
    ids = [*text.encode()]
    row = RowText(BYTES, stops, len(ids) + ended, live=True)
    parts = []
    for token in [*ids, None]:
        if row.reason is None:
            parts.append(row.add_token(token))
    ends = [text.index(stop) for stop in stops if stop in text]
    wanted = text[: min(ends, default=len(text))]
    assert "".join(parts) == row.text
    if not ends:
        assert row.text == wanted and row.reason == ("stop" if ended else "length")
    else:  # the first stop that is complete ends the row
        assert row.reason == "stop" and len(row.ids) <= len(ids) and not any(stop in row.text for stop in stops)
    assert text.startswith(row.text)
