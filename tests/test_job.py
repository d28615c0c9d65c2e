"""Whatever ends a job, people read one line; what another attempt would meet again, it does not try."""

import errno
import logging
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from loratory.data.files import LISTING, atomic_write, check_writable, lost_files, note_files, write_json
from loratory.errors import InputError
from loratory.job import log_job, storage_problem

BAD = InputError("raw.fasta:3", "not a residue", "J", "a letter", "take it out", "residue")
LINE = "error: raw.fasta:3: not a residue (J); expected a letter; fix: take it out\n"
FULL = "No space left on device"


def script(folder, attempt=1):
    return SimpleNamespace(
        input=[], output=[], log=[str(folder / "job.log")], resources={"attempt": attempt}, params={}
    )


def ended(folder, body, attempt=1) -> str:
    """The log of a job that failed."""
    with pytest.raises(SystemExit) as end, log_job(script(folder, attempt)):
        body()
    assert end.value.code == 1
    return (folder / "job.log").read_text()


def fail(error):
    def body():
        raise error

    return body


def test_bad_input_is_one_line(tmp_path):
    assert ended(tmp_path, fail(BAD)) == LINE


def test_no_log_holds_a_password_or_a_token(tmp_path):
    address, token = "https://user:hunter2@host.org/x?token=hunter2", "hf_" + "hunter2" * 5

    def body():
        print(address, token)
        print(address, file=sys.stderr)
        logging.getLogger("library").addHandler(logging.StreamHandler())
        logging.getLogger("library").warning("no answer from %s", address)
        raise RuntimeError(address)

    log = ended(tmp_path, body)
    assert "hunter2" not in log and log.count("https://…@host.org/x?…") == 4 and "RuntimeError: https://…@" in log


def test_bad_input_is_not_tried_again_and_the_second_attempt_says_the_same(tmp_path):
    ended(tmp_path, fail(BAD))
    assert ended(tmp_path, lambda: pytest.fail("tried again"), attempt=2) == LINE
    assert ended(tmp_path, lambda: pytest.fail("tried again"), attempt=3) == LINE


def test_the_first_attempt_of_the_next_run_tries_it(tmp_path):
    ended(tmp_path, fail(BAD))
    with log_job(script(tmp_path)):
        print("mended")
    assert (tmp_path / "job.log").read_text() == "mended\n"
    with log_job(script(tmp_path, attempt=2)):
        print("killed by its node, and started again")


@pytest.mark.parametrize(
    "error", [InputError("hub", "out of reach", reason="network"), MemoryError(), RuntimeError("CUDA out of memory")]
)
def test_what_may_pass_is_tried_again(error, tmp_path):
    ended(tmp_path, fail(error))
    with log_job(script(tmp_path, attempt=2)):
        print("it passed")


@pytest.mark.parametrize("allocate", [lambda: np.ones(2**60, np.uint8), lambda: torch.empty(2**60, dtype=torch.uint8)])
def test_memory_that_is_not_there_is_one_line(allocate, tmp_path):
    log = ended(tmp_path, allocate)
    assert log.startswith("error: there is not enough memory (") and log.count("\n") == 1


def test_ctrl_c_is_one_line_of_the_log_and_is_tried_again(tmp_path):
    with pytest.raises(SystemExit) as end, log_job(script(tmp_path)):
        raise KeyboardInterrupt
    assert end.value.code == 130 and (tmp_path / "job.log").read_text() == "stopped by Ctrl-C\n"
    with log_job(script(tmp_path, attempt=2)):
        print("it goes on")


def test_a_fault_of_ours_shows_its_traceback(tmp_path):
    assert "Traceback" in ended(tmp_path, fail(KeyError("x")))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO])
def test_a_disk_that_fails_is_one_line_with_what_helps(code, tmp_path):
    log = ended(tmp_path, fail(OSError(code, os.strerror(code), "results/x.parquet")))
    assert log.startswith(f"error: results/x.parquet: {os.strerror(code)}; fix: ") and log.count("\n") == 1
    with log_job(script(tmp_path, attempt=2)):
        print("there may be space by now")


WRITERS = {
    "json": lambda path: write_json(path, {"x": "y" * 100_000}),
    "text": lambda path: path.write_text("y" * 100_000),
    "parquet": lambda path: pq.write_table(pa.table({"x": [float(i) for i in range(100_000)]}), path),
    "safetensors": lambda path: save_file({"x": torch.rand(100_000)}, path),
}


@contextmanager
def small_files():
    """No file may grow above 10 kB, as if the disk were full; pytest writes files too, so only while a job runs."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("kind", WRITERS)
def test_whichever_library_writes_a_full_disk_is_one_line_and_nothing_is_half_written(kind, tmp_path):
    def body():
        with small_files(), atomic_write(tmp_path / "out") as aside:
            WRITERS[kind](aside)

    log = ended(tmp_path, body)
    assert "File too large; fix: " in log and log.count("\n") == 1, log
    assert [path.name for path in tmp_path.iterdir()] == ["job.log"]


def test_a_full_disk_in_the_words_of_libraries_is_known():
    for said in (f"Error while serializing: I/O error: {FULL} (os error 28)", f"[Errno 28] Error. Detail: {FULL}"):
        assert storage_problem(RuntimeError(said)).startswith(f"the results: {FULL}; fix: free some space")
    assert storage_problem(RuntimeError("something else")) == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_log_that_cannot_be_written_is_one_line_in_the_terminal(tmp_path, capsys):
    (tmp_path / "job.log").symlink_to("/dev/full")
    with pytest.raises(SystemExit), log_job(script(tmp_path)):
        print("a line")
    assert capsys.readouterr().err.startswith(f"error: the results: {FULL}; fix: ")


def test_a_folder_for_a_log_that_is_gone_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit), log_job(script(tmp_path / "gone")):
        print("a line")
    assert capsys.readouterr().err.count("\n") == 1


def test_a_place_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    check_writable(tmp_path / "not" / "there" / "yet")
    (tmp_path / "file").write_text("")
    if Path("/proc/self").exists():  # says that root may write there
        with pytest.raises(
            InputError, match="/proc: nothing can be written here; expected a writable folder for /proc/x"
        ):
            check_writable("/proc/x/y")
    with pytest.raises(InputError, match="file: nothing can be written here; expected a writable"):
        check_writable(tmp_path / "file" / "results")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # as on a disk that is mounted to be read
    with pytest.raises(InputError, match="nothing can be written here"):
        check_writable(tmp_path / "results")


def test_a_folder_that_lost_a_file_ends_the_job_that_reads_it(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights").write_text("1")
    made = script(tmp_path)
    made.output = [str(model)]
    with log_job(made):
        pass
    assert not lost_files(model)
    (model / "weights").unlink()
    reader = script(tmp_path)
    reader.input = [str(model)]
    with pytest.raises(SystemExit), log_job(reader):
        pytest.fail("it began")
    assert "a file of this folder is gone (weights)" in (tmp_path / "job.log").read_text()


def test_a_folder_whose_note_a_crash_has_cut_is_taken_as_lost(tmp_path):
    (tmp_path / "weights").write_text("1")
    note_files(tmp_path)
    note = tmp_path / LISTING
    whole = note.read_bytes()
    for left in (b"", whole[:-3], b"\xff"):
        note.write_bytes(left)
        assert lost_files(tmp_path) == [LISTING]
