"""A pattern of names matches these names alone, and stays short."""

import re

from hypothesis import given
from hypothesis import strategies as st

from loratory.patterns import names_pattern

NAMES = st.sets(st.text("ab1_-", min_size=1, max_size=5))


@given(NAMES, NAMES)
def test_it_matches_these_names_and_no_others(names, others):
    pattern = re.compile(names_pattern(names))
    assert {name for name in names | others if pattern.fullmatch(name)} == names


def test_it_stays_short_where_names_are_alike():
    assert len(names_pattern(f"lora{rank}" for rank in range(1, 601))) < 100
