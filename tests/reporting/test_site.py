"""The report as a folder of pages: whole, linked, escaped, and asking for nothing outside."""

import re

import pytest
from answers import HOSTILE, MAKERS

from loratory.data.files import file_sha256
from loratory.reporting.site import KINDS, SCRIPTS, write_site


def test_every_link_and_picture_is_a_file_of_the_folder(site):
    pages = sorted(site.glob("*.html"))
    names = {"index", "methods", "mixtures", "training", "provenance", *MAKERS}
    assert {page.stem for page in pages} == names
    for page in pages:
        targets = re.findall(r'(?:href|src)="([^"#][^":]*)"', page.read_text())
        assert len({*targets} & {f"{name}.html" for name in names}) == len(names)
        assert all((site / target).is_file() for target in targets), page.name


def test_what_a_config_or_a_file_says_is_text_and_no_markup(site):
    assert not [page.name for page in site.glob("*.html") if HOSTILE in page.read_text()]


def test_a_domains_page_has_its_table_and_the_proof_of_its_splits(site):
    text = (site / "speech.html").read_text()
    for says in ("lora@speech", "speakers in two splits", "too_long", "43 records in, 39 kept", "max_age: 15"):
        assert says in text
    assert not {"Mixture mix on mini-lm", "Rates of mini-lm"} & {*re.findall("<h2>(.*?)</h2>", text)}


def test_provenance_says_once_what_computed_the_metrics(site):
    assert (site / "provenance.html").read_text().count(">numpy<") == 1


def test_methods_and_mixtures_have_a_page_each_and_an_empty_page_is_none(tmp_path, site):
    found = {page: re.findall("<h2>(.*?)</h2>", (site / f"{page}.html").read_text()) for page in KINDS}
    assert found == {"methods": ["Rates of mini-lm"], "mixtures": ["Mixture mix on mini-lm"]}
    nothing = {"metrics": [], "datasets": {}, "bases": {}, "views": [], "study": {"seeds": []}, "targets": {}}
    write_site(tmp_path / "empty", title="t", banner="", tables=[], figures=[], **nothing)
    assert {page.name for page in (tmp_path / "empty").glob("*.html")} == {"index.html", "provenance.html"}


def test_a_page_loads_the_viewer_of_molecules_only_where_there_are_some(site):
    loading = [page.stem for page in site.glob("*.html") if "3Dmol" in page.read_text()]
    assert loading == ["protein"]
    assert {"3Dmol-min.js", "3Dmol.LICENSE", "chains.js"} <= {path.name for path in (site / "viewer").iterdir()}


def test_the_viewer_is_the_file_of_its_package_with_its_licence():
    given = (SCRIPTS / "3Dmol-min.js.sha256").read_text().split()
    assert [file_sha256(SCRIPTS / given[1])] == given[:1] and given[1] == "3Dmol-min.js"
    assert "BSD-3-Clause" in (SCRIPTS / "3Dmol.LICENSE").read_text()


def test_provenance_says_what_makes_each_row_again(site):
    text = (site / "provenance.html").read_text()
    for says in ("snakemake results/adapters/speech/mini-lm/lora/runs.parquet", "ab" * 32, "owner/model", "seeds:"):
        assert says in text


def test_a_site_that_cannot_be_written_leaves_the_one_before(tmp_path, site):
    before = (site / "index.html").read_bytes()
    nothing = {"metrics": [], "datasets": {}, "bases": {}, "views": [], "study": {}, "targets": {}}
    with pytest.raises(FileNotFoundError):
        write_site(site, title="t", banner="", tables=[], figures=[tmp_path / "absent.svg"], **nothing)
    assert (site / "index.html").read_bytes() == before and [*tmp_path.glob(".report*")] == []
