from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real public samples; tests that need them are skipped where they are absent."""
    if not SHARED.is_dir():
        pytest.skip(f"no real samples at {SHARED}")
    return SHARED
