"""Prints how much of the library the tests ran, from the report that slipcover wrote; `make test` calls it.

    python tests/print_coverage.py report.json

Only what ran in the tests' own processes is counted, not what jobs of Snakemake and other subprocesses ran.
"""

import json
import sys
from pathlib import Path

LIBRARY = "scripts/loratory/"
ENOUGH = 80.0  # per cent of a module's lines; modules below it are listed


def coverage_lines(report: dict) -> list[str]:
    """The share of all lines, then the modules with too small a share, the smallest first."""
    total, files = report["summary"], report["files"]
    lines = total["covered_lines"] + total["missing_lines"]
    shares = sorted((file["summary"]["percent_covered"], name) for name, file in files.items())
    few = [f"{share:6.1f} %  {name.partition(LIBRARY)[2]}" for share, name in shares if share < ENOUGH]
    covered = f"coverage: {total['percent_covered']:.1f} % of {lines} lines of {LIBRARY}"
    return [
        f"{covered} (what subprocesses ran is not counted)",
        f"below {ENOUGH:.0f} %: {len(few)} of {len(files)} modules",
        *few,
    ]


if __name__ == "__main__":
    print("\n".join(coverage_lines(json.loads(Path(sys.argv[1]).read_text()))))
