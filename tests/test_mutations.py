"""The list of planted bugs fits the library, and what runs it tells a bug that is noticed from one that is not."""

import pytest
from mutations import LIBRARY, ROOT, Mutation, choose_mutations, find_survivors, read_mutations

MUTATIONS = read_mutations()


def test_every_planted_bug_stands_where_it_is_said_to_stand():
    assert [says for mutation in MUTATIONS if (says := mutation.staleness(ROOT))] == []


def test_planted_bugs_have_names_of_their_own_and_change_something():
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS) >= 60
    assert all(mutation.old != mutation.new and mutation.tests for mutation in MUTATIONS)


def test_bugs_are_chosen_by_words_of_their_names():
    names = [mutation.name for mutation in choose_mutations(MUTATIONS, ["oracle", "clipped"])]
    assert names and all("oracle" in name or "clipped" in name for name in names)
    assert choose_mutations(MUTATIONS, []) == MUTATIONS


@pytest.fixture
def tree(tmp_path):
    library, tests = tmp_path / LIBRARY, tmp_path / "tests"
    library.mkdir(parents=True)
    tests.mkdir()
    (library / "sums.py").write_text("def total(a, b):\n    return a + b  # one\n\n\ndef less(a):\n    return a - 1\n")
    (tmp_path / "pytest.ini").write_text(f"[pytest]\npythonpath = {LIBRARY}\n")
    (tests / "test_sums.py").write_text("from sums import total\n\n\ndef test_total():\n    assert total(1, 2) == 3\n")
    return tmp_path


def test_a_bug_survives_where_no_test_notices_it_and_the_tree_is_put_back(tree, capsys):
    seen = Mutation("wrong sum", "sums.py", "return a + b", "return a - b", ("test_sums.py",))
    unseen = Mutation("wrong difference", "sums.py", "return a - 1", "return a - 2", ("test_sums.py",))
    broken = Mutation("no Python", "sums.py", "return a - 1", "return )", ("test_sums.py",))
    before = (tree / LIBRARY / "sums.py").read_text()
    assert find_survivors([seen, unseen, broken], [tree]) == (["wrong difference"], ["no Python"])
    assert (tree / LIBRARY / "sums.py").read_text() == before
    assert capsys.readouterr().out.splitlines()[:2] == ["noticed   wrong sum", "SURVIVED  wrong difference"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"old": "return a * b"}, "stands 0 times"),
        ({"old": "return a"}, "stands 2 times"),
        ({"file": "gone.py"}, "stands 0 times"),
        ({"tests": ("test_gone.py",)}, "no such tests: test_gone.py"),
        ({}, ""),
    ],
)
def test_a_bug_that_does_not_fit_the_tree_is_said_to_be_stale(tree, change, says):
    given = {"name": "m", "file": "sums.py", "old": "return a + b", "new": "pass", "tests": ("test_sums.py",)}
    found = Mutation(**given | change).staleness(tree)
    assert says in found and bool(found) == bool(says)
