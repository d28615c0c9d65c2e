import os
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers that each took every core would wait for one another

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real public samples; tests that need them are skipped where they are absent."""
    if not SHARED.is_dir():
        pytest.skip(f"no real samples at {SHARED}")
    return SHARED
