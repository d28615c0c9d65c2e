"""Single records on a domain's page: the right ones, marked rightly, as text and no markup, the same every time."""

import base64
import io
import json
import re
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from answers import HOSTILE, MAKERS, helix, make_answers
from metric_files import metric_row, write_report
from scipy.spatial.transform import Rotation

from loratory import registry
from loratory.data.files import read_json
from loratory.domains.lncrna.frames import longest_frame, open_frames
from loratory.domains.recsys.views import time_text
from loratory.domains.speech import views as speech_views
from loratory.evaluation.foldseek import chain_text
from loratory.evaluation.overlays import read_overlays
from loratory.evaluation.rows import write_rows
from loratory.evaluation.structure import KnownChain, first_chain
from loratory.reporting.views import choose_systems, write_views


def shown(domain, folder, **task):
    answers, options = make_answers(domain, folder, **task)
    return registry.load_module("domain", domain, "views").show_records(answers, options)


def test_every_domain_that_shows_records_is_tried_here_and_one_without_is_none():
    assert {name for name in registry.registered_names("domain") if registry.has_views(name)} == {*MAKERS}
    assert not registry.has_views("structure") and registry.has_views("lncrna-cow")


@pytest.mark.parametrize("domain", MAKERS)
def test_what_users_wrote_is_text_and_equal_answers_give_equal_pages(domain, tmp_path):
    views = shown(domain, tmp_path)
    assert views and all(HOSTILE not in view.html for view in views)
    assert views == shown(domain, tmp_path)
    bare = "".join(re.sub(r'="[^"]*"', "", view.html) for view in views)
    for tag in {*re.findall(r"<(\w+)", bare)} - {"line", "rect", "br"}:
        assert len(re.findall(rf"<{tag}\b", bare)) == len(re.findall(rf"</{tag}>", bare)), tag


def test_the_surest_wrong_answer_stands_first_and_says_that_it_is_wrong(tmp_path):
    (view,) = shown("lncrna", tmp_path)
    cards = view.html.split("<article")[1:]
    assert [re.search("<h4>(.*?)</h4>", card)[1][:1] for card in cards] == ["c", "b", "a"]
    assert cards[0].count("✗ wrong") == 3 and cards[1].count("✓ right") == 3
    assert "0.20" in cards[0] and "noncoding" in cards[1]


def test_a_track_has_a_box_for_each_reading_frame_and_the_longest_is_marked(tmp_path):
    answers, _ = make_answers("lncrna", tmp_path)
    sequence = answers.records[0]["sequence"]
    assert longest_frame(sequence) == (2, 63) and (68, 6) in [*open_frames(sequence)]
    card = next(card for card in shown("lncrna", tmp_path)[0].html.split("<article") if "<h4>a" in card)
    titles = re.findall("<title>(.*?)</title>", card)
    assert "frame 3: 3–65, 63 nt" in titles and card.count('class="longest"') == 1
    assert len(titles) == sum(length >= 30 for _, length in open_frames(sequence))


def test_errors_are_marked_by_letters_and_words_stand_below_those_that_were_said(tmp_path):
    words, utterances = shown("speech", tmp_path)
    text = utterances.html
    assert re.findall(r'<span class="S" title="another word">(\w+)<br>(\w+)<small>S', text)[0] == ("cat", "bat")
    assert re.findall(r'<span class="I" title="not said">–<br>(\w+)<small>I', text)[0] == "on"
    assert re.findall(r'<span class="D" title="not written">(\w+)<br>–<small>D', text)[0] == "dog"
    assert "base: errors 2, words 4" in text and "control:" not in text and ">stop<" not in text
    links = {*re.findall('href="#(.*?)"', words.html)}
    assert links and links <= {*re.findall('<article class="card" id="(.*?)"', text)}


def test_a_clip_is_its_own_sound_and_there_is_no_more_of_it_than_a_page_holds(tmp_path, monkeypatch):
    answers, task = make_answers("speech", tmp_path)
    (url, *others) = re.findall(r'src="data:audio/flac;base64,(.*?)"', shown("speech", tmp_path)[1].html)
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(url)))
    assert len(others) == 1 and rate == 16_000 and len(samples) == 8_000
    assert np.abs(samples - soundfile.read(tmp_path / "tone.wav")[0][:8_000]).max() < 1e-4
    monkeypatch.setattr(speech_views, "SOUND", len(base64.b64decode(url)) + 10)
    text = speech_views.show_records(answers, task)[1].html
    assert text.count("<audio") == 1 and text.count("(no sound: a page holds") == 1


def test_a_users_past_stands_beside_the_question_with_its_days(tmp_path):
    (view,) = shown("recsys", tmp_path)
    card = view.html.split("<article")[1]
    for says in ("2001-01-01", "row 7", "5 ★", "Asked on 2001-09-09", "Liked: no (4.5 ★)", "0.80", "0.10", "✗ wrong"):
        assert says in card
    assert time_text(-86_400 * 5000) == f"{datetime.fromtimestamp(-86_400 * 5000, UTC):%Y-%m-%d}"


def test_answers_stand_beside_the_right_one_worst_first(tmp_path):
    (view,) = shown("text", tmp_path)
    cards = view.html.split("<article")[1:]
    assert [re.search("<h4>(q.)", card)[1] for card in cards] == ["q0", "q2", "q1"]
    assert all("Right answer: <b>" in card and card.count("<tr>") == 4 for card in cards)


def test_a_choice_is_shown_with_what_systems_give_the_second(tmp_path):
    answers, task = make_answers("text", tmp_path, ask="choice")
    records = [record | {"choices": [" no", " yes"], "answer": " yes"} for record in answers.records]
    rows = {system: {id: row | {"p": 0.3} for id, row in of.items()} for system, of in answers.rows.items()}
    module = registry.load_module("domain", "text", "views")
    (view,) = module.show_records(type(answers)("tiny", records, rows, "control", "lora@d"), task)
    assert view.html.count("✗ wrong") == 9 and "P(yes)" in view.html


def test_residues_of_finished_samples_stand_beside_those_of_test_records(tmp_path):
    residues, folded = shown("protein", tmp_path)
    headings = re.findall("<h4>(.*?)</h4>", residues.html)
    assert headings == ["test records: 3 sequences", "lora@d: 1 sequences"]  # base closed none, one was no protein
    assert "K: 10.0%, test records 9.2%" in residues.html
    (data,) = re.findall('<script type="application/json">(.*?)</script>', folded.html, re.DOTALL)
    assert (
        "<" not in data
        and json.loads(data)["model"].count(" CA ") == 30
        and folded.scripts == ("3Dmol-min.js", "chains.js")
    )


def test_the_base_the_best_adapter_mixture_and_control_are_shown(tmp_path):
    rows = [metric_row("base", 0.9), metric_row("a@d", 0.4), metric_row("b@d", 0.6), metric_row("mix", 0.5)]
    rows += [metric_row("z@d", None), metric_row("b@d", 0.99, metric="WER")]
    up = {"rows": rows, "control": {"system": "pooled"}}
    assert choose_systems(up) == ({"base": "base", "b@d": "adapter", "mix": "mixture", "pooled": "baseline"}, "b@d")
    down = {"rows": [row | {"direction": "down"} for row in rows], "control": None}
    assert choose_systems(down) == ({"base": "base", "a@d": "adapter", "mix": "mixture"}, "a@d")
    assert choose_systems({"rows": [metric_row("base", None)], "control": None}) == ({}, "base")


def test_views_are_read_of_files_and_only_what_was_asked_is_shown(tmp_path):
    answers, task = make_answers("lncrna", tmp_path)
    kinds = {"base": "base", "lora@d": "adapter", "control": "baseline"}
    rows = {
        system: [row | {"split": "test", "system": system, "kind": kinds[system]} for row in list(of.values())[:2]]
        for system, of in answers.rows.items()
    }
    write_rows(tmp_path / "seed0.parquet", [*rows["base"], *rows["lora@d"]])
    write_rows(tmp_path / "baselines.parquet", rows["control"])
    (tmp_path / "data").mkdir()
    pq.write_table(pa.Table.from_pylist(answers.records), tmp_path / "data" / "test.parquet")
    metrics = write_report(
        tmp_path / "m.json",
        "lncrna",
        [metric_row("base", 0.5), metric_row("lora@d", 0.6)],
        control={"system": "control"},
    )
    for name in ("one", "two"):
        write_views(
            **{"domain": "lncrna", "base": "tiny", "out": tmp_path / f"{name}.json", "task": task, "seed": 0},
            **{"predictions": tmp_path / "seed0.parquet", "baselines": tmp_path / "baselines.parquet"},
            **{"data": tmp_path / "data", "metrics": metrics},
        )
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    (view,) = read_json(tmp_path / "one.json")
    assert view["html"].count("<article") == 2 and view["html"].count("<td>") == 2 * 3 * 2


def test_the_nearest_chain_is_laid_on_the_sample(tmp_path):
    letters, atoms = "MKVLAAGIVG" * 3, helix(30)
    moved = Rotation.from_euler("xyz", [40, 60, 80], degrees=True).apply(atoms.reshape(-1, 3)) + np.array([5, -9, 30])
    record = {"id": "near", "sequence": letters, "backbone": moved.ravel().astype(np.float32)}
    pq.write_table(pa.Table.from_pylist([record]), tmp_path / "test.parquet")
    for name in ("sample-1", "sample-2"):
        path = tmp_path / "seed3" / "lora@d" / f"{name}.pdb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(chain_text(KnownChain(letters, atoms), np.linspace(40, 90, 30)))
    common = {"plddt": 65.0, "unfolded": None, "tm_longer": 1.0}
    scores = [
        {"seed": seed, "system": "lora@d", "id": f"sample-{n}", "reference": "near" if n == 1 else None, **common}
        for seed, n in ((3, 2), (3, 1), (4, 1))
    ]
    scores.append(scores[0] | {"id": "sample-0", "unfolded": "too long"})
    pq.write_table(pa.Table.from_pylist(scores), tmp_path / "scores.parquet")
    first, second = read_overlays(tmp_path / "scores.parquet", tmp_path / "test.parquet", ["base", "lora@d"], 3, 2)
    assert (first.id, first.near, second.id, second.near) == ("sample-1", "near", "sample-2", "")
    (tmp_path / "laid.pdb").write_text(first.reference)
    assert np.abs(first_chain(tmp_path / "laid.pdb") - atoms[:, 1]).max() < 0.01
    assert [line[60:66].strip() for line in first.model.splitlines() if " CA " in line][::29] == ["40.00", "90.00"]
