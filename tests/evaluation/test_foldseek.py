"""Foldseek, where it is installed: how it is called, what is made of its table. The program here is a stand-in."""

import sys

import numpy as np
import pytest

from loratory.evaluation import foldseek
from loratory.evaluation.foldseek import KnownChain, chain_text, is_installed, promising_references, read_hits
from loratory.evaluation.structure import read_trace

# a stand-in that compares numbers of atoms: the nearer, the larger both scores; its own lengths are those of the files
STAND_IN = """#!{python}
import sys, pathlib
command, models, references, table, aside, *options = sys.argv[1:]
pathlib.Path("{seen}").write_text(" ".join([command, *options]))
def atoms(path):
    return path.read_text().count(" CA ")
rows = []
for model in sorted(pathlib.Path(models).iterdir()):
    for reference in sorted(pathlib.Path(references).iterdir()):
        a, b = atoms(model), atoms(reference)
        rows.append(f"{{model.name}}\\t{{reference.stem}}_A\\t{{min(a, b) / a}}\\t{{min(a, b) / b}}\\n")
pathlib.Path(table).write_text("".join(rows))
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A folder on the path for a program named `foldseek`; returns a function that writes it."""

    def install(text: str) -> None:
        program = tmp_path / "bin" / "foldseek"
        program.parent.mkdir()
        program.write_text(text)
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(program.parent))

    return install


def known(length: int, seed: int = 0) -> KnownChain:
    points = np.random.default_rng(seed).normal(scale=9, size=(length, 4, 3))
    return KnownChain(("ACDEFGHIKLMNPQRSTVWY" * length)[:length], points)


def saved(path, chain: KnownChain):
    path.write_text(chain_text(chain))
    return path


def test_it_is_used_only_where_it_is_on_the_path(monkeypatch, tmp_path, installed):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not is_installed()
    installed("#!/bin/sh\n")
    assert is_installed()


def test_the_most_promising_references_come_first_by_the_longer_of_both_chains(tmp_path, installed):
    installed(STAND_IN.format(python=sys.executable, seen=tmp_path / "seen"))
    models = {name: saved(tmp_path / f"{name}.pdb", known(n)) for name, n in (("b", 30), ("a.1", 60))}
    references = {f"r{n}": known(n) for n in (20, 29, 40, 58, 300)}
    found = promising_references(models, references, most=2)
    assert found == {"a.1": ["r58", "r40"], "b": ["r29", "r40"]}
    said = (tmp_path / "seen").read_text().split()
    assert said[0] == "easy-search" and "--alignment-type 1" in " ".join(said)
    assert said[said.index("--format-output") + 1] == "query,target,qtmscore,ttmscore"


def test_names_of_chains_are_read_as_any_version_writes_them():
    lines = ("0.pdb\t3\t0.8\t0.6", "0_A\t3.pdb_A\t0.9\t0.7", "12\t0.pdb\t1.0\t1.0")
    assert read_hits("\n".join(lines)) == {(0, 3): 0.7, (12, 0): 1.0}
    assert read_hits("") == {}


@pytest.mark.parametrize(
    "line", ["0.pdb\t3", "0\t3\t0.5\tnan", "0\t3\t0.5\tx", "a b", "x\t3\t0.1\t0.1", "0\t3\t1.2.3\t0"]
)
def test_another_table_is_refused_with_its_line(line):
    with pytest.raises(RuntimeError, match="foldseek wrote no line of query,target,qtmscore,ttmscore: "):
        read_hits(line)


def test_a_failure_repeats_what_foldseek_said(tmp_path, installed):
    installed("#!/bin/sh\necho 'no space left' >&2\nexit 3\n")
    model = saved(tmp_path / "a.pdb", known(30))
    with pytest.raises(RuntimeError, match="foldseek easy-search ended with code 3:\nno space left"):
        promising_references({"a": model}, {"r": known(40)}, 5)


def test_a_chain_is_written_as_a_pdb_file_that_reads_back(tmp_path):
    chain = known(25)
    chain.backbone[3, 0] = np.nan
    trace = read_trace(saved(tmp_path / "a.pdb", chain))
    assert trace.sequence == chain.sequence
    np.testing.assert_allclose(trace.coordinates, chain.backbone[:, 1], atol=6e-4)
    assert "nan" not in chain_text(chain) and foldseek.OPTIONS[:2] == ("--alignment-type", "1")
