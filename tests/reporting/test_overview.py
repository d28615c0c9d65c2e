"""What a run ends with: one line a system, values without intervals, never wider than a terminal."""

from metric_files import metric_row, rows_of, write_report

from loratory.reporting.overview import WIDTH, study_overview


def lines(text):
    return {line.split("  ")[0]: line for line in text.splitlines()}


def test_a_system_has_one_line_with_its_value_on_each_domain(reports):
    text = study_overview(reports, "out")
    assert lines(text)["system"].split() == ["system", "speech", "↑", "protein", "↑"]
    assert lines(text)["lora"].split()[1::2] == ["0.900", "0.800"], "each domain's own adapter of that name"
    assert "lora@" not in text and "[" not in text


def test_where_nothing_is_trained_the_adapters_of_others_are_shown(tmp_path):
    rows = [metric_row("base", 0.5), metric_row("lora@speech", 0.7)]
    text = study_overview([write_report(tmp_path / "mouse.json", "mouse", rows)], "out")
    assert "0.700" in lines(text)["lora@speech"]


def test_more_domains_than_fit_are_printed_below_one_another(tmp_path):
    names = [f"a-domain-of-a-long-name-{number}" for number in range(9)]
    text = study_overview([write_report(tmp_path / f"{name}.json", name, rows_of("speech")) for name in names], "out")
    assert text.count("system ") == 3 and all(name in text for name in names)
    assert max(map(len, text.splitlines())) <= WIDTH


def test_it_says_what_a_column_rests_on_and_warns_of_few_seeds(tmp_path):
    control = {"system": "length_only", "split": "valid"}
    one = write_report(tmp_path / "a.json", "speech", rows_of("speech"), control=control)
    text = study_overview([one], "out")
    assert "speech: AUC (0–1) ↑ on 40 records in 20 groups; best control: length_only" in text.splitlines()
    assert "Fewer than 3 seeds" not in text
    two = [write_report(tmp_path / f"{name}.json", name, rows_of("speech"), seeds=[0]) for name in ("a", "b")]
    assert study_overview(two, "out").count("Fewer than 3 seeds") == 1


def test_it_says_why_a_number_is_missing(tmp_path):
    rows = [metric_row("base", None, status="n < 10: too few records")]
    assert "a: AUC: n < 10: too few records." in study_overview([write_report(tmp_path / "a.json", "a", rows)], "out")


def test_it_says_where_everything_is(reports):
    text = study_overview(reports, "out", "simulated")
    assert "simulated" in text and "out/tables" in text and "out/report/index.html" in text


def test_a_run_that_scores_nothing_says_nothing():
    assert study_overview([], "out") == ""
