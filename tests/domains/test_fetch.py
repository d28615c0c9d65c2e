"""What is fetched lies where the account says, and what a pattern matched is written down."""

import hashlib
import io
from pathlib import Path

import pytest

from loratory.data.files import file_sha256, read_json
from loratory.domains import fetch
from loratory.domains.protein.sources import Files, Simulation
from loratory.errors import InputError


def test_downloads_of_one_name_from_two_addresses_are_both_kept(tmp_path, monkeypatch):
    content = {f"https://{host}.org/x.fa": f">{host}\nMKV\n".encode() for host in "ab"}
    monkeypatch.setattr(fetch, "urlopen", lambda address: io.BytesIO(content[address]))
    digests = {address: hashlib.sha256(each).hexdigest() for address, each in content.items()}
    fetch.fetch_source("protein", Files(fasta=[*content], sha256=digests), "domain", 0, tmp_path / "raw")
    found = fetch.open_source("protein", tmp_path / "raw").fasta
    assert [Path(path).read_bytes() for path in found] == [*content.values()]


@pytest.mark.parametrize("pattern", ["*.fa", "**/*.fa"])
def test_the_files_of_a_pattern_are_noted_as_they_were_found(tmp_path, pattern):
    for name in ("b.fa", "a.fa"):
        (tmp_path / name).write_text(">a\nMKV\n")
    fetch.fetch_source("protein", Files(fasta=f"{tmp_path}/{pattern}"), "domain", 0, tmp_path / "raw")
    (tmp_path / "later.fa").touch()
    assert fetch.open_source("protein", tmp_path / "raw").fasta == [f"{tmp_path}/a.fa", f"{tmp_path}/b.fa"]


def test_a_manifest_holds_the_digests_of_what_was_made_whatever_lay_there_before(tmp_path):
    source, manifests = Simulation(n=3, families=3), []
    for before in (None, b">old\nMKV\n"):
        if before:
            for path in (tmp_path / "raw").glob("*.fa*"):
                path.write_bytes(before)
        fetch.fetch_source("protein", source, "domain", 0, tmp_path / "raw")
        manifests.append(read_json(tmp_path / "raw" / fetch.MANIFEST))
    assert manifests[0] == manifests[1]
    [path] = fetch.open_source("protein", tmp_path / "raw").fasta
    assert manifests[0]["sha256"] == {path: file_sha256(path)}


def test_a_fetched_file_that_is_gone_names_the_folder_to_remove(tmp_path):
    fetch.fetch_source("protein", Simulation(n=3, families=3), "domain", 0, tmp_path / "raw")
    [path] = fetch.open_source("protein", tmp_path / "raw").fasta
    Path(path).unlink()
    with pytest.raises(InputError, match=f"{path}: it is gone .* remove {tmp_path}/raw, then the same command"):
        fetch.open_source("protein", tmp_path / "raw")
