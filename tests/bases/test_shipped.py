"""The shipped bases open, are small, and say what they are."""

from pathlib import Path

import pytest

from loratory.bases.core import load_base
from loratory.bases.prepare import prepare_folder
from loratory.config import RESOURCES, load_config

ROOT = Path(__file__).parents[2]
BASES = load_config(ROOT / "config" / "config.yaml").bases
LIMIT = 24 * 2**20  # bytes of all shipped bases together


@pytest.mark.parametrize("name", BASES)
def test_a_shipped_base_opens(name, tmp_path):
    prepare_folder(BASES[name].path, name, BASES[name], tmp_path / name)
    base = load_base(tmp_path / name)
    assert base.family == BASES[name].family
    assert bool(base.audio) == BASES[name].hears


def test_shipped_bases_are_small_and_have_cards():
    folders = sorted(path for path in (RESOURCES / "bases").iterdir() if path.is_dir())
    assert sum(file.stat().st_size for folder in folders for file in folder.rglob("*")) < LIMIT
    for folder in folders:
        card = (folder / "card.md").read_text()
        assert "## Not for" in card and "snakemake pretrain_bases --configfile config/bases.yaml" in card
        assert {file.suffix for file in folder.rglob("*") if file.is_file()} <= {".json", ".safetensors", ".md"}


def test_the_recipe_of_the_shipped_bases_is_a_valid_config_for_the_same_bases():
    recipe = load_config(ROOT / "config" / "bases.yaml")
    assert recipe.bases.keys() == BASES.keys()
    assert all(
        recipe.bases[name].family == base.family and recipe.bases[name].pretrain for name, base in BASES.items()
    )
