"""How much of a score is leakage: one adapter under several ways to split the same data."""

import json

import pytest
from metric_files import metric_row

from loratory.reporting.splits import write_splits_table

SYSTEMS = {"base": 0.5, "length_only": 0.6}
SCORES = {"protein-random": (0.9, 20, "random"), "protein": (0.7, 0, "searched")}


@pytest.fixture
def entries(tmp_path):
    found = {}
    for entry, (score, similar, protocol) in SCORES.items():
        rows = [metric_row(system, value) for system, value in (SYSTEMS | {f"lora@{entry}": score}).items()]
        control = {"system": "length_only", "split": "valid"}
        shared = {"other splits": {"80% of both": {"records": similar, "sensitivity": 1.0}}}
        files = {
            "metrics": {"domain": entry, "base": "mini_lm", "control": control, "rows": rows},
            "audit": {"test": 40, "shared": shared},
            "card": {"options": {"protocol": protocol, "covered": "both"}},
        }
        found[entry] = {name: tmp_path / f"{entry}.{name}.json" for name in files}
        for name, content in files.items():
            found[entry][name].write_text(json.dumps(content))
    return found


def test_each_line_has_what_its_test_shares_and_what_it_scores_above_the_strictest(entries, tmp_path):
    write_splits_table(entries, "lora", tmp_path / "table", about="a small model")
    text = (tmp_path / "table.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line[:2] == "| "]
    random, strict = rows[2:]
    assert random[:4] == ["protein-random", "random, both", "40", "50.0"] and random[-1] == "0.200"
    assert strict[:4] == ["protein", "searched, both", "40", "0.0"] and strict[-1] == "0.000"
    assert [cell.partition(" ▲")[0] for cell in random[5:7]] == ["0.600 [0.550, 0.650]", "0.900 [0.850, 0.950]"]
    assert "a small model" in text


def test_the_plain_table_has_all_digits(entries, tmp_path):
    write_splits_table(entries, "lora", tmp_path / "table")
    header, *rows = [line.split("\t") for line in (tmp_path / "table.tsv").read_text().splitlines()]
    found = [dict(zip(header, row)) for row in rows]
    assert [(row["entry"], row["value"], row["shared"]) for row in found] == [
        ("protein-random", "0.9", "80% of both: 20"),
        ("protein", "0.7", "80% of both: 0"),
    ]


def test_what_was_not_looked_for_in_an_entry_is_no_share_of_none(entries, tmp_path):
    audit = json.loads(entries["protein"]["audit"].read_text())
    audit["shared"]["other splits"] = {"a gene": {"records": 4, "sensitivity": None}}
    entries["protein"]["audit"].write_text(json.dumps(audit))
    write_splits_table(entries, "lora", tmp_path / "table")
    cells = [line.split("|")[4:6] for line in (tmp_path / "table.md").read_text().splitlines() if line[:2] == "| "][2:]
    assert [[cell.strip() for cell in row] for row in cells] == [["50.0", "–"], ["–", "10.0"]]
