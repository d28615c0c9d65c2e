import csv
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metric_files import DOMAINS, EXPERTS, metric_row, recovered, routed, rows_of, write_report

from loratory.data.files import write_json
from loratory.errors import InputError
from loratory.reporting import formats
from loratory.reporting.formats import Layout, base_sentence, markdown_text
from loratory.reporting.tables import CONTROL, number_text, write_domain_table, write_summary

BANNER = "simulated data: shows the pipeline, not science"
SCRIPTS = Path(__file__).parents[2] / "scripts"


class Cells(HTMLParser):
    """Rows of cell texts of an HTML page; notes open tags that do not match."""

    def __init__(self, page):
        super().__init__()
        self.rows, self.open, self.inside = [], [], False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "input"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.inside = True

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data):
        if self.inside:
            self.rows[-1][-1] += data


def split_markdown(text):
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def split_latex(text):
    body = text.split(r"\hline", 1)[1].split(r"\end{tabular}")[0]
    lines = [line.removesuffix(r" \\") for line in body.splitlines() if line.endswith(r"\\")]
    return [re.split(r"(?<!\\)&", line) for line in lines]


@pytest.fixture
def written(tmp_path, reports, audit):
    out = tmp_path / "tables" / "protein"
    write_domain_table([reports[1]], out, audits=[audit], about="mini-lm_1 <2 M parameters>", banner=BANNER)
    return {kind: Path(f"{out}.{kind}").read_text() for kind in ("tsv", "md", "tex", "html")}


@pytest.fixture
def summed(tmp_path, reports):
    out = tmp_path / "tables" / "summary"
    write_summary(
        reports, out, mixture="mix", experts=EXPERTS, **routed(tmp_path), about="a small base", banner=BANNER
    )
    return {kind: Path(f"{out}.{kind}").read_text() for kind in ("tsv", "md", "tex", "html")}


def lines(text):
    header, _, *rows = split_markdown(text)
    return {row[0]: dict(zip(header, row)) for row in rows}


def test_every_format_parses_and_tells_the_same_rows(written, summed):
    for texts in (written, summed):
        markdown, page, latex = split_markdown(texts["md"]), Cells(texts["html"]), split_latex(texts["tex"])
        assert page.open == []
        assert page.rows == [markdown[0], *markdown[2:]]
        assert len(latex) == len(page.rows)
        assert {len(row) for row in (*markdown, *page.rows, *latex)} == {len(page.rows[0])}


def test_systems_stand_in_order_own_domain_before_transfer(written):
    assert list(lines(written["md"])) == [
        *("base", "length_only", "lora@protein", "lora@speech"),
        *("mix:oracle", "mix:shuffled", "mix:uniform", "other:oracle", "pooled", "mix", "other"),
    ]


def test_cells_hold_value_interval_unit_direction_and_the_sign_of_a_clear_gain(written):
    found = lines(written["md"])
    assert found["lora@protein"]["AUC (0–1) ↑"] == "0.800 [0.750, 0.850] ▲"
    assert found["lora@speech"]["AUC (0–1) ↑"] == "0.450 [0.400, 0.500] ▼"
    assert found["length_only"]["AUC (0–1) ↑"] == "0.520 [0.470, 0.570]", "its gain's interval covers 0"
    assert found["lora@protein"]["WER (%) ↓"] == "20.0 [15.0, 25.0]"
    assert "▲ better, ▼ worse than the base" in written["md"]


def test_not_run_is_said_in_the_cell_and_explained_below(written):
    found = lines(written["md"])
    assert found["mix"]["pLDDT (0–100) ↑"] == "not run" and found["base"]["pLDDT (0–100) ↑"] == "–"
    assert "pLDDT: not run: no trained folding base." in written["md"]


def test_undefined_values_and_missing_intervals_show_no_number(tmp_path):
    rows = [metric_row("base", None, status="undefined"), metric_row("lora@toy", 0.7, low=None, high=None)]
    write_domain_table([write_report(tmp_path / "m.json", "toy", rows)], tmp_path / "t")
    found = lines((tmp_path / "t.md").read_text())
    assert [row["AUC (0–1) ↑"] for row in found.values()] == ["undefined", "0.700 [–, –] ▲"]


def test_foot_tells_what_the_numbers_rest_on(written):
    for line in (
        "n = 40 (test) in 20 groups.",
        "n = 8 (sample) in 8 groups.",
        "Means over seeds 0, 1, 2; [95 % interval] from 1000 bootstrap draws of whole groups.",
        "Primary metric: AUC.",
        "AUC: ties count half",
        "Leak audit, counted again in the written splits: ids in two splits 0, resembles test 0."
        " Test (40 records) shares with other splits: 95% identity 3 (the search finds 97% of such pairs).",
    ):
        assert f"- {line}" in written["md"].splitlines()
        assert f"<li>{line}</li>" in written["html"]
    assert all(BANNER in written[kind] for kind in ("md", "tex", "html"))


def test_few_seeds_are_warned_of(tmp_path, reports):
    made = json.loads(reports[0].read_text()) | {"seeds": [7]}
    path = tmp_path / "one.json"
    path.write_text(json.dumps(made))
    write_domain_table([path], tmp_path / "one")
    text = (tmp_path / "one.md").read_text()
    assert "Seed 7 only" in text and "Fewer than 3 seeds" in text
    write_domain_table([reports[0]], tmp_path / "three")
    assert "Fewer than" not in (tmp_path / "three.md").read_text()


def test_what_adaptation_cost_stands_beside_the_primary_metric(tmp_path, reports, audit):
    sizes, worse = {"n": 30, "n_groups": 9}, {"gain_low": -0.4, "gain_high": -0.2}
    kept = [metric_row("base", 0.9, **sizes), metric_row("lora@protein", 0.6, **sizes, **worse)]
    other = metric_row("base", 0.4, metric="WER")
    general = write_report(tmp_path / "general.json", "protein", [*kept, other, metric_row("base", 0.1, "valid")])
    write_domain_table([reports[1], general], tmp_path / "t", audits=[audit, audit])
    text = (tmp_path / "t.md").read_text()
    found = lines(text)
    assert list(found["base"])[:4] == ["system", "AUC (0–1) ↑", "general: AUC (0–1) ↑", "WER (%) ↓"]
    column = {system: cells["general: AUC (0–1) ↑"] for system, cells in found.items()}
    assert column.pop("base") == "0.900 [0.850, 0.950]" and column.pop("lora@protein") == "0.600 [0.550, 0.650] ▼"
    assert set(column.values()) == {"–"}, "only the base and the domain's own adapters are asked"
    assert found["lora@protein"]["AUC (0–1) ↑"] == "0.800 [0.750, 0.850] ▲"
    for line in ("n = 40 (test) in 20 groups.", "n = 30 (general test) in 9 groups."):
        assert f"- {line}" in text.splitlines()
    assert "- general: AUC: the same on test records of the general population" in text
    assert "- general: Leak audit" in text
    rows = csv.DictReader(io.StringIO((tmp_path / "t.tsv").read_text()), delimiter="\t")
    told = [(row["corpus"], row["split"], row["value"]) for row in rows if row["system"] == "base"]
    assert {("general", "valid", "0.1"), ("general", "test", "0.9"), ("data", "test", "0.5")} <= {*told}


def test_no_winner_is_emphasised(written, summed):
    for texts in (written, summed):
        assert not re.search(r"\\(textbf|bfseries|emph)", texts["tex"])
        assert not re.search(r"<(b|strong|em)>", texts["html"])
        assert not any("*" in cell for row in split_markdown(texts["md"]) for cell in row)


def test_a_name_makes_no_link_and_no_picture_in_markdown():
    text = "![x](https://example.org/seen.png) and [here](javascript:alert(1)) [0.1, 0.2]"
    layout = Layout(text, text, ["system", text], [[text, text]], [text], [])
    assert "](" not in (written := markdown_text(layout)) and written.count("[0.1, 0.2]") == 6


def test_special_characters_are_escaped(written):
    assert (
        r"length\_only" in written["tex"]
        and r"pooled over words, 100 \% \& more \textbar{} possible" in written["tex"]
    )
    assert r"\textless{}2 M parameters\textgreater{}" in written["tex"]
    assert "&lt;2 M parameters&gt;" in written["html"]
    assert r"100 % & more \| possible" in written["md"]
    assert re.search(r"(?<!\\)[%#]", written["tex"]) is None
    for mathematics in re.findall(r"\$[^$]*\$", written["tex"]):
        assert re.fullmatch(r"\$(-|\^\{[+-]\}|\\[a-z]+)\$", mathematics)
    needed = {r"\begin{table}", r"\end{table}", r"\hline"}
    assert all(word in written["tex"] for word in needed) and "usepackage" not in written["tex"]


def test_tsv_has_every_digit_of_every_split(tmp_path):
    third = metric_row("base", 1 / 3, per_seed=[1 / 3, None, 0.1], note="a\ttab and\na line")
    write_domain_table([write_report(tmp_path / "m.json", "toy", [third, third | {"split": "valid"}])], tmp_path / "t")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "t.tsv").read_text()), delimiter="\t"))
    assert [row["split"] for row in rows] == ["test", "valid"]
    assert float(rows[0]["value"]) == 1 / 3 and rows[0]["gain"] == "" and rows[0]["base"] == "mini-lm"
    assert rows[0]["per_seed"] == f"{1 / 3};;0.1" and rows[0]["note"] == "a tab and a line"
    assert set(third) <= set(rows[0])


def test_summary_compares_the_mixture_with_its_own_controls_only(summed):
    assert list(lines(summed["md"])) == [
        *("base", "lora@speech", "lora@protein", "best single (lora@speech)"),
        *("mix:uniform", "mix:oracle", "mix:shuffled", "pooled", "mix"),
    ]


def test_summary_says_which_base_it_is_about(summed):
    assert all("Base: a small base" in text for text in summed.values() if "\t" not in text)


def test_summary_says_how_the_gate_routed_and_what_the_mixer_is(summed):
    share = "the share of tokens whose heaviest expert is the domain's own, and the weights' entropy (1: uniform)"
    routed = "protein 98.0 %, 0.07 (1,234 tokens); speech 50.0 %, 1.00 (56 tokens)."
    assert f"Routing on test, {share}: {routed}" in summed["md"]
    assert "Mixer: xlora (depth 1)." in summed["md"]


def test_of_a_gate_without_labels_no_share_of_its_domains_own_expert_is_printed(tmp_path, reports):
    write_summary(reports, tmp_path / "s", mixture="mix", experts=EXPERTS, **routed(tmp_path, labels=False))
    assert (
        "Routing on test, the weights' entropy (1: uniform): protein 0.07 (1,234 tokens); speech 1.00 (56 tokens)."
        in (tmp_path / "s.md").read_text()
    )


BY = "by the loss on valid with the first seed, the mean over domains."
RATES = {
    (0.003, 0.01, 0.03): f"0.01 of 0.003, 0.01, 0.03, {BY}",
    (0.01, 0.03): f"0.01 of 0.01, 0.03, {BY} At the edge of its grid: a better one may lie beyond.",
    (0.01,): "0.01, the only one that was tried.",
    (): None,
}


@pytest.mark.parametrize(("rates", "line"), RATES.items())
def test_summary_says_at_which_rate_the_mixture_learnt_and_whether_a_better_one_may_lie_beyond(
    tmp_path, reports, rates, line
):
    write_summary(reports, tmp_path / "s", mixture="mix", experts=EXPERTS, **routed(tmp_path, rates=rates))
    text = (tmp_path / "s.md").read_text()
    assert f"- Learning rate of the mixture: {line}\n" in text if line else "Learning rate" not in text


def test_summary_keeps_the_order_of_its_domains_and_recovers_the_oracle(summed):
    found = lines(summed["md"])
    header = list(found["mix"])
    assert header[1:] == [
        *(f"{domain}: AUC (0–1) ↑" for domain in DOMAINS),
        *(f"{domain}: recovery (%)" for domain in DOMAINS),
        "mean recovery (%)",
    ]
    assert [found["mix:oracle"][name] for name in header[3:]] == ["100.0"] * 3
    assert [found["base"][name] for name in header[3:]] == ["0.0"] * 3
    assert [found["mix"][name] for name in header[3:]] == ["62.5", "83.3", "72.9"]
    assert found["lora@protein"]["speech: recovery (%)"] == "−50.0"


def test_recovery_is_that_of_its_file_and_a_dash_where_there_is_none(tmp_path, reports):
    none = {"recovery": None, "recovery_status": "undefined: the oracle may gain nothing"}
    rows = [row | none if row["domain"] == "speech" else row for row in recovered()["rows"]]
    means = [row | {"over": 1, "domains": 2} for row in rows if row["domain"] == "protein"]
    told = routed(tmp_path, rows=rows, means=means)
    write_summary(reports, tmp_path / "s", mixture="mix", experts=EXPERTS, **told)
    found = lines((tmp_path / "s.md").read_text())
    assert {row["speech: recovery (%)"] for row in found.values()} == {"–"}
    assert found["mix"]["protein: recovery (%)"] == "83.3"
    assert found["mix"]["mean recovery (%)"] == "83.3 (1 of 2 domains)"
    line = "speech: no recovery by AUC: undefined: the oracle may gain nothing."
    assert (tmp_path / "s.md").read_text().count(line) == 1
    rows = csv.DictReader(io.StringIO((tmp_path / "s.tsv").read_text()), delimiter="\t")
    told = {(row["mean_over"], row["mean_domains"]) for row in rows if row["mean_recovery"]}
    assert told == {("1", "2")}


def test_the_best_single_expert_is_that_of_the_file_of_recoveries(tmp_path, reports):
    write_summary(reports, tmp_path / "s", mixture="mix", experts=EXPERTS, **routed(tmp_path, best="lora@protein"))
    text = (tmp_path / "s.md").read_text()
    assert lines(text)["best single (lora@protein)"]["speech: AUC (0–1) ↑"].startswith("0.300")
    assert "Best single: lora@protein, by mean recovery on the validation splits." in text


def test_adapters_that_are_no_expert_stay_out_of_the_summary(tmp_path, reports):
    rows = [*rows_of("speech"), metric_row("dylora@speech", 0.99), metric_row("dylora@speech", 0.99, "valid")]
    speech = write_report(tmp_path / "speech.json", "speech", rows)
    write_summary([speech, reports[1]], tmp_path / "s", mixture="mix", experts=EXPERTS, **routed(tmp_path))
    assert "dylora" not in (tmp_path / "s.md").read_text()


def against(domain, control, over: dict, split="valid"):
    """A report whose systems are better than the control by what `over` says, give or take 0.02."""
    rows = rows_of(domain)
    for row in rows:
        if row["primary"] and row["system"] in over:
            gain = over[row["system"]]
            row |= {"vs_control": gain, "vs_control_low": gain - 0.02, "vs_control_high": gain + 0.02}
    return {"rows": rows, "control": {"system": control, "split": split}}


def summed_against(folder, *reports) -> tuple[dict, str]:
    files = [write_report(folder / f"{domain}.json", domain, **report) for domain, report in zip(DOMAINS, reports)]
    write_summary(files, folder / "s", mixture="mix", experts=EXPERTS, **routed(folder))
    text = (folder / "s.md").read_text()
    return lines(text), text


def test_a_control_that_wins_stands_under_the_base_and_the_foot_says_where_it_wins(tmp_path):
    losing = {"base": -0.4, "lora@speech": -0.1, "lora@protein": -0.3, "mix": -0.25}
    winning = {"base": -0.4, "lora@protein": 0.2, "mix": 0.01}
    found, text = summed_against(
        tmp_path, against("speech", "length_only", losing), against("protein", "pooled", winning, "test")
    )
    assert [*found][:3] == ["base", CONTROL, "lora@speech"]
    assert found[CONTROL]["speech: AUC (0–1) ↑"] == "0.520 [0.470, 0.570]"
    assert found[CONTROL]["protein: AUC (0–1) ↑"] == "0.650 [0.600, 0.700] ▲"
    starred = {(name, head) for name, row in found.items() for head, cell in row.items() if r"\*" in cell}
    assert starred == {("lora@protein", "protein: AUC (0–1) ↑")}, "0.01 is within its interval"
    for line in (
        "chosen on valid: speech: length_only; protein: pooled.",
        "chosen on test, which favours it: protein.",
        "speech: length_only wins: lora@speech is worse by 0.100 [0.080, 0.120]",
        "speech: length_only wins over lora@speech",
        "protein: lora@protein is better than pooled by 0.200 [0.180, 0.220].",
    ):
        assert line in text


def test_a_control_that_wins_over_the_only_adapter_is_said_once(tmp_path):
    report = against("speech", "length_only", {"lora@speech": -0.1})
    report["rows"] = [row for row in report["rows"] if row["system"] in ("base", "length_only", "lora@speech")]
    write_domain_table([write_report(tmp_path / "m.json", "speech", **report)], tmp_path / "t")
    text = (tmp_path / "t.md").read_text()
    assert "length_only wins: lora@speech is worse" in text and "wins over" not in text


def test_a_control_that_is_neither_beaten_nor_wins_is_said_so_and_a_domain_without_one_is_named(tmp_path):
    equal = against("speech", "length_only", {"lora@speech": 0.01, "mix": -0.01})
    found, text = summed_against(tmp_path, equal, {"rows": rows_of("protein")})
    assert "speech: length_only is not beaten: lora@speech is better by 0.010" in text
    assert "speech: length_only; protein: none." in text
    assert found[CONTROL]["protein: AUC (0–1) ↑"] == "–"


def test_a_domains_table_marks_what_beats_its_best_control(tmp_path):
    report = against("speech", "length_only", {"lora@speech": 0.3, "mix": -0.1})
    write_domain_table([write_report(tmp_path / "m.json", "speech", **report)], tmp_path / "t")
    text = (tmp_path / "t.md").read_text()
    assert lines(text)["lora@speech"]["AUC (0–1) ↑"].endswith(r"▲\*")
    assert "speech: lora@speech is better than length_only by 0.300" in text
    assert "Best control" not in (tmp_path / "t.tex").read_text().split(r"\end{tabular}")[0]


def test_a_column_on_fewer_records_says_how_many_and_too_few_print_no_number(tmp_path):
    small = {"n": 24, "n_groups": 5, "note": "of this age"}
    few = {"n": 7, "n_groups": 2, "status": "n < 10: too few records", "note": ""}
    rows = [metric_row("base", 0.5), metric_row("base", 0.4, metric="young", **small)]
    rows += [metric_row("base", None, metric="old", **few)]
    write_domain_table([write_report(tmp_path / "m.json", "speech", rows)], tmp_path / "t")
    text = (tmp_path / "t.md").read_text()
    cells = lines(text)["base"]
    assert cells["young (0–1) ↑"].startswith("0.400") and cells["old (0–1) ↑"] == "n \\< 10"
    for line in (
        "n = 40 (test) in 20 groups.",
        "young: of this age; n = 24 in 5 groups",
        "old: n = 7 in 2 groups",
        "old: n \\< 10: too few records.",
    ):
        assert f"- {line}\n" in text
    assert "AUC: ties count half\n" in text


def test_where_systems_are_not_judged_by_equally_many_records_each_cell_says_by_how_many(tmp_path):
    fewer = {"n": 8, "n_groups": 7}
    rows = [metric_row("base", 0.5), metric_row("lora@speech", 0.6), metric_row("mix", 0.6, metric="pLDDT")]
    rows += [metric_row("base", 0.4, metric="pLDDT", **fewer)]
    few = {"n": 2, "n_groups": 2, "status": "n < 5: too few records"}
    rows += [metric_row("lora@speech", None, metric="pLDDT", **few)]
    write_domain_table([write_report(tmp_path / "m.json", "speech", rows)], tmp_path / "t")
    found = {system: row["pLDDT (0–1) ↑"] for system, row in lines((tmp_path / "t.md").read_text()).items()}
    assert found["base"] == "0.400 [0.350, 0.450] (n = 8 in 7 groups)"
    assert found["lora@speech"] == "n \\< 5 (n = 2 in 2 groups)" and found["mix"].endswith("(n = 40 in 20 groups)")
    assert "n =" not in lines((tmp_path / "t.md").read_text())["base"]["AUC (0–1) ↑"]


def test_what_rates_are_chosen_by_stands_beside_the_primary_metric(tmp_path):
    rows = [metric_row("base", 0.5, metric=metric) for metric in ("accuracy", "log_loss", "AUC")]
    write_domain_table([write_report(tmp_path / "m.json", "speech", rows)], tmp_path / "t")
    assert [*lines((tmp_path / "t.md").read_text())["base"]][1:] == [
        *("AUC (0–1) ↑", "log_loss (0–1) ↑", "accuracy (0–1) ↑")
    ]


def test_a_summary_has_recoveries_by_loss_beside_those_by_the_primary_metric(tmp_path, reports):
    told = recovered()
    other = {"metric": "log_loss", "primary": False, "recovery": 0.25, "recovery_n": 40}
    rows = told["rows"] + [row | other for row in told["rows"] if row["domain"] == "speech"]
    loss_means = [row | {"recovery": 0.25, "over": 1} for row in told["means"]]
    files = routed(tmp_path, rows=rows, loss_means=loss_means)
    write_summary(reports, tmp_path / "s", mixture="mix", experts=EXPERTS, **files)
    found = lines((tmp_path / "s.md").read_text())["mix"]
    assert [*found.items()][-2:] == [
        ("speech: recovery by log_loss (%)", "25.0"),
        ("mean recovery by loss (%)", "25.0 (1 of 2 domains)"),
    ]
    assert found["speech: recovery (%)"] == "62.5"
    kept = {
        row["domain"]: row for row in csv.DictReader(io.StringIO((tmp_path / "s.tsv").read_text()), delimiter="\t")
    }
    assert (kept["speech"]["loss_metric"], kept["speech"]["loss_recovery"]) == ("log_loss", "0.25")
    assert (kept["protein"]["loss_metric"], kept["protein"]["loss_recovery"]) == ("", "")
    assert kept["speech"]["recovery_n"] == "40"


def test_a_base_that_was_not_scored_is_said_so(tmp_path):
    rows = [metric_row("lora@toy", 0.7, gain=None, gain_low=None, gain_high=None)]
    write_domain_table([write_report(tmp_path / "m.json", "toy", rows)], tmp_path / "t")
    text = (tmp_path / "t.md").read_text()
    assert "The base alone was not scored, so gains are undefined." in text and "▲" not in text


def test_the_foot_names_the_version_of_metrics_that_changed_their_meaning_and_no_first_one(tmp_path, reports):
    line = "Version of the metrics, comparable with no other: speech 2."
    for version in (1, 2):
        report = write_report(tmp_path / "speech.json", "speech", rows_of("speech"), metrics_version=version)
        write_domain_table([report], tmp_path / "t")
        write_summary([report, reports[1]], tmp_path / "s", mixture="mix", experts=EXPERTS, **routed(tmp_path))
        for name in ("t", "s"):
            text = (tmp_path / f"{name}.md").read_text()
            assert ("Version" in text) == (line in text) == (version == 2)


def test_the_foot_counts_references_that_are_longer_than_may_be_written(tmp_path):
    line = "3 references of test are longer than may be written: what is beyond is missing from every answer."
    for count in (0, 3):
        write_domain_table(
            [write_report(tmp_path / "r.json", "speech", rows_of("speech"), too_long=count)], tmp_path / "t"
        )
        text = (tmp_path / "t.md").read_text()
        assert ("longer than may be written" in text) == (line in text) == (count > 0)


def test_without_a_best_expert_none_is_named(tmp_path, reports):
    write_summary(reports, tmp_path / "s", mixture="mix", experts=EXPERTS, **routed(tmp_path, best=None))
    text = (tmp_path / "s.md").read_text()
    assert set(list(lines(text)["best single"].values())[1:]) == {"–"} and "Best single: undefined" in text


def test_summary_refuses_another_base_and_a_domain_without_a_primary_metric(tmp_path, reports):
    other = write_report(tmp_path / "other.json", "lncrna", rows_of("protein"), base="mini-bert")
    with pytest.raises(InputError, match=r"other\.json: systems of another base .*mini-bert"):
        write_summary([*reports, other], tmp_path / "s", mixture="mix", experts=EXPERTS, **routed(tmp_path))
    rows = [row | {"primary": False} for row in rows_of("protein")]
    bare = write_report(tmp_path / "bare.json", "lncrna", rows)
    with pytest.raises(InputError, match=r"bare\.json: no primary metric on the test split"):
        write_summary([*reports, bare], tmp_path / "s", mixture="mix", experts=EXPERTS, **routed(tmp_path))
    assert not list(tmp_path.glob("s.*"))


def test_numbers_are_printed_in_the_unit_that_readers_expect():
    assert number_text(1.234, "ratio") == "123.4", "a word error rate above 1 is not cut"
    assert (
        number_text(87.654, "0–100") == "87.7"
        and number_text(1.257, "Å") == "1.26"
        and number_text(0.12345, "nats") == "0.123"
    )
    assert number_text(-0.5, "MCC") == "−0.500" and number_text(None, "ratio") == "–"


def test_same_metrics_give_the_same_bytes(tmp_path, reports, audit):
    for name in ("a", "b"):
        write_domain_table([reports[0]], tmp_path / f"{name}-t", audits=[audit], banner=BANNER)
        write_summary(reports, tmp_path / f"{name}-s", mixture="mix", experts=EXPERTS, **routed(tmp_path))
    for first in tmp_path.glob("a-*"):
        assert first.read_bytes() == (tmp_path / first.name.replace("a-", "b-")).read_bytes()
    assert len(list(tmp_path.glob("a-*"))) == 8


def test_a_column_without_a_value_in_any_row_waits_behind_a_click_and_stays_in_the_file():
    none = ["–", "n < 5", "class groups < 3 (n = 2 in 1 groups)", "undefined", "not run"]
    rows = [["base", "0.5", cell, "0.1", "–"] for cell in none]
    layout = Layout("t", "", ["system", "auc", "f1", "mcc", "late"], rows, [], [{"f1": None}], main=4)
    assert formats.later_columns(layout) == {2, 4}
    page = formats.html_table(layout)
    assert page.count('class="more"') == 2 * (1 + len(rows)) and 'type="checkbox"' in page
    assert formats.tsv_text(layout).startswith("f1")
    some = Layout("t", "", ["system", "auc"], [["base", "–"], ["lora", "0.000 [–, –]"]], [], [])
    assert formats.later_columns(some) == set() and "checkbox" not in formats.html_table(some)


@given(st.lists(st.text(min_size=1, max_size=12), min_size=2, max_size=4))
def test_any_text_keeps_its_column(cells):
    layout = Layout("t", "", ["system"] * len(cells), [cells, cells], ["foot"], [])
    clean = [" ".join(cell.split()) for cell in cells]
    found = Cells(formats.html_page(layout)).rows[1:]
    assert [len(row) for row in found] == [len(cells)] * 2
    escaped = formats.latex_text(Layout("t", "", ["s"] * len(cells), [clean], [], []))
    assert len(split_latex(escaped)[1]) == len(cells)
    bare = re.sub(r"\\[{}]", "", escaped)
    assert bare.count("{") == bare.count("}")


def test_a_thousand_records_need_no_package_that_starts_slowly(tmp_path):
    paths = []
    for d in range(4):
        rows = []
        for i in range(25):
            for m in range(10):
                rows.append(metric_row(f"a{i}@d{d}" if i else "base", 0.5 + i / 100, metric=f"m{m}" if m else "AUC"))
        paths.append(str(write_report(tmp_path / f"d{d}.json", f"d{d}", rows)))
    told = routed(tmp_path)
    code = (
        "import sys; from loratory.reporting.tables import write_domain_table, write_summary\n"
        f"paths, out = {paths!r}, {str(tmp_path / 'out')!r}\n"
        "for i, path in enumerate(paths): write_domain_table([path], f'{out}/{i}')\n"
        f"write_summary(paths, out + '/s', mixture='mix', **{told!r}, experts=['a1@d0', 'a2@d1'])\n"
        "heavy = {'torch', 'transformers', 'pandas', 'numpy', 'pyarrow', 'matplotlib', 'snakemake'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(SCRIPTS)})
    assert len(list((tmp_path / "out").iterdir())) == 20


def test_a_table_says_in_which_precision_a_base_is_held(tmp_path):
    for precision, said in {"fp32": "tiny", "bf16": "tiny; its weights are held in bf16"}.items():
        write_json(tmp_path / "base.json", {"note": "tiny", "precision": precision})
        assert base_sentence(tmp_path / "base.json") == said
