"""Kinds of other installed packages: found, used, recorded, and told apart."""

import importlib
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from studies import run_jobs, shipped, written
from test_dag import Plan

from loratory import provenance, registry
from loratory.config.models import config_model, config_schema
from loratory.errors import InputError
from loratory.new_domain import write_domain

QUIET = """
from loratory.adapters.methods import lora


class Method(lora.Method):
    \"\"\"LoRA at half its scale.\"\"\"

    @property
    def scale(self) -> float:
        return super().scale / 2
"""
SHARES = "from loratory.mixers.methods.uniform import Mixer"
TEST = shipped("test")


def install(folder: Path, package: str, code: dict[str, str], entries: str, version: str = "1.2") -> None:
    """Lays out what pip would of a package: its modules `{file: code}`, its metadata and its entry points."""
    for name, text in code.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    about = folder / f"{package.replace('-', '_')}-{version}.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    (about / "entry_points.txt").write_text(entries)


def forget_caches() -> None:
    caches = (registry.outside_entries, config_model, config_schema, provenance.code_digest, provenance.direct_imports)
    for cached in caches:
        cached.cache_clear()


@pytest.fixture
def place(monkeypatch, tmp_path):
    """A folder of installed packages for the time of a test."""
    folder = tmp_path / "installed"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    forget_caches()
    yield folder
    forget_caches()


def call_python(folder: Path, place: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Python in `folder`, where the packages of `place` are installed beside the library."""
    path = os.pathsep.join([str(place), str(provenance.LIBRARY.parent)])
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "SLIPCOVER"))}
    environment = outside | {"PYTHONPATH": path}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def quiet(place):
    entries = "[loratory.methods]\nquiet = quiet_lora.method\n[loratory.mixers]\nshares = quiet_lora.shares\n"
    code = {"quiet_lora/__init__.py": "", "quiet_lora/method.py": QUIET, "quiet_lora/shares.py": SHARES}
    install(place, "quiet-lora", code, entries)
    yield place
    for name in [name for name in sys.modules if name.partition(".")[0] == "quiet_lora"]:
        del sys.modules[name]


def test_a_method_of_another_package_trains_and_what_it_made_names_the_package(quiet, tmp_path):
    small = {"steps": 2, "learning_rates": [0.003], "batch_tokens": 512}
    entry = {"method": "quiet", "rank": 4, "alpha": 8, "training": small}
    config = {
        key: value
        for key, value in TEST.items()
        if key not in ("mixtures", "lifecycle", "folding", "general", "pathvars")
    }
    config |= {"adapters": {"halved": entry}, "seeds": [0]}
    config["domains"] = {"lncrna": TEST["domains"]["lncrna"] | {"adapters": {"mini_lm": ["halved"]}}}
    config["bases"] = {"mini_lm": shipped("config")["bases"]["mini_lm"]}
    folder = "results/adapters/lncrna/mini_lm/halved/seed0"
    run_jobs(Plan(config, tmp_path, targets=[f"{folder}/run.json"]).jobs, tmp_path)
    run = json.loads((tmp_path / folder / "run.json").read_text())
    assert run["meta_info"]["package_info"]["quiet-lora"] == "1.2"
    stored = json.loads((tmp_path / folder / "adapter_config.json").read_text())
    assert stored["lora_alpha"] == 4


def test_packages_of_others_are_named_where_they_are_used_and_nowhere_else(quiet):
    assert registry.outside_packages(method="quiet", domain="lncrna-cow") == {"quiet-lora": "1.2"}
    assert registry.outside_packages(method="lora", mixer="xlora", family="causal") == {}


def test_a_domain_of_another_package_has_views_where_it_has_the_module(place):
    for name, code in (("plain", {}), ("shown", {"shown/views.py": ""})):
        install(place, name, {f"{name}/__init__.py": ""} | code, f"[loratory.domains]\n{name} = {name}\n")
    assert [registry.has_views(domain) for domain in ("plain", "shown-more", "speech", "structure")] == [
        False,
        True,
        True,
        False,
    ]


def test_an_edit_of_another_package_changes_the_digest_of_what_uses_it(quiet):
    def digests():
        forget_caches()
        return [
            provenance.adapter_code("lncrna", "quiet"),
            provenance.mixture_code(["lncrna"]),
            provenance.adapter_code("lncrna", "lora"),
        ]

    before = digests()
    (quiet / "quiet_lora" / "helper.py").write_text("x = 1\n")
    after = digests()
    assert [now != then for now, then in zip(after, before)] == [True, True, False]


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        (
            "[loratory.methods]\nlora = other.method",
            "other 3: loratory has a method of the same name",
        ),
        ("[loratory.mixers]\nshares = other.shares", "has a mixer of the same name (shares)"),
        ("[loratory.methods]\nQuiet = other.method", "wrong entry point (Quiet = other.method)"),
        ("[loratory.methods]\nloud = other.method:Method", "wrong entry point"),
    ],
)
def test_a_name_that_is_taken_or_is_none_is_one_line_that_names_both(quiet, entries, says):
    install(quiet, "other", {}, entries, "3")
    importlib.invalidate_caches()
    forget_caches()
    with pytest.raises(InputError) as caught:
        registry.registered_names("mixer" if "mixers" in entries else "method")
    assert says in str(caught.value)
    assert ("quiet-lora 1.2" in str(caught.value) and "other 3" in str(caught.value)) == ("shares" in entries)


def test_a_package_that_cannot_be_loaded_is_one_line_of_the_command(quiet, tmp_path):
    install(quiet, "broken", {"broken_method.py": "import no_such_package"}, "[loratory.methods]\nbad = broken_method")
    (tmp_path / "a.yaml").write_text("adapters: {}\n")
    done = call_python(tmp_path, quiet, "-m", "loratory", "check", "a.yaml")
    [line] = done.stderr.splitlines()
    assert line.startswith("error: broken 1.2: its method `bad` cannot be loaded: No module named 'no_such_package'")


def test_the_domain_that_the_command_writes_is_a_package_whose_test_passes_and_that_configs_may_name(place, tmp_path):
    written = call_python(tmp_path, place, "-m", "loratory", "add-domain", "cpg_island")
    assert written.returncode == 0, written.stderr
    folder, package = tmp_path / "loratory-cpg-island", "loratory_cpg_island"
    text = "".join(path.read_text() for path in folder.rglob("*.*"))
    assert "loratory.domains.promoter" not in text and "loratory_promoter" not in text
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["packages"] == [package]
    [(group, entries)] = project["project"]["entry-points"].items()
    [(name, module)] = entries.items()
    code = {str(path.relative_to(folder)): path.read_text() for path in (folder / package).iterdir()}
    install(place, project["project"]["name"], code, f"[{group}]\n{name} = {module}\n")
    tested = call_python(folder, place, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", ".", "tests")
    assert tested.returncode == 0 and "3 passed" in tested.stdout, tested.stdout + tested.stderr
    (tmp_path / "windows.tsv").write_text("a\tg\t1\tACGT\n")
    config = call_python(tmp_path, place, "-m", "loratory", "init", "cpg_island", "table=windows.tsv")
    assert config.returncode == 0, config.stderr
    again = call_python(tmp_path, place, "-m", "loratory", "add-domain", "cpg_island")
    assert again.stderr.startswith("error: command line: the domain exists (cpg_island)")


@pytest.mark.parametrize("name", ["../evil", "Upper", "protein", "a-b"])
def test_a_domain_of_no_name_or_a_taken_one_is_not_written(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"no name for a domain|the domain exists"):
        write_domain(name)
    assert [*tmp_path.iterdir()] == []


def test_two_families_of_one_name_are_one_line_of_the_command_and_of_a_plan(place, tmp_path):
    """Families are listed while the config's models are imported."""
    install(place, "twice", {"twice.py": ""}, "[loratory.families]\ncausal = twice\n")
    settings = written(TEST, tmp_path)
    line = "error: loratory.families of twice 1.2: loratory has a family of the same name (causal)"
    done = call_python(tmp_path, place, "-m", "loratory", "check", str(settings))
    assert done.returncode == 1 and done.stderr.startswith(line) and done.stderr.count("\n") == 1
    plan = call_python(tmp_path, place, "-m", "loratory", "run", str(settings), "-n")
    assert plan.returncode == 1 and line in plan.stdout + plan.stderr
    assert "Traceback" not in plan.stdout + plan.stderr
