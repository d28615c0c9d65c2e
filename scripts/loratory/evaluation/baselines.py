"""Controls that know no language model: what a domain's baselines say about the same test records, or write."""

from loratory import registry
from loratory.domains.questions import read_records
from loratory.evaluation.rows import write_rows


def predict_baselines(domain, data, task, max_records, samples: int, out) -> None:
    """Writes one row for each (baseline, test record) and (baseline, sample); none for a domain without baselines."""
    module = registry.load("domain", domain, "task")
    train, test = read_records(data, "train"), read_records(data, "test", max_records)
    rows = []
    if hasattr(module, "baselines"):
        found = module.baselines(train, test, task)
        rows += [row | labels("test", name) for name, own in found.items() for row in own]
    if hasattr(module, "sample_baselines"):
        found = module.sample_baselines(test, samples, task)
        rows += [row | labels("sample", name) for name, own in found.items() for row in own]
    write_rows(out, rows)


def labels(split: str, system: str) -> dict:
    return {"split": split, "system": system, "kind": "baseline"}
