"""CIF is read by its grammar, whatever program wrote it."""

import pytest

from loratory.data.cif import is_cif, read_blocks_of_cif
from loratory.errors import InputError


def items(text: str) -> dict[str, list[str]]:
    return read_blocks_of_cif("a.cif", text)[-1].items


@pytest.mark.parametrize(
    "start", ["data_x\n", "DATA_x\n", "# by a program\n\n#\\#CIF_1.1\n  Data_x # a name\n", "\n\tdata_\n"]
)
def test_a_data_block_begins_in_any_case_after_any_comments(start):
    assert is_cif(start) and items(start + "_a.b 1\n") == {"_a.b": ["1"]}


@pytest.mark.parametrize("text", ["", "# only a comment", "ATOM      1", "HEADER data_x", "<html>"])
def test_other_texts_are_no_cif(text):
    assert not is_cif(text)


def test_keywords_and_names_are_read_in_any_case_between_tabs_and_comments():
    text = "data_x\nLOOP_\n_A.Name\t_a.value # two columns\n'a b'\t1 # one\n\"it's\" .\n# end\nLoop_ _c.d\n"
    assert items(text) == {"_a.name": ["a b", "it's"], "_a.value": ["1", ""], "_c.d": []}


def test_quotes_may_hold_quotes_and_values_may_be_unknown():
    found = items("data_x _a.b 'it's o'clock' _c.d O5' _e.f ? _g.h '?' _i.j\n;one\n#two\n;\n")
    assert found == {
        "_a.b": ["it's o'clock"],
        "_c.d": ["O5'"],
        "_e.f": [""],
        "_g.h": ["?"],
        "_i.j": ["one\n#two"],
    }


def test_a_row_may_run_over_lines_and_hold_what_looks_like_a_name():
    assert items("data_x\nloop_\n_a.b\n_a.c\n1\n_x\n2 3 # and\n_d.e 4\n") == {
        "_a.b": ["1", "2"],
        "_a.c": ["_x", "3"],
        "_d.e": ["4"],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "data_x\nloop_\n_a.b\n_a.c\n1 2\n3\n",
            r"a\.cif:7: malformed mmCIF file: the table of `_a\.b` ends within a row",
        ),
        ("data_x\nloop_\n_a.b\n_a.c\n1 2 3\nloop_\n_d.e\n1\n", r"a\.cif:6: .*`_a\.b` ends within a row"),
        ("data_x\n_a.b 'open\n", r"a\.cif:2: .*text in quotes does not end \('open\)"),
        ("data_x\n_a.b\n;open\n", r"a\.cif:3: .*text in quotes does not end"),
        ("data_x\n1 2\n", r"a\.cif:3: .*a value without a name \(1\)"),
        ("data_x\n_a.b\n_a.c 1\n", r"a\.cif:4: .*ends within a row"),
    ],
)
def test_what_breaks_the_grammar_is_told_with_its_line(text, message):
    with pytest.raises(InputError, match=message):
        items(text)
