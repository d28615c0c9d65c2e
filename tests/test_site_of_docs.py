"""The pages of docs/ are a site whose links resolve and that asks no other host for anything."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LOADS = {
    "script": "src",
    "link": "href",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
}


class Loads(HTMLParser):
    """What a browser fetches for a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag, attrs):
        if address := dict(attrs).get(LOADS.get(tag)):
            self.addresses.append(address)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    asked = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def pages(site: Path) -> dict[str, list[str]]:
    found = {}
    for path in site.rglob("*.html"):
        loads = Loads()
        loads.feed(path.read_text(encoding="utf-8"))
        found[str(path.relative_to(site))] = loads.addresses
    return found


def test_every_page_of_docs_is_in_the_site(site):
    written = {str(path.relative_to(ROOT / "docs").with_suffix(".html")) for path in (ROOT / "docs").rglob("*.md")}
    assert written | {"config.html", "measured.html"} <= pages(site).keys()


def test_no_page_fetches_anything_from_another_host(site):
    found = pages(site)
    assert all(found.values()), "every page has its style at least"
    assert [address for addresses in found.values() for address in addresses if re.match(r"(\w+:)?//", address)] == []
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert re.findall(r"(?:@import|url\()\s*['\"]?(?:https?:)?//[^)'\"]*", styles) == []


def test_what_a_page_fetches_is_there(site):
    for page, addresses in pages(site).items():
        for address in addresses:
            start = site if address.startswith("/") else (site / page).parent  # of the page for a wrong address
            assert (start / address.lstrip("/").partition("?")[0]).exists(), (page, address)


def test_links_to_the_reference_lead_to_its_headings(site):
    """As on forges, where the same files are read: a heading's anchor is its text."""
    assert 'href="config.html#adaptersnametrainingaugmentation"' in (site / "use.html").read_text()
    assert 'id="adaptersnametrainingaugmentation"' in (site / "config.html").read_text()
