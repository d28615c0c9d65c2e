"""How a mixture weighed its experts, gathered over domains and averaged over seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from loratory.data.files import read_json, write_json


def gather_routing(files: Mapping[str, Sequence[Path | str]], mixture: str, out: Path | str) -> None:
    """Writes `experts`, `domains`, `weights` (a row for each domain), `entropy`, `top1` and `tokens`, which they are
    means over (for each domain), `modules` (for each domain a row for each of the `layers`) and `learns_labels` to a
    JSON file.

    Args:
        files: {domain: JSON files of `evaluation.predict`, one for each seed}.
    """
    found = {domain: [read_json(path)[mixture] for path in paths] for domain, paths in files.items()}
    domains, first = list(found), next(iter(found.values()))[0]
    gathered = {key: first[key] for key in ("experts", "layers", "learns_labels")} | {"domains": domains}
    gathered["weights"] = [mean_over_seeds(found[domain], "weights") for domain in domains]
    for part in ("prompt", "target", "modules", "entropy", "top1", "tokens"):
        gathered[part] = {domain: mean_over_seeds(found[domain], part) for domain in domains}
    write_json(out, gathered)


def mean_over_seeds(runs: Sequence[dict], key: str) -> float | list | None:
    """The mean over seeds, element by element, rounded to what a reader can use; None where it is undefined."""
    if any(run[key] is None for run in runs):
        return None
    return np.round(np.mean([run[key] for run in runs], axis=0), 6).tolist()
