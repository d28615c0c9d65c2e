import json

import pytest
from metric_files import DOMAINS, rows_of, write_report


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
