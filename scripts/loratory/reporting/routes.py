"""How a mixture weighed its experts, gathered over domains and averaged over seeds."""

from collections.abc import Sequence

import numpy as np

from loratory.data.files import read_json, write_json


def gather_routes(files: Sequence[tuple[str, str]], mixture: str, out) -> None:
    """Writes `experts`, `domains`, `weights` (a row for each domain), `entropy` and `top1` (for each domain), and
    `modules` (for each domain a row for each of the `layers`).

    Args:
        files: (domain, JSON of `evaluation.predict`) pairs, one for each domain and seed.
    """
    domains = list(dict.fromkeys(domain for domain, _ in files))
    found = {domain: [read_json(path)[mixture] for name, path in files if name == domain] for domain in domains}
    first = found[domains[0]][0]
    gathered = {"experts": first["experts"], "layers": first["layers"], "domains": domains}
    gathered["weights"] = [mean_over_seeds(found[domain], "weights") for domain in domains]
    for part in ("prompt", "target", "modules", "entropy", "top1"):
        gathered[part] = {domain: mean_over_seeds(found[domain], part) for domain in domains}
    write_json(out, gathered)


def mean_over_seeds(runs: list[dict], key: str):
    """The mean over seeds, element by element, rounded to what a reader can use; None where it is undefined."""
    if any(run[key] is None for run in runs):
        return None
    return np.round(np.mean([run[key] for run in runs], axis=0), 6).tolist()
