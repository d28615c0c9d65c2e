"""Names of functions: a verb with its object, or a noun phrase; no bare participle."""

import ast
from pathlib import Path

LIBRARY = Path(__file__).parent.parent / "scripts/loratory"
PARTICIPLES = {
    *("told", "found", "given", "known", "heard", "seen", "made", "asked", "spent", "said"),
    *("kept", "shown", "drawn", "learnt", "chosen", "written", "begun", "held"),
}
FIELD = {"encoded"}  # words that end like participles and are names of the field


def function_names() -> list[str]:
    trees = (ast.parse(path.read_text()) for path in LIBRARY.rglob("*.py"))
    functions = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return [node.name.lstrip("_") for node in functions if not node.name.startswith("__")]


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
