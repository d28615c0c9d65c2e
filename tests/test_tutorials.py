"""Every tutorial does what it says: all its commands are run as printed, one after the other, in an empty folder."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
BLOCK = re.compile(r"^```(sh|text)\n(.*?)^```$", re.DOTALL | re.MULTILINE)

pytestmark = pytest.mark.whole


@pytest.fixture
def environment(warm_python, tmp_path_factory) -> dict[str, str]:
    """Where `python` and `loratory` are this checkout's, installed or not."""
    command = tmp_path_factory.mktemp("commands") / "loratory"
    command.write_text(f'#!/bin/sh\nexec "{warm_python}" -m loratory "$@"\n')
    command.chmod(0o755)
    path = os.pathsep.join([str(command.parent), str(warm_python.parent), os.environ["PATH"]])
    return os.environ | {"PATH": path, "PYTHONPATH": str(ROOT / "scripts")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_tutorial_runs_as_printed_and_says_what_it_shows(page, environment, tmp_path):
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    script = "".join(text for kind, text in blocks if kind == "sh")
    asked = ["bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(
        asked, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout
    shown = [line for kind, text in blocks if kind == "text" for line in text.splitlines()]
    assert shown and [line for line in shown if line not in done.stdout.splitlines()] == [], done.stdout
    tables = [path for path in tmp_path.glob("results/tables/*.md") if ".errors." not in path.name]
    assert tables and all(re.search(r"\d \[", table.read_text()) for table in tables), "no number but reasons for none"
