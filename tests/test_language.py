"""The language of the library: names, types, and what mypy says with the settings of pyproject.toml."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
PARTICIPLES = {
    *("told", "found", "given", "known", "heard", "seen", "made", "asked", "spent", "said"),
    *("kept", "shown", "drawn", "learnt", "chosen", "written", "begun", "held"),
}
FIELD = {"encoded"}  # words that end like participles and are names of the field


@cache
def library_functions() -> list[tuple[str, ast.FunctionDef]]:
    """(file, function) of every function and method, nested ones too."""
    trees = [(path.name, ast.parse(path.read_text())) for path in (ROOT / "scripts/loratory").rglob("*.py")]
    return [(file, node) for file, tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def function_names() -> list[str]:
    return [node.name.lstrip("_") for _, node in library_functions() if not node.name.startswith("__")]


def test_few_functions_have_a_name_of_one_word():
    names = function_names()
    single = [name for name in names if "_" not in name and name != "forward"]
    assert len(single) <= 0.2 * len(names), sorted({*single})


def test_hardly_a_function_is_called_by_a_bare_participle():
    names = function_names()
    bare = [
        name
        for name in names
        if "_" not in name and (name.endswith("ed") or name in PARTICIPLES) and name not in FIELD
    ]
    assert len(bare) <= 0.01 * len(names), sorted({*bare})


def test_every_parameter_is_annotated():
    bare = []
    for file, node in library_functions():
        given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        missing = [a.arg for a in given if a.annotation is None and a.arg not in ("self", "cls")]
        bare += [f"{file}:{node.lineno} {node.name}({name})" for name in missing]
    assert bare == []


def test_mypy_finds_nothing():
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
