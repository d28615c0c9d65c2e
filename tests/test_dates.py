"""Files from the future are noticed; clocks of several machines may differ a little."""

import os
import time

import pytest

from loratory.dates import mend_dates, require_past_dates
from loratory.errors import InputError


def test_files_from_the_future_are_counted_and_the_first_is_named(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "gone").symlink_to("nowhere")
    for name, date in {"now": time.time(), "raw/skewed": time.time() + 60}.items():
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (date, date))
    require_past_dates(tmp_path)
    require_past_dates(tmp_path / "absent")
    for name in ("raw/b", "raw/a"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (2**33, 2**33))
    with pytest.raises(InputError, match=r"raw/a: dated in the future, as 1 other files: .*; fix: .* with --touch"):
        require_past_dates(tmp_path)
    mend_dates(tmp_path)
    require_past_dates(tmp_path)
    assert abs((tmp_path / "raw" / "a").stat().st_mtime - time.time()) < 60
    assert (tmp_path / "raw" / "skewed").stat().st_mtime > time.time()  # as it was


def test_what_lies_in_the_folders_of_an_output_is_not_walked_through(tmp_path):
    folder = tmp_path / "structures"
    (folder / "seed0").mkdir(parents=True)
    for path in (folder / ".snakemake_timestamp", folder / "seed0" / "a.pdb"):
        path.touch()
    os.utime(folder / "seed0" / "a.pdb", (2**33, 2**33))
    require_past_dates(tmp_path)
    os.utime(folder / ".snakemake_timestamp", (2**33, 2**33))  # by which Snakemake dates the folder
    with pytest.raises(InputError, match=r"structures/\.snakemake_timestamp: dated in the future"):
        require_past_dates(tmp_path)
