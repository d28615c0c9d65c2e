"""The digest of a stage's code follows its imports: nothing that a stage uses can be edited unnoticed."""

import ast

import pytest

from loratory import provenance
from loratory.provenance import LIBRARY, code_digest, direct_imports, reachable_modules

MODULES = sorted(LIBRARY.rglob("*.py"))


def by_python(module):
    """The library's modules that Python would load for the imports in a module."""
    names = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    found = set()
    for name in names:
        if name.partition(".")[0] == "loratory":
            place = LIBRARY.parent.joinpath(*name.split("."))
            found |= {path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()}
    return found


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(LIBRARY)))
def test_every_import_is_seen(module):
    assert direct_imports(module) == by_python(module)


def test_a_stage_is_its_modules_and_what_they_import():
    names = {
        str(path.relative_to(LIBRARY)) for path in reachable_modules(("training/sweep.py", "adapters/methods/lora.py"))
    }
    assert {
        "training/fit.py",
        "data/batching.py",
        "bases/core.py",
        "adapters/core.py",
        "adapters/contract.py",
    } <= names
    assert not [name for name in names if name.startswith(("reporting", "evaluation", "mixers", "config"))]


def test_an_edit_changes_the_digest_of_those_who_import_it(monkeypatch, tmp_path):
    library = tmp_path / "loratory"
    (library / "data").mkdir(parents=True)
    (library / "top.py").write_text("def f():\n    from loratory.data import (\n        deep,\n    )\n")
    (library / "data" / "deep.py").write_text("x = 1\n")
    (library / "apart.py").write_text("y = 1\n")

    def digests():
        code_digest.cache_clear()
        direct_imports.cache_clear()
        return code_digest("top.py"), code_digest("apart.py")

    monkeypatch.setattr(provenance, "LIBRARY", library)
    before = digests()
    (library / "data" / "deep.py").write_text("x = 2\n")
    after = digests()
    assert before[0] != after[0]
    assert before[1] == after[1]
    code_digest.cache_clear()
    direct_imports.cache_clear()
