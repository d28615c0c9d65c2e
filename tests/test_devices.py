"""Jobs side by side lease unequal GPUs, and a job without one says so."""

import os
from contextlib import contextmanager

import pytest

from loratory import devices
from loratory.errors import InputError


@pytest.fixture
def host(monkeypatch, tmp_path):
    """A host of two GPUs whose locks lie in the test's folder."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.delenv(devices.VISIBLE, raising=False)
    return monkeypatch


@contextmanager
def lease_in_another_job(wanted):
    """As a process does that was started without any of this one's leases."""
    own = os.environ.pop(devices.VISIBLE, None)
    try:
        with devices.lease_devices(wanted):
            yield
    finally:
        if own is not None:
            os.environ[devices.VISIBLE] = own


def test_jobs_side_by_side_see_unequal_gpus_until_they_end(host):
    with devices.lease_devices(1):
        assert os.environ[devices.VISIBLE] == "0"
        with lease_in_another_job(1):
            assert os.environ[devices.VISIBLE] == "1"
    assert devices.VISIBLE not in os.environ
    with devices.lease_devices(2):
        assert os.environ[devices.VISIBLE] == "0,1"


def test_a_job_waits_for_gpus_that_others_have_leased(host, capsys):
    class Waited(Exception):
        pass

    def wait(seconds):
        raise Waited

    host.setattr(devices, "sleep", wait)
    with devices.lease_devices(1):
        with pytest.raises(Waited), lease_in_another_job(2):
            pass
        assert "waits for 2 of 2 GPUs" in capsys.readouterr().out
        with lease_in_another_job(1):  # what it had locked is free again
            assert os.environ[devices.VISIBLE] == "1"


def test_gpus_that_a_scheduler_chose_are_taken_as_they_are(host):
    host.setattr("torch.cuda.device_count", lambda: 1)
    host.setenv(devices.VISIBLE, "GPU-3f")
    for _ in range(2):
        with devices.lease_devices(1), devices.lease_devices(1):
            assert os.environ[devices.VISIBLE] == "GPU-3f"


def test_a_job_whose_gpu_is_missing_says_so_in_one_line(host):
    line = r"asks for GPUs that are not there \(2 found\).*expected 3"
    with pytest.raises(InputError, match=line) as caught, devices.lease_devices(3):
        pass
    assert caught.value.reason == "device" and "\n" not in str(caught.value)
