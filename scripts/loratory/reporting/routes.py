"""How a mixture weighed its experts, gathered over domains and averaged over seeds."""

from collections.abc import Sequence

import numpy as np

from loratory.data.files import read_json, write_json


def gather_routes(files: Sequence[tuple[str, str]], mixture: str, out) -> None:
    """Writes `experts`, `domains`, `weights` (a row for each domain), `entropy` and `top1` (for each domain).

    Args:
        files: (domain, JSON of `evaluation.predict`) pairs, one for each domain and seed.
    """
    domains = list(dict.fromkeys(domain for domain, _ in files))
    found = {domain: [read_json(path)[mixture] for name, path in files if name == domain] for domain in domains}
    gathered = {"experts": found[domains[0]][0]["experts"], "domains": domains}
    gathered["weights"] = [mean(found[domain], "weights") for domain in domains]
    for part in ("prompt", "target", "modules", "entropy", "top1"):
        gathered[part] = {domain: mean(found[domain], part) for domain in domains}
    write_json(out, gathered)


def mean(runs: list[dict], key: str):
    """The mean over seeds, element by element, rounded to what a reader can use."""
    return np.round(np.mean([run[key] for run in runs], axis=0), 6).tolist()
