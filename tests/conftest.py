import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers that each took every core would wait for one another
if not Path("/proc/driver/nvidia").exists():
    os.environ["TRITON_INTERPRET"] = "1"  # kernels are tested without a GPU; read when Triton is imported

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"
WEIGHTS = Path(os.environ.get("LORATORY_WEIGHTS", ROOT.parent / "weights"))  # folders such as whisper_tiny_en


@pytest.fixture(scope="session")
def warm_python(tmp_path_factory) -> Iterator[Path]:
    """A `python` whose processes have imported torch and the like already; not for tests of what is imported, nor for
    runs that are killed."""
    folder, here = tmp_path_factory.mktemp("warm"), os.environ | {"OMP_NUM_THREADS": "1"}
    asked = [sys.executable, Path(__file__).with_name("warm_python.py"), folder]
    with subprocess.Popen(asked, env=here, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout.readline() == "ready\n"
        yield folder / "python"
        server.stdin.close()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real public samples; tests that need them are skipped where they are absent."""
    if not SHARED.is_dir():
        pytest.skip(f"no real samples at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def real_weights() -> Callable[[str], Path]:
    """The folder of a published model by name; a test that asks for one is skipped where it is absent."""

    def folder(name: str) -> Path:
        if not (WEIGHTS / name / "config.json").is_file():
            pytest.skip(f"no real weights at {WEIGHTS / name}; LORATORY_WEIGHTS may name another folder")
        return WEIGHTS / name

    return folder
