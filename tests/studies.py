"""Configs to test with: the shipped ones, changed."""

from copy import deepcopy
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
ABSENT = object()


def shipped(name: str) -> dict:
    return yaml.safe_load((ROOT / "config" / f"{name}.yaml").read_text())


def changed(config: dict, changes: dict) -> dict:
    """A copy with the values at dotted keys replaced, or taken out."""
    config = deepcopy(config)
    for path, value in changes.items():
        *parents, last = path.split(".")
        place = config
        for key in parents:
            place = place.setdefault(key, {})
        if value is ABSENT:
            del place[last]
        else:
            place[last] = value
    return config


def written(config: dict, folder: Path) -> Path:
    """The config as a file in a folder that a workflow may run in."""
    path = Path(folder) / "study.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path
