"""Types of the library: mypy with the settings of pyproject.toml, and every parameter annotated."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_mypy_finds_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_parameter_is_annotated():
    bare = []
    for path in (ROOT / "scripts/loratory").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                missing = [a.arg for a in given if a.annotation is None and a.arg not in ("self", "cls")]
                bare += [f"{path.name}:{node.lineno} {node.name}({name})" for name in missing]
    assert bare == []
