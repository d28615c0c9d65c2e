"""Controls that know no language model: what a domain's baselines say about the same test records."""

from loratory import registry
from loratory.domains.questions import read_records
from loratory.evaluation.rows import write_rows


def predict_baselines(domain, data, task, max_records, out) -> None:
    """Writes one row for each (baseline, test record); no rows for a domain without baselines."""
    module = registry.load("domain", domain, "task")
    rows = []
    if hasattr(module, "baselines"):
        train, test = read_records(data, "train"), read_records(data, "test", max_records)
        for name, found in module.baselines(train, test, task).items():
            rows += [{"split": "test", "system": name, "kind": "baseline"} | row for row in found]
    write_rows(out, rows)
