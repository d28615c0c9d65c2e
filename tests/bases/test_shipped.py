"""The shipped bases open, are small, and say what they are."""

from pathlib import Path

import pytest

from loratory.bases.core import load_base
from loratory.bases.families.folding import fold_sequence, load_folding_model
from loratory.bases.prepare import prepare_folder
from loratory.config import RESOURCES, entries_by_name, load_config
from loratory.domains.dataset import build_dataset, read_split
from loratory.domains.fetch import fetch_source, open_source

ROOT = Path(__file__).parents[2]
BASES = load_config(ROOT / "config" / "config.yaml").bases
CONTENT = {"protein": "sequence", "lncrna": "sequence", "speech": "sha256", "recsys": "history_times"}
RECIPES = {"config/bases.yaml": ["mini_lm", "mini_whisper", "mini_bert"], "config/folding.yaml": ["mini_fold"]}
LIMIT = 24 * 2**20  # bytes of all shipped bases together


@pytest.mark.parametrize("name", [name for name, base in BASES.items() if base.family != "folding"])
def test_a_shipped_base_opens(name, tmp_path):
    prepare_folder(BASES[name].path, name, BASES[name], tmp_path / name)
    base = load_base(tmp_path / name)
    assert base.family == BASES[name].family
    assert bool(base.audio) == BASES[name].has_audio
    if base.family == "causal":  # as it was pretrained
        assert base.begin_ids == [base.tokenizer.bos_token_id]


def test_the_shipped_folding_base_is_surer_of_a_protein_than_of_its_shuffled_residues():
    model = load_folding_model(BASES["mini_fold"].path, "cpu")
    helix = "EALKKAEELLKEALAKAEELLAKAGDPEALKKALELAEKAVELA"
    shuffled = "".join(sorted(helix))
    assert fold_sequence(model, helix).plddt.mean() > fold_sequence(model, shuffled).plddt.mean()


def test_shipped_bases_are_small_and_have_cards():
    folders = sorted(path for path in (RESOURCES / "bases").iterdir() if path.is_dir())
    assert sum(file.stat().st_size for folder in folders for file in folder.rglob("*")) < LIMIT
    for folder in folders:
        card = (folder / "card.md").read_text()
        recipe = next(path for path, names in RECIPES.items() if folder.name in names)
        assert "## Not for" in card and f"snakemake pretrain_bases --configfile {recipe}" in card
        kinds = {file.suffix for file in folder.rglob("*") if file.is_file()}
        assert kinds <= {".json", ".safetensors", ".md", ".txt"}


def test_the_recipes_of_the_shipped_bases_are_valid_configs_for_the_same_bases():
    recipes = {name: base for path in RECIPES for name, base in load_config(ROOT / path).bases.items()}
    assert recipes.keys() == BASES.keys()
    assert all(recipes[name].family == base.family and recipes[name].pretrain for name, base in BASES.items())


@pytest.mark.parametrize("path", sorted((ROOT / "config").glob("*.yaml")), ids=lambda path: path.stem)
def test_no_config_asks_shipped_bases_about_the_general_records_that_they_learnt_from(path):
    study, recipe = load_config(path), load_config(ROOT / "config" / "bases.yaml")
    ships = any(base.path and Path(base.path).is_relative_to(RESOURCES) for base in study.bases.values())
    simulated = [name for name, given in entries_by_name(study.general).items() if given.source.kind == "simulate"]
    assert not (ships and simulated) or study.split_seed != recipe.split_seed, "the simulators would draw them again"


@pytest.mark.parametrize("domain", CONTENT)
def test_another_split_seed_draws_other_general_records(domain, tmp_path):
    given = getattr(load_config(ROOT / "config" / "test.yaml").general, domain)
    found = []
    for seed in (0, 1):
        raw, data = tmp_path / f"raw{seed}", tmp_path / f"data{seed}"
        fetch_source(domain, given.source, "general", seed, raw)
        build_dataset(domain, open_source(domain, raw), given.dataset, seed, data)
        found.append(
            {str(record[CONTENT[domain]]) for split in ("train", "test") for record in read_split(data, split)}
        )
    assert len(found[0]) > 5 and not found[0] & found[1]
