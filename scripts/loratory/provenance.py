"""Which code a result came from."""

from functools import cache
from hashlib import sha256
from pathlib import Path

LIBRARY = Path(__file__).parent


@cache
def code_digest(*parts: str) -> str:
    """A short digest of the library's modules at `parts` (files or folders, relative to the library).

    Rules carry it as a parameter: Snakemake notices an edited script, but not an edited module that it imports.
    """
    digest = sha256()
    for part in parts:
        path = LIBRARY / part
        for module in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(module.read_bytes())
    return digest.hexdigest()[:16]
