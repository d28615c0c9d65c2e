"""Every tutorial does what it says: all its commands are run as printed, one after the other, in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
BLOCK = re.compile(r"^```(sh|text)\n(.*?)^```$", re.DOTALL | re.MULTILINE)

pytestmark = pytest.mark.whole


@pytest.fixture
def environment(tmp_path_factory) -> dict[str, str]:
    """Where `python` and `loratory` are this checkout's, installed or not."""
    commands = tmp_path_factory.mktemp("commands")
    for name, asked in (("python", ""), ("loratory", " -m loratory")):
        (commands / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{asked} "$@"\n')
        (commands / name).chmod(0o755)
    return os.environ | {"PATH": f"{commands}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT / "scripts")}


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
