"""What YAML allows and no author means is told in one line, with the file and where there is one the line."""

import random
import subprocess
import sys

import pytest
import yaml
from studies import ROOT

from loratory.config import read_config
from loratory.errors import InputError
from loratory.strict_yaml import MAX_NODES, check_config_files, load_yaml

BOMB = "a0: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
NOT_MEANT = {  # what is told after the file's name: the file's content
    ":3: the key stands twice, first in line 1 (seeds)": b"seeds: [0]\ntitle: x\nseeds: [1]\n",
    ":4: the key stands twice, first in line 3 (lora)": b"seeds: [0]\nadapters:\n  lora: {}\n  'lora': {}\n",
    ":1: the key stands twice, first in line 1 (a)": b"x: [{a: 1, a: 1}]",
    ":1: an alias stands inside of what it names": b"seeds: &s [*s]",
    ":2: an alias stands inside of what it names": b"x: 1\na: &a {b: {<<: *a}}",
    f":6: aliases of aliases (597871 values); expected at most {MAX_NODES}": BOMB.encode(),
    ":2: not UTF-8; fix: save the file as UTF-8": "seeds: [0]\ntitle: Ästhetik".encode("latin-1"),
    ":2: not YAML (expected ',' or ']'": b"seeds: [0\n",
    ":1: not YAML (found undefined alias": b"seeds: *s",
    ":1: not YAML (could not determine a constructor": b"x: !!python/object/apply:os.getcwd []",
    ": not YAML (unacceptable character": b"title: \x00",
    ": not YAML (month must be in 1..12)": b"title: 2020-99-99",
    ": not YAML (Exceeds the limit": b"seeds: [" + b"1" * 5000 + b"]",
    ": lists or keys stand too deep": b"x: " + b"[" * 100_000,
    ": no config (['a']); expected keys with values": b"[a]",
    ":1: a list or mapping as a key": b"{[1]: 2}",
}


@pytest.mark.parametrize("told", NOT_MEANT)
def test_a_file_that_nobody_meant_is_told_in_one_line(told, tmp_path):
    path = tmp_path / "study.yaml"
    path.write_bytes(NOT_MEANT[told])
    with pytest.raises(InputError) as caught:
        load_yaml(path)
    assert str(caught.value).startswith(f"{path}{told}") and len(str(caught.value).splitlines()) == 1


def test_a_file_or_folder_that_is_no_file_is_told(tmp_path):
    with pytest.raises(InputError, match=r"none\.yaml: the file cannot be read \(No such file"):
        load_yaml(tmp_path / "none.yaml")
    with pytest.raises(InputError, match=r"cannot be read \(Is a directory\)"):
        load_yaml(tmp_path)


def test_a_key_that_is_merged_in_may_be_given_anew(tmp_path):
    (tmp_path / "study.yaml").write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\n")
    assert load_yaml(tmp_path / "study.yaml")["b"] == {"x": 3, "y": 2}


@pytest.mark.parametrize("path", sorted((ROOT / "config").rglob("*.yaml")), ids=lambda path: path.name)
def test_a_shipped_config_is_read_as_yaml_reads_it(path):
    assert load_yaml(path) == yaml.safe_load(path.read_text())


def mutated(lines: list[str], rng: random.Random) -> bytes:
    """A file with one or two faults of hands: lines doubled, lost, moved, cut, or with other letters in them."""
    lines = [*lines]
    for _ in range(rng.randint(1, 2)):
        at = rng.randrange(len(lines))
        letters = rng.choice(
            ["&a *a", ".inf", '"2"', "true", "10000000000000000000000", "{x}", "é", "\t", ": :", "[", "\x1b[2J"]
        )
        other = lines[at].partition(":")[0] + ": " + letters
        change = rng.choice(["double", "lose", "move", "cut", "other", "other"])
        lines[at : at + 1] = {
            "double": [lines[at], lines[at]],
            "lose": [],
            "move": ["  " + lines[at]],
            "cut": [lines[at][: rng.randrange(len(lines[at]) + 1)]],
            "other": [other],
        }[change]
    return "\n".join(lines).encode(rng.choice(["utf-8", "utf-8", "utf-8", "latin-1"]), errors="replace")


def test_a_hundred_spoilt_files_are_read_or_refused_in_one_line(tmp_path):
    rng, path, refused = random.Random(1), tmp_path / "study.yaml", 0
    sources = [file.read_text().splitlines() for file in sorted((ROOT / "config").glob("*.yaml"))]
    for _ in range(100):
        path.write_bytes(mutated(rng.choice(sources), rng))
        try:
            read_config(load_yaml(path), str(path))
        except InputError as error:
            refused += 1
            assert str(error).startswith(str(path))
            assert len(str(error).splitlines()) == 1 and str(error).isprintable()
    assert refused > 30


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("pathvars: [a]", "pathvars: wrong value (['a']); expected keys with values"),
        ("pathvars: {results: 3}", "pathvars.results: wrong value (3); expected a folder"),
        ("a: &a {b: *a}", "an alias stands inside of what it names"),
    ],
)
def test_what_snakemake_would_stumble_over_ends_before_it_opens_the_file(content, told, tmp_path):
    (tmp_path / "study.yaml").write_text(content)
    with pytest.raises(SystemExit, match=r"study\.yaml: |study\.yaml:1: ") as caught:
        check_config_files(["-n", "--configfile", str(tmp_path / "study.yaml"), "--cores", "1"])
    assert told in str(caught.value)


def test_snakemake_itself_says_one_line_of_files_that_it_opens_first(tmp_path):
    (tmp_path / "study.yaml").write_bytes("title: Ästhetik".encode("latin-1"))
    command = [sys.executable, "-m", "snakemake", "-n", "--configfile", str(tmp_path / "study.yaml")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"{tmp_path}/study.yaml:1: not UTF-8; fix: save the file as UTF-8" in done.stderr.splitlines()


def test_every_profile_looks_at_config_files_first():
    hooks = [path.read_text().partition("__use_yte__")[2] for path in (ROOT / "profiles").glob("*/config.yaml")]
    assert len(hooks) == 3 and len({*hooks}) == 1 and "check_config_files(sys.argv[1:])" in hooks[0]
