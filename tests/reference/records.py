"""A few records of a domain for the reference checks: of the public samples, or of the simulators."""

from itertools import islice
from pathlib import Path

import numpy as np

from loratory import config, registry
from loratory.data.ledger import Ledger
from loratory.domains.fetch import fetch_source, open_source

FILES = {
    "protein": {"fasta": "proteins/uniref/uniref50_train_filt.fasta"},
    "lncrna": {
        "coding": ["lncrna/human/cpat_coding_mRNA.fa.gz"],
        "noncoding": ["lncrna/human/cpat_noncoding_RNA.fa.gz"],
        "header": "plain",
    },
    "recsys": {"ratings": "recsys/ml-latest-small.zip"},
}
SIMULATED = {
    "protein": {"n": 40, "families": 40, "min_length": 30, "max_length": 50},
    "lncrna": {"genes": 8, "isoforms": 1, "longest": 300},
    "recsys": {"users": 20, "items": 50, "ratings": 20},
}
DATASETS = {"protein": {"max_length": 120, "min_length": 20}, "lncrna": {}, "recsys": {}}


def public_records(domain: str, n: int, data: Path) -> list[dict]:
    """Records of the public sample under `data`, as many of either class."""
    files = config.domain_source(domain, {"kind": "files"} | FILES[domain]).map_locations(
        lambda location: str(data / location)
    )
    return some_records(domain, files, DATASETS[domain], n)


def simulated_records(domain: str, n: int, folder: Path) -> list[dict]:
    """Records of the domain's simulator, which writes its files under `folder`."""
    fetch_source(domain, config.domain_source(domain, {"kind": "simulate"} | SIMULATED[domain]), "domain", 0, folder)
    small = {"recsys": {"k_core": 1}}.get(domain, {})
    return some_records(domain, open_source(domain, folder), DATASETS[domain] | small, n)


def some_records(domain: str, files, dataset: dict, n: int) -> list[dict]:
    chosen = config.domain_options(domain, "Dataset", dataset | {"on_error": "skip"})
    ledger = Ledger("skip")
    found = registry.load_module("domain", domain, "build").read(files, chosen, ledger)
    if domain == "recsys":
        found = found.with_splits(np.zeros(len(found), np.int8), ledger)
    found = [*found]
    labels = sorted({record.get("label", 0) for record in found})
    parts = [[record for record in found if record.get("label", 0) == label] for label in labels]
    each = [islice(part, n // len(parts)) for part in parts]
    return [record | {"group": record["id"]} for part in each for record in part]
