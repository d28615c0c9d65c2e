"""The shipped bases open, are small, and say what they are."""

from pathlib import Path

import pytest

from loratory.bases.core import load_base
from loratory.bases.prepare import prepare_folder
from loratory.config import RESOURCES, entries, load_config
from loratory.domains.dataset import build_dataset, read_split
from loratory.domains.fetch import fetch_source, open_source

ROOT = Path(__file__).parents[2]
BASES = load_config(ROOT / "config" / "config.yaml").bases
CONTENT = {"protein": "sequence", "lncrna": "sequence", "speech": "sha256", "recsys": "history"}  # tells records apart
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


@pytest.mark.parametrize("path", sorted((ROOT / "config").glob("*.yaml")), ids=lambda path: path.stem)
def test_no_config_asks_shipped_bases_about_the_general_records_that_they_learnt_from(path):
    study, recipe = load_config(path), load_config(ROOT / "config" / "bases.yaml")
    ships = any(base.path and Path(base.path).is_relative_to(RESOURCES) for base in study.bases.values())
    simulated = [name for name, given in entries(study.general).items() if given.source.kind == "simulate"]
    assert not (ships and simulated) or study.split_seed != recipe.split_seed, "the simulators would draw them again"


@pytest.mark.parametrize("domain", CONTENT)
def test_another_split_seed_draws_other_general_records(domain, tmp_path):
    given = getattr(load_config(ROOT / "config" / "test.yaml").general, domain)
    found = []
    for seed in (0, 1):
        raw, data = tmp_path / f"raw{seed}", tmp_path / f"data{seed}"
        fetch_source(domain, given.source, "general", seed, raw)
        build_dataset(domain, open_source(domain, raw), given.dataset, seed, data)
        found.append({record[CONTENT[domain]] for split in ("train", "test") for record in read_split(data, split)})
    assert len(found[0]) > 5 and not found[0] & found[1]
