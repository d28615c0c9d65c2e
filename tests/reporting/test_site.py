"""The report as a folder of pages: whole, linked, escaped, and asking for nothing outside."""

import re

import pytest

from loratory.data.files import write_json
from loratory.reporting.site import write_site
from loratory.reporting.tables import write_domain_table

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
def site(tmp_path, reports):
    data = tmp_path / "data" / "speech"
    card = {"records": {"train": 30, "test": 9}, "groups": {"train": 5, "test": 2}, "n_rejected": {"too_long": 4}}
    card |= {"n_in": 43, "n_kept": 39, "source": {"kind": "files", "licence": HOSTILE}, "options": {"max_age": 15}}
    shared = {"other splits": {"sentence": {"records": 3, "sensitivity": 1.0}}, "pretraining": {}}
    audit = {"counts": {"speakers_in_two_splits": 0}, "test": 9, "shared": shared, "sha256": {"test": "ab" * 32}}
    write_json(data / "card.json", card)
    write_json(data / "audit.json", audit)
    write_json(tmp_path / "base.json", {"origin": "owner/model", "licence": "MIT"})
    (tmp_path / "mini-lm.curves.svg").write_text("<svg/>")
    write_domain_table([reports[0]], tmp_path / "speech.mini-lm", banner=HOSTILE)
    (tmp_path / "mix.summary.html").write_text((tmp_path / "speech.mini-lm.html").read_text())
    (tmp_path / "mix.summary.tsv").write_text("")
    write_site(
        tmp_path / "report",
        title=f"Study {HOSTILE}",
        banner=HOSTILE,
        metrics=reports,
        tables=[tmp_path / "speech.mini-lm.html", tmp_path / "mix.summary.html"],
        figures=[tmp_path / "mini-lm.curves.svg"],
        datasets={"data/speech": data},
        bases={"mini-lm": tmp_path / "base.json"},
        study={"seeds": [0, 1], "title": HOSTILE},
        targets={"lora@speech": "results/adapters/speech/mini-lm/lora/runs.parquet"},
    )
    return tmp_path / "report"


def test_every_link_and_picture_is_a_file_of_the_folder(site):
    pages = sorted(site.glob("*.html"))
    assert [page.stem for page in pages] == ["comparisons", "index", "protein", "provenance", "speech"]
    for page in pages:
        targets = re.findall(r'(?:href|src)="([^"]*)"', page.read_text())
        assert targets and all((site / target).is_file() for target in targets), page.name


def test_what_a_config_or_a_file_says_is_text_and_no_markup(site):
    assert not [page.name for page in site.glob("*.html") if HOSTILE in page.read_text()]


def test_a_domains_page_has_its_table_and_the_proof_of_its_splits(site):
    text = (site / "speech.html").read_text()
    for says in ("lora@speech", "speakers in two splits", "too_long", "43 records in, 39 kept", "max_age: 15"):
        assert says in text
    assert (
        "mix" not in re.findall("<h2>(.*?)</h2>", text)
        and "<h2>mix.summary</h2>" in (site / "comparisons.html").read_text()
    )


def test_provenance_says_what_makes_each_row_again(site):
    text = (site / "provenance.html").read_text()
    for says in ("snakemake results/adapters/speech/mini-lm/lora/runs.parquet", "ab" * 32, "owner/model", "seeds:"):
        assert says in text


def test_a_site_that_cannot_be_written_leaves_the_one_before(tmp_path, site):
    before = (site / "index.html").read_bytes()
    nothing = {"metrics": [], "datasets": {}, "bases": {}, "study": {}, "targets": {}}
    with pytest.raises(FileNotFoundError):
        write_site(site, title="t", banner="", tables=[], figures=[tmp_path / "absent.svg"], **nothing)
    assert (site / "index.html").read_bytes() == before and [*tmp_path.glob(".report*")] == []
