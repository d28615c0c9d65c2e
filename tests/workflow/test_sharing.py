"""Studies with one `shared` folder make what is equal once; the jobs' scripts run in this process."""

import json

import pytest
from studies import ROOT, changed, run_jobs, shipped
from test_dag import Plan

from loratory import registry
from loratory.data.files import atomic_write
from loratory.data.sharing import share_folder

LESS = {
    "domains": {"protein": shipped("test")["domains"]["protein"]},
    "mixtures": {},
    "lifecycle": {},
    "general": {},
    "folding": None,
}


@pytest.fixture
def run_study(tmp_path):
    """Runs the jobs that make the dataset of a study; its results folder and changes are given."""
    base = {"family": "causal", "path": str(ROOT / "resources" / "bases" / "mini_lm")}
    study = changed(shipped("test"), LESS | {"bases": {"mini_lm": base}, "shared": str(tmp_path / "shared")})

    def run(name: str, changes: dict | None = None) -> dict[str, bytes]:
        config = changed(study, {"pathvars": {"results": f"results/{name}"}} | (changes or {}))
        jobs = {job.rule.name: job for job in Plan(config, tmp_path).jobs}
        run_jobs([jobs["fetch_source"], jobs["build_dataset"]], tmp_path)
        made = tmp_path / "results" / name
        return {
            str(path.relative_to(made)): path.read_bytes()
            for path in made.rglob("*")
            if path.suffix != ".log" and path.is_file()
        }

    return run


def refuse(*given, **named):
    raise AssertionError("it was made anew")


def test_a_second_study_makes_nothing_anew_and_holds_the_same_files(run_study, monkeypatch):
    first = run_study("a")
    assert {"data/protein/train.parquet", "data/protein/card.json", "raw/data/protein/files.json"} < first.keys()
    monkeypatch.setattr(registry.load_module("domain", "protein", "simulate"), "simulate", refuse)
    monkeypatch.setattr(registry.load_module("domain", "protein", "build"), "read", refuse)
    assert run_study("b") == first


def test_a_study_with_another_config_shares_what_is_still_equal_alone(run_study, monkeypatch):
    first = run_study("a")
    monkeypatch.setattr(registry.load_module("domain", "protein", "simulate"), "simulate", refuse)
    shorter = run_study("b", {"domains.protein.dataset.max_length": 45})
    assert shorter["raw/data/protein/files.json"] == first["raw/data/protein/files.json"]
    assert shorter["data/protein/train.parquet"] != first["data/protein/train.parquet"]
    monkeypatch.undo()


def test_a_shared_folder_that_lost_a_file_is_made_again_and_not_copied(tmp_path):
    def make(folder):
        with atomic_write(folder) as aside:
            aside.mkdir()
            for name in ("weights", "words"):
                (aside / name).write_text(name)

    share_folder(tmp_path / "shared", {}, tmp_path / "one", make)
    [lost] = (tmp_path / "shared").glob("*/words")
    lost.unlink()
    share_folder(tmp_path / "shared", {}, tmp_path / "two", make)
    assert lost.is_file()
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["weights", "words"]


def test_a_folder_is_made_once_for_the_same_facts_and_anew_for_others(tmp_path):
    made = []

    def make(folder):
        made.append(folder)
        folder.mkdir()
        (folder / "a.json").write_text(json.dumps(len(made)))
        (folder / "b.bin").write_text("large")

    for facts, out, number in (({"n": 1}, "x", 1), ({"n": 1}, "y", 1), ({"n": 2}, "z", 2), ({"n": 1}, "x", 1)):
        share_folder(tmp_path / "shared", facts, tmp_path / out, make)
        assert json.loads((tmp_path / out / "a.json").read_text()) == number
    share_folder(tmp_path / "shared", {"n": 1}, tmp_path / "w", make, names=["a.json"])
    assert [path.name for path in (tmp_path / "w").iterdir()] == ["a.json"]
    share_folder(None, {"n": 1}, tmp_path / "alone", make)
    assert made[-1] == tmp_path / "alone" and len(made) == 3


def test_what_fails_leaves_nothing_that_another_study_would_take(tmp_path):
    def fail(folder):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        share_folder(tmp_path / "shared", {"n": 1}, tmp_path / "x", fail)
    assert [path.suffix for path in (tmp_path / "shared").iterdir()] == [".lock"]
    assert not (tmp_path / "x").exists()
