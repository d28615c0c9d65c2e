"""Bad raw files, given to the jobs of the workflow: one line that says what is wrong, and nothing half made."""

import gzip
from pathlib import Path

import pytest
from studies import ABSENT, changed, run_script, shipped, snakemake
from test_dag import Plan


def proteins(folder: Path, data: bytes) -> dict:
    (folder / "raw.fasta").write_bytes(data)
    return {"kind": "files", "fasta": "raw.fasta"}


def empty(folder):
    return proteins(folder, b"")


def truncated(folder):
    return proteins(folder, gzip.compress(b">a\n" + b"MKVLA" * 4000 + b"\n", mtime=0)[:60])


def nucleotides(folder):
    bad = b"".join(b">bad%d\n" % number + b"ACGT" * (30 + number) + b"\n" for number in range(5))
    return proteins(folder, b">good\n" + b"MKVLAW" * 10 + b"\n" + bad)


def silent(folder):
    rows = {"wav.scp": "a1 a1.flac", "text": "a1 hello", "utt2spk": "a1 a"}
    for name, row in rows.items():
        (folder / name).write_text(row + "\n")
    return {"kind": "files", "folders": ["."]}


def rated_by_words(folder):
    (folder / "movies.csv").write_text("movieId,title,genres\n7,Heat (1995),Crime\n")
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,7,4.0,100\n1,7,great,200\n")
    return {"kind": "files", "ratings": "ratings.csv", "items": "movies.csv"}


BAD = {  # the line told: (domain, what makes the files)
    "raw.fasta: the file is empty": ("protein", empty),
    "raw.fasta: the compressed file ends early or is damaged": ("protein", truncated),
    "raw.fasta:2: 5 of 6 records of the file look like nucleotides, the first of them (ACGT": ("protein", nucleotides),
    "a1.flac:a1: no such audio file": ("speech", silent),
    "ratings.csv:3: ": ("recsys", rated_by_words),
}


def spoilt_study(told: str, folder: Path) -> tuple[str, dict]:
    """A domain, and the config in which it reads a bad file."""
    domain, make = BAD[told]
    return domain, changed(shipped("test"), {"pathvars": ABSENT, f"domains.{domain}.source": make(folder)})


@pytest.mark.parametrize("told", BAD, ids=lambda told: BAD[told][1].__name__)
def test_a_bad_file_is_told_in_one_line_and_leaves_nothing_behind(told, tmp_path):
    domain, config = spoilt_study(told, tmp_path)
    jobs = Plan(config, tmp_path, targets=[f"results/data/{domain}/card.json"]).jobs
    with pytest.raises(SystemExit):
        for job in jobs:
            run_script(job, tmp_path)
    log = (tmp_path / f"results/logs/build_dataset/data/{domain}.log").read_text()
    assert log.startswith(f"error: {told}") and log.count("\n") == 1
    assert not [*(tmp_path / f"results/data/{domain}").iterdir()]
    assert not [*tmp_path.rglob("*.part")]


def test_snakemake_shows_that_line_and_ends_a_second_attempt_at_once(tmp_path):
    told = next(told for told in BAD if told.startswith("raw.fasta:2"))
    domain, config = spoilt_study(told, tmp_path)
    done = snakemake(tmp_path, config, "--cores", "1", f"results/data/{domain}/card.json")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    (failed,) = (number for number, line in enumerate(lines) if line.startswith("failed: "))
    assert lines[failed].startswith(f"failed: build dataset: data, {domain}, after ")
    assert lines[failed + 1].startswith(f"  {told}")
    assert lines[failed + 2] == f"  log: results/logs/build_dataset/data/{domain}.log"
    assert "Traceback" not in done.stdout and "Exception" not in done.stdout
    said = (log.read_text() for log in tmp_path.glob(".snakemake/log/*"))
    assert "attempt=2" in "".join(said), "it ends at once, see tests/test_job.py"
    assert [line.split(", ")[0] for line in lines if " of 4  " in line] == [
        f"{number} of 4  {job}"
        for number, job in enumerate(("fetch source: data", "fetch source: general", "build dataset: general"), 1)
    ]
    assert all(line.isprintable() for line in lines), "a file takes no control characters"
    assert not (tmp_path / f"results/data/{domain}").exists()
    assert not [*tmp_path.rglob("*.part")]
