"""The examples of docs/extend.md do what the page says."""

import importlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from models import entry, llama, text_tokenizer
from snakemake.utils import update_config
from studies import ROOT, shipped, written
from transformers import T5Config, T5ForConditionalGeneration

from loratory import registry
from loratory.adapters.deltas import LowRank
from loratory.bases.core import load_base
from loratory.bases.prepare import prepare_folder
from loratory.domains.contract import Example, prediction_row
from loratory.domains.dataset import audit_split, build_dataset, read_split
from loratory.domains.fetch import fetch_source, open_source
from loratory.domains.views import Answers
from loratory.errors import InputError
from loratory.mixers.contract import GateInput, GateShape

PAGE = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"```python\n# (\S+\.py)\n(.*?)```", PAGE, re.DOTALL))


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """The page's files where the registry looks, for the time of these tests."""
    root = tmp_path_factory.mktemp("examples")
    for name, code in BLOCKS.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code, encoding="utf-8")
    packages = {name: importlib.import_module(name) for name in registry.PACKAGES.values()}
    for name, package in packages.items():
        package.__path__.append(str(root.joinpath(*name.split(".")[1:])))
    yield
    for package in packages.values():
        package.__path__.pop()


def test_the_page_has_all_parts_of_a_domain_a_method_a_mixer_and_a_base_family():
    parts = ("__init__", "sources", "build", "task", "metrics", "simulate", "views")
    domain = [*(f"domains/promoter/{part}.py" for part in parts), "tests/test_promoter.py"]
    single = ["adapters/methods/plain_lora.py", "mixers/methods/fixed.py", "bases/families/seq2seq.py"]
    assert list(BLOCKS) == [*domain, *single]


def dataset(folder: Path, population: str = "domain"):
    part = registry.load_module("domain", "promoter", "sources")
    fetch_source("promoter", part.Simulation(), population, 0, folder / "raw")
    build_dataset("promoter", open_source("promoter", folder / "raw"), part.Dataset(), 0, folder / "data")
    audit_split("promoter", folder / "data", part.Dataset(), folder / "audit.json")
    return folder / "data"


def test_the_domain_goes_from_simulation_to_a_metric(examples, tmp_path):
    sources, task, metrics = (
        registry.load_module("domain", "promoter", part) for part in ("sources", "task", "metrics")
    )
    records = read_split(dataset(tmp_path), "test")
    asked = task.examples(records, sources.Task(), "causal")
    assert {example.target for example in asked} == {" no", " yes"}
    knowing = [{"id": e.id, "group": e.group, "p": float("tataaa" in e.prompt)} for e in asked]
    (metric,) = metrics.METRICS
    assert metric.value(metrics.columns(knowing, records, sources.Task())) > 0.95
    guessing = [row | {"p": 0.5} for row in knowing]
    assert metric.value(metrics.columns(guessing, records, sources.Task())) == 0.5


def test_the_domain_shows_what_its_systems_say_of_records(examples, tmp_path):
    sources, task, views = (registry.load_module("domain", "promoter", part) for part in ("sources", "task", "views"))
    records = read_split(dataset(tmp_path), "test")
    sure = {record["id"]: prediction_row(record, task.CHOICES[record["label"]], p=0.9) for record in records}
    (view,) = views.show_records(Answers("mini_lm", records, {"base": sure}, "", "base"), sources.Task())
    assert registry.has_views("promoter")
    assert view.html.count("✓ right") == view.html.count("✗ wrong") == min(3, len(records) // 2)


def test_the_domains_populations_share_no_record(examples, tmp_path):
    ids = [
        {record["id"] for split in ("train", "gate", "valid", "test") for record in read_split(folder, split)}
        for folder in (dataset(tmp_path / population, population) for population in ("domain", "general"))
    ]
    assert len(ids[0]) == len(ids[1]) == 80
    assert not ids[0] & ids[1]


@pytest.mark.parametrize("line", ["a\tg\t2\tACGT", "a\tg\t1", "a\tg\t1\tACXT", "b\tg\t1\tACGT"])
def test_the_domain_names_file_and_line_of_what_is_wrong(examples, line, tmp_path):
    part = registry.load_module("domain", "promoter", "sources")
    table = tmp_path / "bad.tsv"
    table.write_text(f"b\tg\t0\tACGT\n{line}\n")
    with pytest.raises(InputError, match=rf"^{re.escape(str(table))}:2: "):
        build_dataset("promoter", part.Files(table=str(table)), part.Dataset(), 0, tmp_path / "out")


def test_the_methods_forward_is_its_delta(examples):
    method = registry.load_module("method", "plain_lora").Method(rank=4, alpha=8.0)
    random = torch.Generator().manual_seed(0)
    tensors = method.initial_tensors(torch.zeros(6, 5), random)
    tensors["B"].normal_(generator=random)
    delta = method.weight_delta(tensors, torch.zeros(6, 5))
    assert isinstance(delta, LowRank)
    assert delta.scale == 1.0
    x = torch.randn(3, 5, generator=random)
    torch.testing.assert_close(method.forward(x, tensors, training=False), x @ delta.to_dense().T)


def test_the_mixers_weights_are_its_shares(examples):
    mixer = registry.load_module("mixer", "fixed").Mixer(shares=(0.7, 0.3))
    weights = mixer.routing_weights(None, GateInput(), GateShape(2, 4, ("q", "k", "v"), (4, 4, 4), (8, 8, 8)))
    torch.testing.assert_close(weights.expand(2, 5, 3, 2)[1, 4, 2], torch.tensor([0.7, 0.3]))


@pytest.fixture(scope="module")
def seq2seq(examples, tmp_path_factory):
    """A tiny T5 that was prepared as a base of the page's family, and opened."""
    folder, tokenizer = tmp_path_factory.mktemp("seq2seq"), text_tokenizer()
    tokenizer.model_max_length = 32
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    T5ForConditionalGeneration(T5Config(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder / "published")
    tokenizer.save_pretrained(folder / "published")
    prepare_folder(folder / "published", "tiny", entry("seq2seq"), folder / "base")
    return load_base(folder / "base")


def test_the_familys_loss_is_that_of_transformers_whatever_the_batch(seq2seq):
    asked = [Example("r", "g", "will the user", target) for target in ("like it", "yes", "the speech to text")]
    items = [seq2seq.encode(example) for example in asked]
    for (nll, tokens), item in zip(seq2seq.nll(seq2seq.model, items), items):
        assert tokens == len(item.labels)
        alone = seq2seq.model(**seq2seq.inputs(seq2seq.collate([item])))  # its loss is the mean over tokens
        assert nll == pytest.approx(tokens * float(alone.loss), rel=1e-5)
    total, count = seq2seq.loss(seq2seq.model, seq2seq.collate(items))
    assert float(total) == pytest.approx(sum(nll for nll, _ in seq2seq.nll(seq2seq.model, items)), rel=1e-5)
    assert count == sum(len(item.labels) for item in items)


def test_what_the_family_has_no_use_for_is_refused_by_its_name(seq2seq):
    with pytest.raises(InputError, match="a base of family seq2seq has no `text`"):
        seq2seq.text(seq2seq.model, [], 4)
    with pytest.raises(InputError, match="does not fit into the base's context"):
        seq2seq.encode(Example("r", "g", "will the user like it " * 20, ""))


def test_a_folder_of_another_family_is_refused_with_the_right_one(seq2seq, tmp_path):
    llama().save_pretrained(tmp_path / "published")
    with pytest.raises(InputError, match=r"another architecture.*fix: `family: causal`"):
        prepare_folder(tmp_path / "published", "tiny", entry("seq2seq"), tmp_path / "base")


@pytest.mark.whole
def test_the_page_s_files_put_where_it_says_are_checked_and_run(tmp_path, warm_python):
    """In a copy of the project, by the commands of users; the page's configs stand beside the demo's."""
    for name in ("config", "envs", "profiles", "scripts", "workflow"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "resources").symlink_to(ROOT / "resources")
    for name, code in BLOCKS.items():
        path = tmp_path / "scripts" / "loratory" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(code, encoding="utf-8")
    (tmp_path / "t5-small").mkdir()
    study = shipped("config")
    for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL):
        update_config(study, yaml.safe_load(text))

    def succeeds(command: str, config: dict, *options: str) -> str:
        asked = [warm_python, "-m", "loratory", command, str(written(config, tmp_path)), *options]
        environment = os.environ | {"PYTHONPATH": str(tmp_path / "scripts")}
        done = subprocess.run(asked, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert f"{len(study['domains'])} domains, {len(study['bases'])} bases" in succeeds("check", study)
    study |= {"seeds": [0], "general": {}, "mixtures": {}, "folding": None}
    study["bases"] = {"mini_lm": study["bases"]["mini_lm"]}
    study["adapters"] = {"plain": study["adapters"]["plain"]}
    study["adapters"]["plain"]["training"]["steps"] = 5
    study["domains"] = {"promoter": study["domains"]["promoter"] | {"adapters": {"mini_lm": ["plain"]}}}
    succeeds("run", study, "--cores", "2", "tables")
    table = (tmp_path / "results/tables/promoter.mini_lm.md").read_text()
    assert re.search(r"plain@promoter +\| *\d\.\d+ \[", table), table


USE = (ROOT / "docs" / "use.md").read_text(encoding="utf-8")


def test_the_python_of_the_guide_imports_what_there_is():
    blocks = re.findall(r"```python\n(.*?)```", USE, re.DOTALL)
    code = "\n".join(blocks)
    compile(code, "use.md", "exec")
    for module, names in re.findall(r"^from (\S+) import (.*)$", code, re.MULTILINE):
        for name in names.split(", "):
            assert hasattr(importlib.import_module(module), name), f"{module}.{name}"
    assert "prompts = [" in code


def test_the_environment_that_make_sets_up_finds_the_library():
    """What the Makefile writes into a virtual environment, run in an empty one."""
    recipe = (Path(__file__).parent.parent / "Makefile").read_text()
    assert re.search(r"scripts.*> .*loratory\.pth", recipe)
