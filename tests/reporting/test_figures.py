import json
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from metric_files import EXPERTS, routed, write_runs

from loratory.errors import InputError
from loratory.reporting.figures import CHANGE_COLOURS, draw_curves, draw_routing, draw_transfer
from loratory.reporting.tables import write_summary

SCRIPTS = Path(__file__).parents[2] / "scripts"
BANNER = "simulated data"
SVG = "{http://www.w3.org/2000/svg}"


def texts(path) -> list[str]:
    return ["".join(node.itertext()).strip() for node in ElementTree.parse(path).iter(f"{SVG}text")]


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "routing.json"
    made = {
        "experts": ["lora@protein", "lora@speech"],
        "domains": ["protein", "speech"],
        "weights": [[0.875, 0.125], [0.25, 0.75]],
        "entropy": {"protein": 0.54, "speech": 0.81},
        "top1": {"protein": 0.96, "speech": 0.8},
        "learns_labels": True,
    }
    path.write_text(json.dumps(made))
    return path


@pytest.fixture
def runs(tmp_path):
    grids = {0: {1e-4: 2.5, 1e-3: 2.0}, 1: {1e-3: 2.1}}
    return {name: write_runs(tmp_path / f"{name}.parquet", grids) for name in ("lora", "dylora")}


@pytest.fixture
def summary_file(tmp_path, reports):
    write_summary(reports, tmp_path / "summary", mixture="mix", experts=EXPERTS, **routed(tmp_path))
    return tmp_path / "summary.tsv"


def test_figures_are_byte_equal_and_carry_no_date(tmp_path, weights, runs, summary_file):
    for name in ("a", "b"):
        draw_routing(weights, tmp_path / f"{name}-routing.svg", BANNER)
        draw_curves(runs, tmp_path / f"{name}-curves.svg", BANNER)
        draw_transfer(summary_file, tmp_path / f"{name}-transfer.svg", BANNER)
    for first in sorted(tmp_path.glob("a-*.svg")):
        assert first.read_bytes() == (tmp_path / first.name.replace("a-", "b-")).read_bytes()
        assert "dc:date" not in first.read_text() and BANNER in texts(first)
    assert len(list(tmp_path.glob("a-*.svg"))) == 3


def test_figures_are_the_same_in_another_process(tmp_path, weights):
    draw_routing(weights, tmp_path / "here.svg")
    there = str(tmp_path / "there.svg")
    code = f"from loratory.reporting.figures import draw_routing; draw_routing({str(weights)!r}, {there!r})"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(SCRIPTS), "PYTHONHASHSEED": "7"})
    assert (tmp_path / "here.svg").read_bytes() == (tmp_path / "there.svg").read_bytes()


def test_routing_shows_weights_entropy_and_routing_accuracy(tmp_path, weights):
    draw_routing(weights, tmp_path / "r.svg")
    found = texts(tmp_path / "r.svg")
    assert [t for t in found if re.fullmatch(r"0\.\d\d", t)][:4] == ["0.88", "0.12", "0.25", "0.75"]
    joined = " ".join(found)
    assert "entropy 0.54, top-1 96%" in joined and "entropy 0.81, top-1 80%" in joined
    assert {"expert", "domain of the input", "mean gate weight (share)"} <= set(found)
    weights.write_text(json.dumps(json.loads(weights.read_text()) | {"learns_labels": False}))
    draw_routing(weights, tmp_path / "r.svg")
    joined = " ".join(texts(tmp_path / "r.svg"))
    assert "entropy 0.54" in joined and "top-1" not in joined, "of a gate without labels it says nothing"


def test_transfer_shows_every_adapter_on_every_domain_once(tmp_path, summary_file):
    draw_transfer(summary_file, tmp_path / "t.svg")
    found = texts(tmp_path / "t.svg")
    assert [t for t in found if t.endswith("%")] == ["100%", "−17%", "−50%", "100%"]
    assert {"lora@speech", "lora@protein", "speech", "protein", "recovery (%)"} <= set(found)
    assert not any(t.startswith("best single") for t in found)


def test_transfer_greys_what_has_no_recovery(tmp_path, summary_file):
    lines = summary_file.read_text().splitlines()
    at = lines[0].split("\t").index("recovery")
    blank = [line.split("\t") for line in lines]
    for row in blank[1:]:
        row[at] = ""
    summary_file.write_text("\n".join("\t".join(row) for row in blank) + "\n")
    draw_transfer(summary_file, tmp_path / "t.svg")
    assert texts(tmp_path / "t.svg").count("–") == 4


def test_transfer_colours_do_not_hide_the_sign():
    worse, none, better = (CHANGE_COLOURS(x)[:3] for x in (0.15, 0.5, 0.85))
    assert worse[0] > worse[2] and better[2] > better[0] and min(none) > 0.9


def test_curves_show_every_rate_and_label_their_axes(tmp_path, runs):
    draw_curves(runs, tmp_path / "c.svg")
    found = texts(tmp_path / "c.svg")
    wanted = {"lora", "dylora", "learning rate", "train", "validation"}
    assert wanted | {"optimiser step", "loss (nats per target token)"} <= set(found)
    assert {"0.0001", "0.001"} <= set(found)


def test_a_legend_has_an_entry_for_each_rate_of_the_grid_however_many_rates_the_schedule_passes(tmp_path, runs):
    rates = pq.read_table(runs["lora"])["scheduled_rate"].to_pylist()
    assert len({*rates}) > 30, "warm-up and decay"
    draw_curves(runs, tmp_path / "c.svg")
    numbers = [text for text in texts(tmp_path / "c.svg") if re.fullmatch(r"[\d.]+e-\d+|0\.00+\d+", text)]
    assert sorted(numbers) == ["0.0001", "0.001"]


def test_curves_of_one_adapter_without_validation(tmp_path, runs):
    rows = [row | {"valid_loss": None} for row in pq.read_table(runs["lora"]).to_pylist()]
    schema = pa.schema([*pq.read_schema(runs["lora"])])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), runs["lora"])
    draw_curves({"lora": runs["lora"]}, tmp_path / "c.svg")
    assert "lora" in texts(tmp_path / "c.svg")


def test_nothing_to_draw_is_said_and_leaves_no_file(tmp_path, runs, summary_file):
    pq.write_table(pq.read_table(runs["lora"]).slice(0, 0), runs["lora"])
    with pytest.raises(InputError, match=r"lora\.parquet: no run to draw"):
        draw_curves({"lora": runs["lora"]}, tmp_path / "c.svg")
    summary_file.write_text(summary_file.read_text().splitlines()[0] + "\n")
    with pytest.raises(InputError, match=r"summary\.tsv: no adapter to draw"):
        draw_transfer(summary_file, tmp_path / "t.svg")
    assert not list(tmp_path.glob("*.svg"))


def test_figures_need_no_torch():
    code = "import sys, loratory.reporting.figures; sys.exit(any(m in sys.modules for m in ('torch', 'transformers')))"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(SCRIPTS)})
