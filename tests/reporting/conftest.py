import json
from dataclasses import asdict

import pytest
from answers import HOSTILE, MAKERS, make_answers
from metric_files import DOMAINS, rows_of, write_report

from loratory import registry
from loratory.data.files import write_json
from loratory.reporting.site import write_site
from loratory.reporting.tables import write_domain_table


@pytest.fixture
def reports(tmp_path):
    """Metric files of two domains on one base, in config order."""
    return [write_report(tmp_path / domain / "mini-lm.json", domain, rows_of(domain)) for domain in DOMAINS]


@pytest.fixture
def audit(tmp_path):
    path = tmp_path / "audit.json"
    counts = {"resembles_test": 0, "ids_in_two_splits": 0}
    shared = {"other splits": {"95% identity": {"records": 3, "sensitivity": 0.97}}, "pretraining": {}}
    path.write_text(json.dumps({"domain": "protein", "counts": counts, "test": 40, "shared": shared, "sha256": {}}))
    return path


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
    (tmp_path / "mini-lm.curves.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>")
    (tmp_path / "mini-lm.rates.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>")
    write_domain_table([reports[0]], tmp_path / "speech.mini-lm", banner=HOSTILE)
    of_mixture = (tmp_path / "speech.mini-lm.html").read_text().replace("<title>speech on", "<title>Mixture mix on")
    (tmp_path / "mix.summary.html").write_text(of_mixture)
    (tmp_path / "mix.summary.tsv").write_text("")
    others = [
        write_report(tmp_path / domain / "m.json", domain, rows_of("protein"))
        for domain in ("lncrna", "recsys", "text")
    ]
    views = []
    for domain in MAKERS:
        answers, task = make_answers(domain, tmp_path)
        found = registry.load_module("domain", domain, "views").show_records(answers, task)
        write_json(tmp_path / "views" / f"{domain}.json", [asdict(view) for view in found])
        views.append(((domain, "mini-lm"), tmp_path / "views" / f"{domain}.json"))
    write_site(
        tmp_path / "report",
        title=f"Study {HOSTILE}",
        banner=HOSTILE,
        metrics=[*reports, *others],
        tables=[tmp_path / "speech.mini-lm.html", tmp_path / "mix.summary.html"],
        figures=[tmp_path / "mini-lm.curves.svg", tmp_path / "mini-lm.rates.svg"],
        datasets={"data/speech": data},
        bases={"mini-lm": tmp_path / "base.json"},
        views=views,
        study={"seeds": [0, 1], "title": HOSTILE},
        targets={"lora@speech": "results/adapters/speech/mini-lm/lora/runs.parquet"},
    )
    return tmp_path / "report"
