"""The command line: configs for own files, one-line errors, and everything else handed to Snakemake."""

import sys
from random import Random

import pytest
from studies import changed, shipped, written

from loratory import __main__ as command_line
from loratory.config import PROJECT, load_config


@pytest.fixture
def called(monkeypatch, tmp_path):
    """What Snakemake would have been started with, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    commands = []

    monkeypatch.setattr(command_line.os, "execv", lambda program, command: commands.append(command))
    return commands


@pytest.fixture
def config(called, tmp_path):
    (tmp_path / "my.fasta").write_text(">a\nMKTAYIAK\n")
    assert command_line.main(["init", "protein", "fasta=my.fasta"]) == 0
    return "config.yaml"


def test_a_config_for_own_files_is_right_and_names_them(config, capsys):
    study = load_config(config)
    assert study.domains.protein.source.fasta == ["my.fasta"]
    assert command_line.main(["check", config]) == 0
    assert "1 domains, 1 bases, 1 adapters to train" in capsys.readouterr().out


def test_a_model_that_cannot_be_made_is_told_by_check_too(called, tmp_path, capsys):
    odd = written(changed(shipped("bases"), {"bases.mini_lm.pretrain.architecture.hiden_size": 8}), tmp_path)
    assert command_line.main(["check", str(odd)]) == 1
    assert "bases.mini_lm.pretrain.architecture: unknown key (hiden_size); expected one of" in capsys.readouterr().err


def test_a_domain_that_the_demo_has_not_gets_a_config_too(called, tmp_path):
    (tmp_path / "my.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    assert command_line.main(["init", "text", "records=my.jsonl"]) == 0
    assert [*load_config("config.yaml").domains.text.adapters] == ["mini_lm"]


def test_a_published_base_stands_in_the_config(called, tmp_path):
    (tmp_path / "r.csv").write_text("")
    (tmp_path / "i.csv").write_text("")
    given = ["init", "recsys", "ratings=r.csv", "items=i.csv", "--hub", "owner/model", "--revision", "0" * 40]
    assert command_line.main(given) == 0
    [base] = load_config("config.yaml").bases.values()
    assert (base.hub, base.revision, base.family) == ("owner/model", "0" * 40, "causal")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["init", "protien", "fasta=my.fasta"], "did you mean `protein`?"),
        (["init", "protein", "fasta=absent.fasta", "--out", "new.yaml"], "do not exist: absent.fasta"),
        (["init", "protein", "fast=my.fasta", "--out", "new.yaml"], "did you mean `fasta`?"),
        (["init", "protein", "my.fasta", "--out", "new.yaml"], "expected KEY=my.fasta with one of columns, "),
        (["init", "protein", "--out", "new.yaml"], "no file is given (FILE); expected KEY=FILE with one of columns, "),
        (["init", "speech", "tables=.", "--out", "new.yaml"], "a folder stands where a file belongs (.)"),
        (
            ["init", "protein", "fasta=my.fasta", "--family", "masked", "--out", "new.yaml"],
            "unknown family of the shipped",
        ),
        (["init", "protein", "fasta=my.fasta"], "config.yaml: the file exists"),
        (["check", "protein"], "no config file is named"),
        (["check", "config.yaml", "--cores", "2"], "unknown option (--cores)"),
        (["export", "seed0", "new.yaml", "--forr", "vllm"], "unknown option (--forr)"),
        (["check", "config.yaml", "--config", "data_rot=x"], "did you mean `data_root`?"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_written(config, tmp_path, given, says, capsys):
    before = (tmp_path / config).read_bytes()
    assert command_line.main(given) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and says in lines[0]
    assert (tmp_path / config).read_bytes() == before and not (tmp_path / "new.yaml").exists()


def test_snakemake_gets_the_configs_the_targets_and_every_other_option(config, called):
    command_line.main(["run", config, "tables", "--config", "data_root=x", "--cores", "2"])
    shared = ["--snakefile", f"{PROJECT}/workflow/Snakefile", "--workflow-profile", f"{PROJECT}/profiles/default"]
    start = [sys.executable, "-m", "snakemake"]
    assert called == [[*start, "tables", *shared, "--configfile", config, "--config", "data_root=x", "--cores", "2"]]


def test_the_report_lies_among_the_results(config, called):
    command_line.main(["report", config, "--config", "pathvars={results: out/mine}"])
    assert called[0][:4] == [sys.executable, "-m", "snakemake", "out/mine/report"]


def test_a_plan_says_how_long_it_takes_and_starts_nothing(config, called, capsys):
    command_line.main(["plan", config])
    assert "This study takes about" in capsys.readouterr().out
    assert called[0][-3:] == ["--dry-run", "--quiet", "rules"]


@pytest.fixture
def proteins(tmp_path):
    """Train and test files that share one protein but for its first letter, and have one each of their own."""
    random = Random(0)
    shared, own, other = ("".join(random.choices("ACDEFGHIKLMNPQRSTVWY", k=120)) for _ in range(3))
    (tmp_path / "train.fasta").write_text(f">a\n{shared}\n>b\n{own}\n")
    (tmp_path / "test.fasta").write_text(f">c\nW{shared[1:]}\n>d\n{other}\n")
    return ["--train", f"fasta={tmp_path}/train.fasta", "--test", f"fasta={tmp_path}/test.fasta"]


def test_files_that_others_split_are_audited(proteins, capsys):
    assert command_line.main(["audit", "protein", *proteins]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["train a resembles test c", "1 train records resemble test records"]
    assert "1 test records share with train: 95% identity over 50 residues" in lines


def test_an_audit_of_what_does_not_exist_is_one_line(proteins, capsys):
    assert command_line.main(["audit", "protein", *proteins[:2], "--test", "fasta=absent.fasta"]) == 1
    assert command_line.main(["audit", "protein", *proteins, "--dataset", "identty=0.5"]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert "absent.fasta" in first and "did you mean `identity`?" in second


def test_a_plan_names_what_is_missing_and_forecasts_nothing(called, tmp_path, capsys):
    (tmp_path / "my.fasta").write_text(">a\nMKTAYIAK\n")
    assert command_line.main(["init", "protein", "fasta=my.fasta"]) == 0
    (tmp_path / "my.fasta").unlink()
    capsys.readouterr()
    assert command_line.main(["plan", "config.yaml"]) == 1
    said = capsys.readouterr()
    assert said.out == "" and "do not exist: my.fasta" in said.err and called == []


def test_a_plan_fits_into_a_hundred_columns(config, capsys):
    capsys.readouterr()
    assert command_line.main(["plan", config]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 100
