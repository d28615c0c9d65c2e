"""The lines by which `make test` says how much of the library ran."""

from print_coverage import coverage_lines


def covered_file(covered: int, missing: int) -> dict:
    share = 100 * covered / (covered + missing)
    return {"summary": {"covered_lines": covered, "missing_lines": missing, "percent_covered": share}}


def test_the_total_and_the_modules_below_the_floor_are_printed_worst_first():
    files = {"scripts/loratory/a.py": covered_file(3, 1), "scripts/loratory/b/c.py": covered_file(0, 2)}
    files["scripts/loratory/d.py"] = covered_file(4, 1)
    lines = coverage_lines({"files": files} | covered_file(7, 4))
    assert lines[0].startswith("coverage: 63.6 % of 11 lines of scripts/loratory/ (")
    assert lines[1:] == ["below 80 %: 2 of 3 modules", "   0.0 %  b/c.py", "  75.0 %  a.py"]
