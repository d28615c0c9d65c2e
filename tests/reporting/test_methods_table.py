import csv
import json
import subprocess
import sys

import pytest
from metric_files import metric_row, write_runs
from test_figures import BANNER, SCRIPTS, texts

from loratory.errors import InputError
from loratory.reporting.method_figures import draw_pareto, draw_rates, final_losses, pareto_front
from loratory.reporting.methods import write_method_tables
from loratory.reporting.tables import CONTROL

DOMAINS = ("protein", "speech")
METHODS = {"lora": 1000, "zeta": 100, "alpha": 5000}  # in the config's order, with trainable parameters
GAINS = {"lora": 0.2, "zeta": 0.25, "alpha": 0.1}
RATES = [0.001, 0.004, 0.016]


def contrast_row(domain, name) -> dict:
    gain = GAINS.get(name)
    row = metric_row(f"{name}@{domain}", 0.5 + (gain or 0)) | {"adapter": name, "gain": gain}
    row |= {"gain_low": gain and gain - 0.03, "gain_high": gain and gain + 0.03}
    difference = None if name == "lora" else (gain or 0) - GAINS["lora"]
    spread = {"lora": None, "zeta": 0.06, "alpha": 0.04, "base": 0.01}[name]
    low, high = (None, None) if spread is None else (difference - spread, difference + spread)
    row |= {"difference": difference, "difference_low": low, "difference_high": high}
    return row | dict.fromkeys(("vs_svd", "vs_svd_low", "vs_svd_high"))


def run(domain, name, seed, targets=500, data="d" * 64, memory=2e6, flops=3e12) -> dict:
    return {
        **{"domain": domain, "base": "mini-lm", "base_sha256": "b", "seed": seed, "learning_rate": RATES[1]},
        "run_info": {
            "total_time": 2.0 + seed,
            "train_config": {"learning_rates": RATES},
            "peft_config": {"method": name},
        },
        "train_info": {
            **{"targets": targets + seed, "num_trainable_params": METHODS[name], "num_stored_params": 70},
            **{"optimizer_state": 2 * METHODS[name], "accelerator_memory_max": memory, "adapted_modules": 14},
            **{"positions": 900, "other_positions": 100, "flops": flops, "train_time": 1.5},
        },
        "meta_info": {"dataset_info": {"sha256": [data]}},
    }


@pytest.fixture
def files(tmp_path):
    """Contrasts and (adapter, run.json) pairs of three methods, two domains and two seeds."""
    contrasts = []
    for domain in DOMAINS:
        rows = [contrast_row(domain, name) for name in ("alpha", "base", "lora", "zeta")]
        report = {"domain": domain, "base": "mini-lm", "against": "lora", "control": None, "cuts": {}, "rows": rows}
        contrasts.append(tmp_path / f"{domain}.json")
        contrasts[-1].write_text(json.dumps(report | {"seeds": [0, 1], "resamples": 1000, "seed": 0}))
    runs = []
    for name in METHODS:
        for domain in DOMAINS:
            for seed in (0, 1):
                path = tmp_path / f"{domain}-{name}-{seed}.json"
                path.write_text(json.dumps(run(domain, name, seed)))
                runs.append((name, path))
    return contrasts, runs


@pytest.fixture
def made(tmp_path, files):
    write_method_tables(*files, tmp_path / "methods", tmp_path / "costs", about="a small one", banner=BANNER)
    return tmp_path


def beside(row) -> dict:
    """The same system by what learning rates are chosen by."""
    return row | {"metric": "log_loss", "primary": False, "loss": True, "unit": "nats", "direction": "down", "n": 40}


def test_log_loss_stands_beside_the_primary_metric_and_in_no_figure_of_it(tmp_path, files):
    for path in files[0]:
        report = json.loads(path.read_text())
        if report["domain"] == "protein":
            report["rows"] += [beside(row) | {"value": 0.25, "note": "clipped"} for row in report["rows"]]
        path.write_text(json.dumps(report))
    write_method_tables(*files, tmp_path / "methods", tmp_path / "costs")
    header, *rows = cells(tmp_path / "methods.md")
    assert header[3:5] == ["protein: log_loss (nats) ↓", "protein: better than lora by, log_loss (nats) ↓"]
    assert header[5] == "speech: AUC (0–1) ↑" and len(header) == 7
    shown = {row[0]: row for row in rows}
    assert shown["zeta"][3].startswith("0.250 [") and shown["zeta"][4].startswith("+0.050 [")
    foot = (tmp_path / "methods.md").read_text()
    assert "the 9 comparisons" in foot and "- protein: log_loss: clipped\n" in foot
    draw_pareto(tmp_path / "methods.tsv", "lora", tmp_path / "p.svg")
    assert "gain in log_loss (nats)" not in texts(tmp_path / "p.svg")
    with open(tmp_path / "methods.tsv", newline="") as stream:
        assert len([*csv.DictReader(stream, delimiter="\t")]) == 12


def test_where_methods_are_not_judged_by_equally_many_records_each_cell_says_by_how_many(tmp_path, files):
    path = files[0][0]
    report = json.loads(path.read_text())
    report["rows"] = [row | {"n": 12, "n_groups": 6} if row["adapter"] == "zeta" else row for row in report["rows"]]
    path.write_text(json.dumps(report))
    write_method_tables(*files, tmp_path / "methods", tmp_path / "costs")
    shown = {row[0]: row for row in cells(tmp_path / "methods.md")[1:]}
    assert shown["zeta"][1].endswith("(n = 12 in 6 groups)") and shown["lora"][1].endswith("(n = 40 in 20 groups)")
    assert "n =" not in shown["zeta"][3]
    foot = (tmp_path / "methods.md").read_text()
    assert "- protein: each cell says of how many records it is.\n" in foot
    assert "- speech: n = 40 (test) in 20 groups.\n" in foot


@pytest.mark.parametrize(("above", "says"), [(0.1, "is better than trigram by 0.100"), (-0.1, "trigram wins: ")])
def test_the_best_control_stands_under_the_base_and_the_foot_says_who_wins(tmp_path, files, above, says):
    for path in files[0]:
        report = json.loads(path.read_text())
        if report["domain"] == "protein":
            for row, less in zip(report["rows"], (0.2, 0.3, 0.0, 0.1)):  # alpha, base, lora, zeta
                over = above - less
                row |= {"vs_control": over, "vs_control_low": over - 0.01, "vs_control_high": over + 0.01}
            control = contrast_row("protein", "alpha") | {"adapter": "trigram", "system": "trigram", "value": 0.625}
            report |= {"control": {"system": "trigram", "split": "test"}, "rows": [*report["rows"], control]}
        path.write_text(json.dumps(report))
    write_method_tables(*files, tmp_path / "methods", tmp_path / "costs")
    shown = {row[0]: row[1:] for row in cells(tmp_path / "methods.md")[1:]}
    assert [*shown][:2] == ["base", CONTROL]
    assert shown[CONTROL][0].startswith("0.625")
    assert shown[CONTROL][2:] == ["–", "–"]
    assert {name for name, row in shown.items() if "*" in row[0]} == ({"lora"} if above > 0 else set())
    foot = (tmp_path / "methods.md").read_text()
    assert says in foot and "protein: trigram; speech: none." in foot
    assert "chosen on test, which favours it: protein." in foot


def add_cuts(contrasts, names: dict[str, str | None]) -> None:
    """`alpha` at lower ranks, 0.125 worse than its control where it has one."""
    for path in contrasts:
        report = json.loads(path.read_text())
        for name, control in names.items():
            row = contrast_row(report["domain"], "alpha") | {"adapter": name}
            worse = -0.125 if control else None
            row |= {"vs_svd": worse, "vs_svd_low": worse and -0.25, "vs_svd_high": worse and -0.0625}
            report["rows"] += [row, *([row | {"adapter": control, "vs_svd": None}] if control else [])]
        path.write_text(json.dumps(report | {"cuts": {"alpha": names}}))


def test_a_method_at_lower_ranks_stands_under_itself_beside_its_control(tmp_path, files):
    contrasts, runs = files
    names = {f"alpha (rank {rank})": f"lora (SVD to rank {rank})" for rank in (1, 2)}
    add_cuts(contrasts, names)
    write_method_tables(contrasts, [*runs[8:], *runs[:8]], tmp_path / "methods", tmp_path / "costs")  # alpha first
    lines = [row[0] for row in cells(tmp_path / "methods.md")[1:]]
    assert lines == ["base", "alpha", *(part for pair in names.items() for part in pair), "lora", "zeta"]
    foot = (tmp_path / "methods.md").read_text()
    worse = "−0.125 [−0.250, −0.062] ▼"
    line = "alpha (rank 2) is better than lora (SVD to rank 2) by"
    assert f"{line} protein {worse}, speech {worse}." in foot.replace("\\", "")
    with open(tmp_path / "methods.tsv", newline="") as stream:
        found = {row["adapter"]: row for row in csv.DictReader(stream, delimiter="\t")}
    assert found["alpha (rank 1)"]["vs_svd"] == "-0.125" and found["alpha"]["vs_svd"] == ""


def test_a_method_at_lower_ranks_without_a_lora_to_cut_says_so(tmp_path, files):
    add_cuts(files[0], {"alpha (rank 1)": None})
    write_method_tables(*files, tmp_path / "methods", tmp_path / "costs")
    assert [row[0] for row in cells(tmp_path / "methods.md")[1:]] == ["base", *METHODS, "alpha (rank 1)"]
    line = "alpha (rank 1): no plain LoRA of its rank to cut by SVD on protein, speech."
    assert line in (tmp_path / "methods.md").read_text()


def test_tables_without_lower_ranks_say_nothing_of_them(made):
    assert "SVD" not in (made / "methods.md").read_text()


def cells(path) -> list[list[str]]:
    lines = [line for line in path.read_text().splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if not line.startswith("| :")]


def test_lines_keep_the_configs_order_whatever_the_ranks(made):
    header, *rows = cells(made / "methods.md")
    assert [row[0] for row in rows] == ["base", *METHODS]
    assert header == ["method", *(f"{d}: {part}" for d in DOMAINS for part in ("AUC (0–1) ↑", "better than lora by"))]


def test_only_a_difference_beyond_its_interval_is_marked(made):
    shown = {row[0]: row[1:3] for row in cells(made / "methods.md")[1:]}
    assert shown["lora"] == ["0.700 [0.650, 0.750]", "–"]
    assert shown["zeta"] == ["0.750 [0.700, 0.800]", "+0.050 [−0.010, 0.110]"]
    assert shown["alpha"][1] == "−0.100 [−0.140, −0.060] ▼"
    assert shown["base"][1] == "−0.200 [−0.210, −0.190] ▼"


@pytest.mark.parametrize("name", ["methods", "costs"])
def test_nothing_is_bold_and_every_form_is_written(made, name):
    for suffix in ("tsv", "md", "tex", "html"):
        text = (made / f"{name}.{suffix}").read_text()
        assert not [bold for bold in ("<b>", "<strong>", "textbf") if bold in text]
    assert BANNER in (made / f"{name}.html").read_text()
    assert "a small one" in (made / f"{name}.html").read_text()


def test_the_foot_says_what_was_equal_and_how_many_comparisons_there_were(made):
    foot = (made / "methods.md").read_text()
    assert "protein 500, 501; speech 500, 501" in foot
    assert "the 6 comparisons" in foot
    assert "Fewer than 3 seeds" in foot


def test_costs_are_means_over_seeds_with_passes_besides_the_steps(made):
    header, *rows = cells(made / "costs.md")
    assert header[0] == "method @ domain" and [row[0] for row in rows][:2] == ["lora@protein", "lora@speech"]
    assert rows[0][1:] == ["0.004", "1,000", "70", "2,000", "2.0", "2.5", "3", "10"]


def test_a_rate_at_the_edge_of_its_grid_is_told(files, tmp_path):
    for name, path in files[1]:
        if name == "zeta":
            path.write_text(json.dumps(json.loads(path.read_text()) | {"learning_rate": RATES[-1]}))
    write_method_tables(*files, tmp_path / "methods", tmp_path / "costs")
    found = {row[0]: row[1] for row in cells(tmp_path / "costs.md")}
    assert found["zeta@speech"] == "0.016 (edge)" and found["lora@speech"] == "0.004"


@pytest.mark.parametrize(("cost", "column"), [("memory", 5), ("flops", 7)])
def test_a_cost_that_is_not_known_is_left_open(files, tmp_path, cost, column):
    for name, path in files[1]:
        domain = "protein" if "protein" in path.name else "speech"
        path.write_text(json.dumps(run(domain, name, 0, **{cost: None})))
    write_method_tables(*files, tmp_path / "methods", tmp_path / "costs")
    row = cells(tmp_path / "costs.md")[1]
    assert [at for at, text in enumerate(row) if text == "–"] == [column]


@pytest.mark.parametrize(
    ("change", "what"),
    [({"targets": 400}, r"number of target tokens .*\(401\); expected 501"), ({"data": "e"}, "training data")],
)
def test_unequal_budgets_are_refused_by_name(files, tmp_path, change, what):
    name, path = files[1][-1]
    path.write_text(json.dumps(run("speech", name, 1, **change)))
    with pytest.raises(InputError, match=f"{path}: the {what}") as caught:
        write_method_tables(*files, tmp_path / "methods", tmp_path / "costs")
    assert "speech-lora-1.json" in str(caught.value)
    assert not list(tmp_path.glob("methods.*"))


def test_the_tab_separated_file_holds_every_digit_and_the_size(made):
    with open(made / "methods.tsv", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    assert len(rows) == 8
    found = next(row for row in rows if row["adapter"] == "zeta")
    assert float(found["num_trainable_params"]) == 100 and float(found["gain"]) == 0.25


@pytest.fixture
def curves(tmp_path):
    """Runs of three methods on two domains: a grid on seed 1, then its best rate on seed 2."""
    found = {}
    for name in METHODS:
        for domain in DOMAINS:
            grids = {1: {rate: rate * 100 for rate in RATES}, 2: {RATES[0]: 99.0}}
            found[f"{name}@{domain}"] = write_runs(tmp_path / f"{name}@{domain}.parquet", grids)
    return found


def test_rates_are_those_of_the_seed_that_chooses(curves):
    assert final_losses(next(iter(curves.values()))) == [(rate, rate * 100) for rate in RATES]


def test_a_front_leaves_out_what_is_surpassed():
    points = {"small": (10, 0.1), "worse": (20, 0.05), "large": (30, 0.4), "equal": (40, 0.4), "twin": (10, 0.0)}
    assert pareto_front(points) == ["small", "large"]


def test_figures_have_a_panel_for_each_domain_and_are_byte_equal(made, curves):
    for name in ("a", "b"):
        draw_rates(curves, "lora", made / f"{name}-rates.svg", BANNER)
        draw_pareto(made / "methods.tsv", "lora", made / f"{name}-pareto.svg", BANNER)
    for figure in ("rates", "pareto"):
        assert (made / f"a-{figure}.svg").read_bytes() == (made / f"b-{figure}.svg").read_bytes()
        assert {BANNER, *DOMAINS} <= set(texts(made / f"a-{figure}.svg"))
    assert set(METHODS) <= set(texts(made / "a-rates.svg"))
    named = set(texts(made / "a-pareto.svg"))
    assert {"zeta", "lora", "gain in AUC (0–1)", "trainable parameters"} <= named
    assert "alpha" not in named  # surpassed with fewer parameters, and not the reference


def test_a_base_without_a_score_has_no_pareto_figure(made):
    lines = (made / "methods.tsv").read_text().splitlines()
    at = lines[0].split("\t").index("gain")
    rows = [line.split("\t") for line in lines]
    for row in rows[1:]:
        row[at] = ""
    (made / "methods.tsv").write_text("\n".join("\t".join(row) for row in rows) + "\n")
    with pytest.raises(InputError, match="no gain over the base to draw"):
        draw_pareto(made / "methods.tsv", "lora", made / "p.svg")


@pytest.mark.parametrize("scarce", [DOMAINS[:1], DOMAINS])
def test_below_the_floor_cells_foot_and_figure_say_so_and_hold_no_number(files, tmp_path, scarce):
    for path in files[0]:
        report = json.loads(path.read_text())
        if report["domain"] in scarce:
            numbers = [key for key in report["rows"][0] if key.startswith(("value", "low", "high", "gain", "differ"))]
            few = dict.fromkeys(numbers) | {"n": 4, "status": "n < 10: too few records"}
            report["rows"] = [row | few for row in report["rows"]]
        path.write_text(json.dumps(report))
    write_method_tables(*files, tmp_path / "methods", tmp_path / "costs")
    assert {(row[1], row[2]) for row in cells(tmp_path / "methods.md")[1:]} == {("n \\< 10", "–")}
    assert ("speech" in scarce) == ("n \\< 10" in {row[3] for row in cells(tmp_path / "methods.md")[1:]})
    assert "- protein: AUC: n \\< 10: too few records.\n" in (tmp_path / "methods.md").read_text()
    draw_pareto(tmp_path / "methods.tsv", "lora", tmp_path / "p.svg")
    shown = texts(tmp_path / "p.svg")
    assert {*DOMAINS} <= set(shown) and shown.count("n < 10: too few records") == len(scarce)


def test_table_and_figures_need_no_torch():
    code = (
        "import sys, loratory.reporting.methods, loratory.reporting.method_figures; sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(SCRIPTS)})
