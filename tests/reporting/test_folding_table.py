import subprocess
import sys

import pytest
from test_figures import BANNER, SCRIPTS, texts

from loratory.data.files import write_json
from loratory.reporting.figures import draw_calibration
from loratory.reporting.folding import write_folding_table

METRICS = {"spearman": ("rank correlation", "up"), "rmsd": ("Å", "down")}


def row(part, metric, value, chains=3) -> dict:
    unit, direction = METRICS[metric]
    known = {"value": value, "low": value and value - 0.1, "high": value and value + 0.1, "status": "ok"}
    sizes = {"part": part, "chains": chains, "groups": chains, "residues": 100 * chains}
    return (
        sizes
        | {"metric": metric, "unit": unit, "direction": direction, "primary": False, "note": f"{metric}!"}
        | known
    )


@pytest.fixture
def metrics(tmp_path):
    def written(**more):
        rows = [row(part, metric, 0.5) for part in ("all", "simulated") for metric in METRICS]
        rows[3] |= {"value": None, "low": None, "high": None, "status": "undefined"}
        bins = [
            {"low": low, "high": low + 10, "residues": n, "plddt": low + 4.0, "lddt": lddt}
            for low, n, lddt in ((30, 20, 41.0), (60, 70, 55.5), (90, 10, 93.0))
        ]
        report = {"domain": "structure", "base": "mini", "rows": rows, "bins": bins, "left_out": 4, "resamples": 200}
        write_json(tmp_path / "m.json", report | more)
        return tmp_path / "m.json"

    return written


def test_each_part_is_a_line_with_its_sizes_and_intervals(metrics, tmp_path):
    write_folding_table(metrics(), tmp_path / "t", about="a small one", banner=BANNER)
    text = (tmp_path / "t.md").read_text()
    assert "| test chains | chains | residues | spearman (rank correlation) ↑ |" in text
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    assert cells[2] == ["all", "3", "300", "0.500 [0.400, 0.600]", "0.50 [0.40, 0.60]"]
    assert cells[3] == ["simulated", "3", "300", "0.500 [0.400, 0.600]", "undefined"]
    assert BANNER in text and "Base: a small one" in text and "- rmsd: rmsd!" in text
    assert "Left out, because they resemble a chain that the base learnt from: 4." in text
    lines = (tmp_path / "t.tsv").read_text().splitlines()
    assert len(lines) == 5 and {"base", "part", "value"} < set(lines[0].split("\t"))


def test_a_part_below_the_floor_says_so_in_its_cells_and_below(metrics, tmp_path):
    few = {"value": None, "low": None, "high": None, "status": "n < 10: too few records"}
    rows = [row("all", metric, 0.5, 12) for metric in METRICS]
    write_folding_table(
        metrics(rows=rows + [row("simulated", metric, None) | few for metric in METRICS]), tmp_path / "t"
    )
    text = (tmp_path / "t.md").read_text()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    assert cells[2][3:] == ["0.500 [0.400, 0.600]", "0.50 [0.40, 0.60]"] and cells[3][3:] == ["n \\< 10"] * 2
    assert text.count("- simulated: n \\< 10: too few records.") == 1


def test_what_is_not_known_of_the_training_is_said(metrics, tmp_path):
    write_folding_table(metrics(left_out=None), tmp_path / "t")
    assert "What the base learnt from is not known here" in (tmp_path / "t.html").read_text()


def test_what_was_left_out_and_what_is_unknown_is_said(metrics, tmp_path):
    rows = [row(part, "rmsd", 0.5) for part in ("all", "unknown")]
    write_folding_table(metrics(rows=rows, predicted=3, too_long=2, max_length=400, too_large=1), tmp_path / "t")
    text = (tmp_path / "t.md").read_text()
    assert "Left out, because they are predictions themselves: 3." in text
    assert "Left out, because they are longer than 400 residues: 2." in text
    assert "Left out, because memory did not suffice, however small the chunks: 1." in text
    assert "unknown: the files do not say whether these chains are measured or predicted" in text
    write_folding_table(metrics(predicted=0, too_long=0, max_length=None), tmp_path / "t")
    assert "predictions themselves" not in (tmp_path / "t.md").read_text()


def test_calibration_shows_every_bin_with_its_count(metrics, tmp_path):
    for name in ("a", "b"):
        draw_calibration(metrics(), tmp_path / f"{name}.svg", BANNER)
    found = texts(tmp_path / "a.svg")
    assert {"20", "70", "10", "mean true lDDT-Cα (0–100)", "residues", BANNER} <= set(found)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_table_and_figure_need_no_torch():
    code = "import sys, loratory.reporting.folding, loratory.reporting.figures; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(SCRIPTS)})
