"""What is shipped fits together: versions, environments, rules and their scripts; it names no place of its making."""

import re
import subprocess
import tomllib
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from snakemake.utils import update_config

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {name: needed for name, needed in PROJECT["optional-dependencies"].items() if name != "cuda"}  # no CPU's
DEPENDENCIES = list(chain(PROJECT["dependencies"], *EXTRAS.values()))
RULES = sorted((ROOT / "workflow" / "rules").glob("*.smk"))
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
DIGEST = r"--hash=sha256:[0-9a-f]{64}"
FOREIGN = r"\.\./shared|(?<!\w)/work\b|pypi\.org|pythonhosted|anaconda\.org|index-url|find-links"


def locked(file: str) -> list[list[str]]:
    """The words of each package in a lock: `name==version`, then digests."""
    text = re.sub(r"#.*", "", (ROOT / file).read_text()).replace("\\\n", " ")
    return [line.split() for line in text.splitlines() if line.strip()]


DIGESTS = {pin: digests for pin, *digests in locked("requirements.lock")}
PINS = [*DIGESTS, *(pin for [pin] in locked("torch.lock"))]
LOCK = {canonicalize_name(name): version for name, version in (pin.split("==") for pin in PINS)}


def project_files() -> list[Path]:
    """What a clone would hold: tracked files, and new ones that git does not ignore."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


@pytest.mark.parametrize("text", DEPENDENCIES)
def test_the_lock_holds_every_dependency_within_its_range(text):
    wanted = Requirement(text)
    assert wanted.specifier.contains(LOCK[canonicalize_name(wanted.name)])


def test_the_lock_is_exact_sorted_and_free_of_builds_for_one_machine():
    assert [pin for pin in PINS if not re.fullmatch(r"[\w.-]+==[\w.]+", pin)] == []
    names = [canonicalize_name(pin.partition("==")[0]) for pin in DIGESTS]
    assert names == sorted(names) and {*LOCK} - {*names} == {"torch"}
    assert [name for name in LOCK if name.startswith(("nvidia", "cuda"))] == []
    assert [version for version in LOCK.values() if Version(version).local] == []


def test_the_lock_has_digests_of_all_but_torch():
    """pip compares nothing at all unless every line has one."""
    assert [pin for pin, found in DIGESTS.items() if not found] == []
    assert [digest for found in DIGESTS.values() for digest in found if not re.fullmatch(DIGEST, digest)] == []


@pytest.mark.parametrize("file", ["Makefile", "Dockerfile"])
def test_what_has_digests_is_installed_first_and_alone(file):
    """Else torch's own packages would be whatever versions its build asks for, unseen by the lock."""
    calls = re.findall(r"python -m pip install (.*)", (ROOT / file).read_text())
    assert ["--no-deps" in call for call in calls] == [True, False]
    assert [re.search(r"-r (?:/opt/loratory/)?(\S+)$", call)[1] for call in calls] == [
        "requirements.lock",
        "torch.lock",
    ]


def test_the_image_is_the_lock_on_the_python_of_the_lock_and_nothing_else():
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    steps = [line.split(maxsplit=1) for line in lines if not line.startswith("#")]
    assert [word for word, _ in steps] == ["FROM", "COPY", "RUN", "RUN", "ENV"]
    assert [steps[0][1], steps[-1][1]] == ["python:3.11-slim", "HOME=/tmp"]
    assert steps[1][1] == "requirements.lock torch.lock /opt/loratory/"
    quiet = {"--no-cache-dir", "--disable-pip-version-check"}
    calls = [[word for word in step.split() if word not in quiet] for _, step in steps[2:4]]
    files = [f"/opt/loratory/{file}" for file in ("requirements.lock", "torch.lock")]
    assert calls == [
        ["python", "-m", "pip", "install", *rest] for rest in (["--no-deps", "-r", files[0]], ["-r", files[1]])
    ]


def test_no_file_names_the_place_it_was_written_at():
    found = []
    for path in project_files():
        if path.is_relative_to(ROOT / "tests"):
            continue
        text = path.read_bytes().decode("utf-8", errors="replace")
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in re.finditer(FOREIGN, text)]
    assert found == []


@pytest.mark.parametrize("path", [ROOT / "workflow" / "Snakefile", *RULES], ids=lambda path: path.name)
def test_every_rule_file_opens_by_saying_what_it_is_for(path):
    assert re.match(r'"""[A-Z].|# [A-Z]', path.read_text())


def test_every_script_is_a_rules_and_every_rule_has_its_own():
    text = "\n".join(path.read_text() for path in RULES)
    used = re.findall(r'rule (\w+):(?:(?!\nrule ).)*?script:\s+"\.\./\.\./scripts/(\w+)\.py"', text, re.DOTALL)
    assert used
    assert [(rule, script) for rule, script in used if rule != script] == []
    assert sorted(script for _, script in used) == [path.stem for path in SCRIPTS]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_doors_and_no_rooms(path):
    assert len(path.read_text().splitlines()) <= 30


@pytest.mark.parametrize("files", [("real",), ("real", "budgets/study")], ids=str)
def test_real_data_meets_published_models_at_a_commit_and_with_a_licence(files):
    study = yaml.safe_load((ROOT / "config" / f"{files[0]}.yaml").read_text())
    for file in files[1:]:
        update_config(study, yaml.safe_load((ROOT / "config" / f"{file}.yaml").read_text()))
    for base in study["bases"].values():
        assert base["hub"] and len(base["revision"]) == 40 and base["licence"] and base["parameters"]


def test_an_installed_package_has_the_whole_workflow():
    text = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = text["tool"]["setuptools"]["data-files"]
    shipped = {path for names in patterns.values() for name in names for path in ROOT.glob(name)}
    folders = ("workflow/rules", "workflow/report", "scripts", "envs", "profiles/default", "config", "resources/bases")
    needed = [ROOT / "workflow" / "Snakefile", *(path for folder in folders for path in (ROOT / folder).glob("*.*"))]
    needed += (ROOT / "resources" / "bases").rglob("*.*")
    assert [path for path in needed if path.is_file() and path not in shipped] == []
    assert [
        name
        for name, paths in patterns.items()
        for path in paths
        if not name.endswith(str(Path(path).parent).removeprefix("."))
    ] == []


def test_no_script_takes_the_name_of_an_installed_package():
    """Scripts stand on the import path beside the library; one of them once shadowed `tabulate`."""
    installed = packages_distributions()
    assert [path.stem for path in (ROOT / "scripts").glob("*.py") if path.stem in installed] == []
