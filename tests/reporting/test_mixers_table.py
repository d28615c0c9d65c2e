import csv
import json

import pytest
from metric_files import metric_row
from test_figures import BANNER, texts

from loratory.evaluation.routing import gather_routing
from loratory.evaluation.summaries import system_facts
from loratory.reporting.figures import draw_layers, draw_token_weights, short_names
from loratory.reporting.mixers import NOTES, write_mixer_table
from loratory.reporting.tables import CONTROL

DOMAINS = ("protein", "speech")
EXPERTS = {domain: f"lora@{domain}" for domain in DOMAINS}
MIXTURES = {"uniform": 0.1, "oracle": 0.4, "zeta": 0.3, "alpha": 0.05}  # in the config's order, with their gains
CONTROLS = {"protein": {"system": "trigram", "split": "valid"}, "speech": None}
GAINS = {"base": None, "trigram": 0.35, **dict.fromkeys(EXPERTS.values(), 0.4), **MIXTURES, "zeta:shuffled": -0.1}
SEEDS = (0, 1)


def row(domain, name) -> dict:
    gain = GAINS[name]
    parts = {"gain": gain, "gain_low": gain and gain - 0.03, "gain_high": gain and gain + 0.03}
    recovery = (gain or 0) / 0.4 if domain == "protein" else None
    parts |= {
        "recovery": recovery,
        "recovery_low": recovery and recovery - 0.1,
        "recovery_high": recovery and recovery,
        "recovery_n": 40,
        "recovery_groups": 20,
        "recovery_status": "ok" if domain == "protein" else "undefined: the oracle may gain nothing",
    }
    difference = None if name == "uniform" else (gain or 0) - MIXTURES["uniform"]
    low, high = (None, None) if difference is None else (difference - 0.06, difference + 0.06)
    parts |= {"difference": difference, "difference_low": low, "difference_high": high}
    over = (gain or 0) - GAINS["trigram"] if domain == "protein" and name != "trigram" else None
    parts |= {"vs_control": over, "vs_control_low": over and over - 0.03, "vs_control_high": over and over + 0.03}
    return metric_row(name, 0.5 + (gain or 0)) | parts | {"domain": domain}


def costs(domain, seed) -> dict:
    """What each system's answers took."""
    spent = {"read": 300, "reading": 2.0, "written": 0, "writing": 0.0, "memory": None}
    if domain == "speech":
        spent = {"read": 0, "reading": 0.0, "written": 50 * (1 + seed), "writing": 1.0, "memory": 2e6 * (1 + seed)}
    return dict.fromkeys((*GAINS, *MIXTURES), spent)


def routes(seed) -> dict:
    """How each mixture routed."""
    known = {}
    for name in MIXTURES:
        experts = ["merged"] if name == "alpha" else list(DOMAINS)
        top1 = {"alpha": None, "zeta": 0.5 + 0.25 * seed}.get(name, 1.0)
        known[name] = {"needs_domain": name == "oracle", "first_pass": name == "zeta", "stored": 1234}
        known[name] |= {
            "learns_labels": name == "zeta",
            "top1": top1,
            "experts": experts,
            "entropy": 0.25,
            "weights": [1 / len(experts)] * len(experts),
        }
    return known


@pytest.fixture
def files(tmp_path):
    rows = [row(domain, name) for domain in DOMAINS for name in sorted(GAINS)]
    rows = [each for each in rows if (each["domain"], each["system"]) != ("speech", "trigram")]
    valid = [metric_row(name, 0.5 + (GAINS[name] or 0), "valid") for name in ("base", *EXPERTS.values())]
    valid = [each | {"domain": domain} for domain in DOMAINS for each in valid]
    means = [{"system": name, "recovery": (GAINS[name] or 0) / 0.4, "over": 1, "domains": 2} for name in GAINS]
    means = [mean | {"recovery_low": 0.0, "recovery_high": 1.0} for mean in means]
    report = {"base": "mini-lm", "against": "uniform", "experts": EXPERTS, "domains": DOMAINS, "rows": rows}
    report |= {
        "controls": CONTROLS,
        "valid": valid,
        "means": means,
        "loss_means": [],
        "valid_means": means,
        "best_single": "lora@speech",
        "seeds": SEEDS,
        "resamples": 1000,
        "seed": 0,
    }
    contrast = tmp_path / "contrast.json"
    contrast.write_text(json.dumps(report))
    told, spent = [], []
    for domain in DOMAINS:
        for seed in SEEDS:
            told.append(tmp_path / f"{domain}.{seed}.routing.json")
            told[-1].write_text(json.dumps(routes(seed)))
            spent.append(tmp_path / f"{domain}.{seed}.costs.json")
            spent[-1].write_text(json.dumps(costs(domain, seed)))
    runs = []
    for name in MIXTURES:
        for seed in SEEDS:
            runs.append((name, tmp_path / f"{name}.{seed}.run.json"))
            run = {"trainable_parameters": 5000 if name == "zeta" else 0, "accelerator_memory_max": None}
            rates = {"zeta": [0.003, 0.01, 0.03], "alpha": [0.01, 0.03]}.get(name, [])
            run |= {"learning_rate": 0.01 if rates else None, "learning_rates": rates}
            runs[-1][1].write_text(json.dumps(run))
    return contrast, told, spent, runs


@pytest.fixture
def made(tmp_path, files):
    write_mixer_table(*files, tmp_path / "mixers", about="a small one", banner=BANNER)
    return tmp_path


def cells(path) -> dict[str, dict[str, str]]:
    lines = [line for line in path.read_text().splitlines() if line.startswith("| ")]
    header, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if not line.startswith("| :")]
    return {row[0]: dict(zip(header, row)) for row in rows}


def test_lines_keep_the_configs_order_and_shuffled_gates_stand_under_their_own(made):
    order = ["base", CONTROL, "best single (lora@speech)", "uniform", "oracle †", "zeta", "zeta:shuffled", "alpha"]
    assert list(cells(made / "mixers.md")) == order


def test_recovery_and_differences_are_printed_with_intervals_and_marks_where_they_are_certain(made):
    shown = cells(made / "mixers.md")
    assert shown["zeta"]["protein: recovery (%)"] == "75.0 [65.0, 75.0]"
    assert {row["speech: recovery (%)"] for row in shown.values()} == {"–"}
    better = {name: row["protein: better than uniform by, AUC (0–1) ↑"] for name, row in shown.items()}
    assert better["zeta"] == "+0.200 [0.140, 0.260] ▲"
    assert better["zeta:shuffled"] == "−0.200 [−0.260, −0.140] ▼"
    assert (better["uniform"], better["alpha"]) == ("–", "−0.050 [−0.110, 0.010]")
    assert shown["zeta"]["mean recovery (%)"] == "75.0 [0.0, 100.0] (1 of 2 domains)"


def test_routing_is_told_where_several_experts_are_weighed(made):
    shown = cells(made / "mixers.md")
    found = {name: (row["top-1 (%)"], row["entropy"], row["first pass"]) for name, row in shown.items()}
    assert found["zeta"] == ("62.5", "0.25", "yes")
    assert found["oracle †"] == ("–", "0.25", "–"), "top-1 measures those alone that learn the domains' labels"
    assert found["alpha"] == found["base"] == found["zeta:shuffled"] == ("–", "–", "–")


def test_the_best_control_of_each_domain_stands_in_one_line_and_what_beats_it_is_marked(made):
    shown = cells(made / "mixers.md")
    control = shown[CONTROL]
    assert control["protein: recovery (%)"] == "87.5 [77.5, 87.5]" and control["speech: recovery (%)"] == "–"
    assert control["mean recovery (%)"] == "–"
    starred = {name for name, row in shown.items() if "*" in row["protein: recovery (%)"]}
    assert starred == {"best single (lora@speech)", "oracle †"}, "by an interval above 0"
    foot = (made / "mixers.md").read_text()
    assert "protein: trigram; speech: none." in foot
    assert "protein: lora@speech is better than trigram by 0.050" in foot


def test_costs_are_rates_over_all_domains_and_seeds(made):
    shown = cells(made / "mixers.md")
    for row in (row for name, row in shown.items() if name != CONTROL):
        assert (row["read (tokens/s)"], row["written (tokens/s)"]) == ("150.0", "75.0")
        assert (row["memory, answering (MB)"], row["memory, training (MB)"]) == ("4.0", "–")
    assert (shown["zeta"]["trained"], shown["zeta"]["stored"]) == ("5,000", "1,234")
    assert (shown["base"]["trained"], shown["uniform"]["trained"]) == ("–", "0")


def test_the_chosen_rate_is_told_and_whether_it_is_at_the_edge_of_its_grid(made):
    shown = {name: row["learning rate"] for name, row in cells(made / "mixers.md").items()}
    assert (shown["zeta"], shown["alpha"], shown["uniform"]) == ("0.01", "0.01 (edge)", "–")
    assert (shown["base"], shown["zeta:shuffled"]) == ("–", "–")


def test_memory_of_training_is_that_of_the_seed_that_took_most():
    run = {"trainable_parameters": 1, "learning_rate": None, "learning_rates": []}
    runs = [run | {"accelerator_memory_max": most} for most in (3, 5)]
    assert system_facts("x", [], runs)["training_memory"] == 5


def test_the_foot_says_how_intervals_were_made_and_how_many_marks_are_chance(made):
    foot = (made / "mixers.md").read_text()
    assert (
        "Means over seeds 0, 1; [95 % interval] from 1000 bootstrap draws of whole groups of test records and of"
        in foot
    )
    assert "not corrected for the 13 comparisons, of which one in twenty may be marked by chance" in foot
    assert "Best single: lora@speech, by mean recovery on the validation splits (1 of 2 domains)." in foot
    assert "speech: no recovery by AUC: undefined: the oracle may gain nothing." in foot
    assert all(note in foot for note in NOTES) and "Base: a small one" in foot


def test_below_the_floor_cells_and_foot_say_so_and_hold_no_number(tmp_path, files):
    report = json.loads(files[0].read_text())
    kinds = ("value", "low", "high", "gain", "differ", "recov", "vs_")
    few = dict.fromkeys(key for key in report["rows"][0] if key.startswith(kinds))
    few |= {"n": 4, "status": "n < 10: too few records"}
    report["rows"] = [row | few if row["domain"] == "protein" else row for row in report["rows"]]
    files[0].write_text(json.dumps(report))
    write_mixer_table(*files, tmp_path / "mixers")
    shown = cells(tmp_path / "mixers.md").values()
    assert {row["protein: recovery (%)"] for row in shown} == {"n \\< 10"}
    assert {row["protein: better than uniform by, AUC (0–1) ↑"] for row in shown} == {"–"}
    assert "- protein: AUC: n \\< 10: too few records.\n" in (tmp_path / "mixers.md").read_text()
    assert "n \\< 10" not in {row["speech: recovery (%)"] for row in shown}


def test_recovery_by_loss_has_columns_of_its_own_where_the_primary_metric_is_another(tmp_path, files):
    report = json.loads(files[0].read_text())
    other = {"metric": "log_loss", "primary": False, "loss": True, "recovery": 0.5, "recovery_status": "ok"}
    other |= {"recovery_low": 0.25, "recovery_high": 0.75}
    report["rows"] += [row | other for row in report["rows"] if row["domain"] == "speech"]
    report["loss_means"] = [mean | {"recovery": 0.5, "over": 2} for mean in report["means"]]
    files[0].write_text(json.dumps(report))
    write_mixer_table(*files, tmp_path / "mixers")
    shown = cells(tmp_path / "mixers.md")
    assert "protein: recovery by log_loss (%)" not in shown["zeta"]
    assert shown["zeta"]["speech: recovery (%)"] == "–"
    assert shown["zeta"]["speech: recovery by log_loss (%)"] == "50.0 [25.0, 75.0]"
    assert shown["zeta"]["mean recovery by loss (%)"] == "50.0 [0.0, 100.0]"
    assert shown[CONTROL]["speech: recovery by log_loss (%)"] == "–"
    with open(tmp_path / "mixers.tsv", newline="") as stream:
        rows = {(r["domain"], r["system"], r["metric"]): r for r in csv.DictReader(stream, delimiter="\t")}
    assert rows["speech", "zeta", "log_loss"]["recovery"] == "0.5" and rows["speech", "zeta", "AUC"]["recovery"] == ""


def test_a_mean_over_some_of_the_domains_a_mixture_is_routed_on_is_not_printed():
    route = {"experts": ["a", "b"], "learns_labels": True, "top1": 0.5, "entropy": 0.5, "memory": None}
    route |= {"read": 1, "reading": 1.0, "written": 0, "writing": 0.0}
    single = route | {"experts": ["a"]}
    assert system_facts("x", [{"x": route}, {"x": route}], [])["top1"] == 0.5
    assert system_facts("x", [{"x": route}, {"x": single}], [])["top1"] is None
    assert system_facts("x", [{"x": route}, {}], [])["entropy"] is None


def test_nothing_is_bold_and_every_form_is_written(made):
    for suffix in ("tsv", "md", "tex", "html"):
        text = (made / f"mixers.{suffix}").read_text()
        assert not [bold for bold in ("<b>", "<strong>", "textbf") if bold in text]
    assert BANNER in (made / "mixers.html").read_text()


def test_the_tab_separated_file_has_a_row_for_each_system_and_domain(made):
    with open(made / "mixers.tsv", newline="") as stream:
        rows = {(row["domain"], row["system"]): row for row in csv.DictReader(stream, delimiter="\t")}
    shown = {"base", "lora@speech", *MIXTURES, "zeta:shuffled"}
    assert set(rows) == {(domain, name) for domain in DOMAINS for name in shown} | {("protein", "trigram")}
    found = rows["protein", "zeta"]
    assert float(found["recovery"]) == pytest.approx(0.75) == float(found["mean_recovery"])
    assert (found["needs_domain"], found["first_pass"], found["stored"]) == ("False", "True", "1234.0")


@pytest.fixture
def weights(tmp_path):
    """A gathered routing of two experts, two layers and two domains."""
    found = {}
    for domain in DOMAINS:
        route = {"experts": ["a", "b"], "layers": ["model.layers.0.q", "model.layers.1.q"], "weights": [0.75, 0.25]}
        route |= {
            "prompt": [1, 0],
            "target": [0.5, 0.5],
            "modules": [[1, 0], [0.5, 0.5]],
            "entropy": 0.5,
            "top1": None,
            "tokens": 100,
            "learns_labels": False,
        }
        found[domain] = [tmp_path / f"{domain}.json"]
        found[domain][0].write_text(json.dumps({"mix": route}))
    gather_routing(found, "mix", tmp_path / "weights.json")
    return tmp_path / "weights.json"


def test_every_layer_and_domain_is_drawn(tmp_path, weights):
    draw_layers(weights, tmp_path / "layers.svg", BANNER)
    found = texts(tmp_path / "layers.svg")
    assert {*DOMAINS, "0.q", "1.q", "a", "b", "expert", "adapted layer", BANNER} <= set(found)


def test_only_what_all_names_start_with_is_left_out():
    assert short_names(["m.0.q", "m.0.k"]) == ["q", "k"]
    assert short_names(["m.0", "m.0.q"]) == ["0", "0.q"]
    assert short_names(["all"]) == ["all"]


def test_every_prompt_is_drawn_with_where_its_domains_start(tmp_path):
    routed = {"experts": ["a", "b"], "tokens": ["x"] * 5, "weights": [[0.5, 0.5]] * 5}
    found = {
        "rna": routed | {"domains": ["protein"] * 2 + ["lncrna"] * 3},
        "short": routed | {"domains": ["speech"] * 5},
    }
    path = tmp_path / "tokens.json"
    path.write_text(json.dumps({"mix": found, "other": {}}))
    draw_token_weights(path, "mix", tmp_path / "tokens.svg")
    drawn = texts(tmp_path / "tokens.svg")
    assert {"rna", "short", "protein, from 0", "lncrna, from 2", "speech, from 0", "a", "b"} <= set(drawn)
    assert (tmp_path / "tokens.svg").read_text().count("<image") == 3  # two panels and the colour bar
