"""Proteins by their labels and by what follows from them: formats, judges and controls, against values known by
construction."""

import json
import math
import random
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from loratory.data.alphabets import RESIDUES
from loratory.domains.dataset import audit_split, build_dataset, read_split
from loratory.domains.protein import metrics, task
from loratory.domains.protein.classifier import permuted_agreement, train_classifier
from loratory.domains.protein.quantities import compute_quantities, read_numbers, write_numbers
from loratory.domains.protein.questions import read_label
from loratory.domains.protein.sources import Dataset, Files, Task
from loratory.errors import InputError
from loratory.evaluation.baselines import predict_baselines
from loratory.evaluation.rows import write_rows
from loratory.evaluation.score import Floor, load_metrics, score_domain

GENERATE, DETERMINE = (Task(ask=ask, label="superfamily", min_label=3) for ask in ("generate", "determine"))
CALCULATE, DESIGN = (Task(ask=ask) for ask in ("calculate", "design"))
HALVES = {"Alpha": "ACDEFGHIKL", "Beta": "MNPQRSTVWY"}  # a label: the residues that its proteins are made of


def letters(label: str, seed: int, length: int = 50) -> str:
    """A protein that nobody could mistake for one of the other label."""
    rng = random.Random(f"{label} {seed}")
    return "".join(rng.choice(HALVES[label]) for _ in range(length))


def record(id: str, label: str | None, sequence: str, group: str = "") -> dict:
    labels = [] if label is None else [f"superfamily={label}"]
    return {"id": id, "group": group or id, "sequence": sequence, "labels": labels}


def records(prefix: str, n: int, label: str | None = None) -> list[dict]:
    names = [*HALVES] if label is None else [label]
    pairs = [(names[i % len(names)], i) for i in range(n)]
    return [record(f"{prefix}{i}", name, letters(name, hash_of(prefix, i))) for name, i in pairs]


def hash_of(prefix: str, i: int) -> int:
    return 1000 * sum(map(ord, prefix)) + i


def sample_row(number: int, asked: str, text: str) -> dict:
    name = f"sample-{number:04d}"
    return dict.fromkeys(("nll", "tokens", "p")) | {"id": name, "group": name, "reference": asked, "text": text}


def answer_row(of: dict, text: str) -> dict:
    return dict.fromkeys(("nll", "tokens", "p")) | {
        "id": of["id"],
        "group": of["group"],
        "reference": "",
        "text": text,
    }


def values(asked: Task, rows, known) -> dict[str, float]:
    columns = metrics.columns(rows, known, asked)
    return {metric.name: metric.compute_value(columns) for metric in load_metrics("protein", asked).METRICS}


# formats


@pytest.mark.parametrize(
    ("asked", "prompt", "target"),
    [
        (GENERATE, "[Generate by superfamily] Superfamily=<CheY-like superfamily> Seq=<", "MKV>"),
        (DETERMINE, "[Determine superfamily] Seq=<MKV>", " Superfamily=<CheY-like superfamily>"),
        (Task(ask="calculate", quantities=("weight", "pi")), "CalculateWeightPI<MKV>", " [0.38,8.50]"),
        (Task(ask="design", quantities=("gravy",)), "GenerateGravy<0.73> Seq=<", "MKV>"),
    ],
    ids=["generate", "determine", "calculate", "design"],
)
def test_a_question_and_its_answer_are_written_as_the_format_says(asked, prompt, target):
    [example] = task.examples([record("a", "CheY-like superfamily", "MKV")], asked, "causal")
    assert (example.prompt, example.target, example.alphabet) == (prompt, target, ())
    assert (example.id, example.group) == ("a", "a")


def test_a_designed_or_generated_sequence_may_be_written_in_letters():
    for options in ({"ask": "generate", "label": "superfamily"}, {"ask": "design"}):
        asked = Task(tokens="letters", **options)
        [example] = task.examples([record("a", "x", "MKV")], asked, "causal")
        assert example.alphabet == (*RESIDUES, ">") and not {*example.target} - {*example.alphabet}


def test_only_records_with_exactly_one_label_are_asked_about():
    several = record("c", "Alpha", "MKV") | {"labels": ["superfamily=Alpha", "superfamily=Beta"]}
    given = [record("a", "Alpha", "MKV"), record("b", None, "MKV"), several]
    for asked in (GENERATE, DETERMINE):
        assert [example.id for example in task.examples(given, asked, "causal")] == ["a"]
        assert {row["id"] for rows in task.baselines(records("t", 8), given, asked).values() for row in rows} == {"a"}
    with pytest.raises(
        InputError, match=r"task\.label: none of 2 records has exactly one value of it \(superfamily\)"
    ):
        task.examples(given[1:], GENERATE, "causal")


def test_a_masked_base_is_asked_for_nothing_but_the_sequence():
    for asked in (GENERATE, DETERMINE, CALCULATE, DESIGN):
        with pytest.raises(InputError, match=r"task\.ask: a masked base writes no answer"):
            task.examples([record("a", "Alpha", "MKV")], asked, "masked")


def test_what_samples_are_asked_for_is_what_natural_ones_have():
    test = [*records("e", 9, "Alpha"), *records("f", 3, "Beta")]
    prompts = task.sample_prompts(test, 8, GENERATE, "causal")
    assert [prompt.asked for prompt in prompts].count("Alpha") == 4
    assert all(prompt.target == "" and f"=<{prompt.asked}> Seq=<" in prompt.prompt for prompt in prompts)
    natural = task.sample_baselines(test[::-1], 8, GENERATE)["natural"]
    assert [(row["id"], row["reference"]) for row in natural] == [(each.id, each.asked) for each in prompts]
    label = {each["sequence"] + ">": each["labels"][0].partition("=")[2] for each in test}
    assert all(label[row["text"]] == row["reference"] for row in natural)
    texts = [row["text"] for row in natural if row["reference"] == "Beta"]
    assert len(texts) == 4 and len({*texts}) == 3  # the fourth comes again


# labels: judge and controls


def test_agreement_is_the_judges_on_valid_samples_and_success_counts_all():
    train = records("t", 20)
    right, wrong, cut = letters("Alpha", 1) + ">", letters("Beta", 1) + ">", letters("Alpha", 2)
    rows = [sample_row(1, "Alpha", right), sample_row(2, "Alpha", wrong), sample_row(3, "Alpha", cut)]
    rows += [sample_row(4, "Beta", letters("Beta", 2) + ">")]
    found = values(GENERATE, rows, train)
    assert found["validity"] == 3 / 4
    assert found["agreement"] == pytest.approx(2 / 3)
    assert found["success"] == 2 / 4
    # dealt out anew over the three valid ones, Alpha stands in 2 of 3 places and Beta in 1 of 3
    assert found["agreement_permuted"] == pytest.approx((2 / 3 + 1 / 3 + 1 / 3) / 3)


def test_permuted_agreement_is_the_mean_over_all_permutations():
    rng = np.random.default_rng(0)
    predicted, asked = (dict(enumerate(rng.choice(list("abc"), 7).tolist())) for _ in range(2))
    drawn = [
        np.mean([p == a for p, a in zip(predicted.values(), rng.permutation([*asked.values()]))]) for _ in range(4000)
    ]
    assert np.mean(list(permuted_agreement(predicted, asked).values())) == pytest.approx(np.mean(drawn), abs=0.01)


def test_a_model_that_ignores_the_label_is_at_its_permuted_control():
    rows = [sample_row(i, [*HALVES][i % 2], letters("Alpha", i) + ">") for i in range(20)]
    found = values(GENERATE, rows, records("t", 20))
    assert found["agreement"] == found["agreement_permuted"] == 0.5 and found["control"] == 0


def test_a_label_of_few_train_records_is_neither_learnt_nor_scored():
    train = [*records("t", 20), record("r1", "Rare", letters("Alpha", 7)), record("r2", "Rare", letters("Alpha", 8))]
    assert train_classifier(train, "superfamily", 3).labels == ["Alpha", "Beta"]
    assert train_classifier(train, "superfamily", 30) is None
    rows = [sample_row(1, "Rare", letters("Alpha", 1) + ">"), sample_row(2, "Alpha", letters("Alpha", 2) + ">")]
    columns = metrics.columns(rows, train, GENERATE)
    assert np.isnan(columns["succeeds"]).tolist() == [True, False]
    none = values(Task(ask="generate", label="superfamily", min_label=30), rows, train)
    assert math.isnan(none["agreement"]) and math.isnan(none["success"]) and none["validity"] == 1


def test_the_judge_is_judged_on_held_out_records_of_the_labels_that_it_knows():
    held_out = [
        *records("h", 6),
        record("rare", "Rare", letters("Alpha", 3)),
        record("odd", "Alpha", letters("Beta", 9)),
    ]
    rows = task.baselines(records("t", 20), held_out, GENERATE)["classifier"]
    assert [row["text"] for row in rows if row["id"] == "rare"] == [""]
    assert values(GENERATE, rows, held_out)["classifier_accuracy"] == pytest.approx(6 / 7)


def test_a_control_that_reads_the_label_knows_its_residues():
    train, held_out = records("t", 40), [*records("h", 4), record("new", "Unseen", letters("Alpha", 5))]
    rows = task.baselines(train, held_out, GENERATE)
    assert [*rows] == ["residue_frequency", "trigram", "label_trigram", "classifier"]
    nll = {name: {row["id"]: row["nll"] for row in own} for name, own in rows.items()}
    assert all(nll["label_trigram"][f"h{i}"] < nll["trigram"][f"h{i}"] for i in range(4))
    assert nll["label_trigram"]["new"] == nll["trigram"]["new"]


def test_an_answer_that_names_the_label_in_another_format_is_no_answer():
    known = records("h", 4)
    texts = [" Superfamily=<Alpha>", "Superfamily=<Alpha> ", " Superfamily=<Alpha", "Alpha"]
    found = values(DETERMINE, [answer_row(of, text) for of, text in zip(known, texts)], known)
    assert (found["accuracy"], found["answered"]) == (1 / 4, 2 / 4)
    assert read_label("Superfamily=<a><b>", DETERMINE) is None


def test_without_a_language_model_labels_are_told_by_frequency_and_by_kmers():
    train, held_out = records("t", 21), records("h", 10)
    found = task.baselines(train, held_out, DETERMINE)
    accuracy = {system: values(DETERMINE, rows, held_out)["accuracy"] for system, rows in found.items()}
    assert accuracy == {"majority": 0.5, "kmer_regression": 1}
    assert {row["text"] for row in found["majority"]} == {"Superfamily=<Alpha>"}


# what follows from a sequence


def test_quantities_are_those_of_protparam_and_of_the_textbook():
    """Glycine: 75.067 Da, hydropathy −0.4; each peptide bond takes a water of 18.015 Da off."""
    weight, gravy = compute_quantities("GGG", ("weight", "gravy"))
    assert weight == pytest.approx((3 * 75.067 - 2 * 18.015) / 1000, abs=1e-5)
    assert gravy == pytest.approx(-0.4)
    # ubiquitin as ExPASy's ProtParam has it
    ubiquitin = "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLVLRLRGG"
    assert compute_quantities(ubiquitin, ("weight",))[0] == pytest.approx(8.5648, abs=1e-3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" [10.43,-0.31]", [10.43, -0.31]),
        ("[10,0]", [10, 0]),
        ("[10.43]", None),
        ("[10.43,-0.31,2]", None),
        ("10.43,-0.31", None),
        ("[10.43,x]", None),
        ("[10.43,-0.31] kDa", None),
        ("[1e3,2]", None),
        ("", None),
    ],
)
def test_an_answer_is_as_many_numbers_in_brackets_as_were_asked_for(text, expected):
    assert read_numbers(text, 2) == expected


def test_written_numbers_are_read_back_and_zero_has_no_sign():
    assert write_numbers([10.4349, -0.001, 7]) == "10.43,0.00,7.00"


def test_answers_are_held_against_what_is_computed():
    asked = Task(ask="calculate", quantities=("weight", "gravy"))
    known = [record(f"h{i}", None, letters("Alpha", i, 30 + i)) for i in range(3)]
    truths = [compute_quantities(each["sequence"], asked.quantities) for each in known]
    texts = [
        f" [{write_numbers(truths[0])}]",
        f" [{write_numbers([truths[1][0] + 0.9, truths[1][1]])}]",
        f" [{write_numbers([truths[2][0], truths[2][1] + 0.5])}",
    ]
    found = values(asked, [answer_row(of, text) for of, text in zip(known, texts)], known)
    assert (found["within_tolerance"], found["exact"], found["answered"]) == (2 / 3, 1 / 3, 2 / 3)
    assert found["error_weight"] == pytest.approx(0.45, abs=0.01)
    assert found["error_gravy"] == pytest.approx(0, abs=0.005)
    assert math.isnan(found["error_pi"])
    weights = np.array([truth[0] for truth in truths[:2]])
    assert found["r2_weight"] == pytest.approx(1 - 0.9**2 / np.square(weights - weights.mean()).sum(), abs=3)


def test_the_mean_of_train_explains_nothing_and_composition_explains_what_is_linear_in_it():
    train, held_out = ([record(f"{p}{i}", None, mixed(p, i)) for i in range(n)] for p, n in (("t", 120), ("h", 30)))
    found = {
        system: values(CALCULATE, rows, held_out)
        for system, rows in task.baselines(train, held_out, CALCULATE).items()
    }
    assert [*found] == ["train_mean", "composition"]
    assert all(each["answered"] == 1 for each in found.values())
    assert found["train_mean"]["r2_weight"] <= 0
    assert found["composition"]["r2_weight"] > 0.999 and found["composition"]["r2_gravy"] > 0.99
    assert found["composition"]["within_tolerance"] >= found["train_mean"]["within_tolerance"]


def mixed(prefix: str, i: int) -> str:
    rng = random.Random(f"{prefix} {i}")
    return "".join(rng.choices(RESIDUES, k=rng.randint(40, 90)))


def test_designs_are_held_against_what_was_asked_and_against_what_was_not():
    asked = Task(ask="design", quantities=("gravy",), min_length=3)
    rows = [sample_row(1, "-0.40", "GTAGSTGKNSGP>"), sample_row(2, "1.80", "AVLAGLIAVMCA>")]
    rows += [sample_row(3, "1.80", "AVLAGLIA")]
    truths = [-0.4, 1.8]
    realised = [compute_quantities(row["text"][:-1], ("gravy",))[0] for row in rows[:2]]
    found = values(asked, rows, [])
    assert found["validity"] == pytest.approx(2 / 3)
    errors = [abs(value - truth) for value, truth in zip(realised, truths)]
    assert found["error_gravy"] == pytest.approx(np.mean(errors))
    assert found["error_gravy_permuted"] == pytest.approx(np.mean([abs(v - t) for v in realised for t in truths]))
    assert found["success"] == pytest.approx(sum(error <= 0.1 for error in errors) / 3)


def test_natural_sequences_have_what_they_are_asked_for():
    test = [record(f"h{i}", None, mixed("n", i)) for i in range(12)]
    rows = task.sample_baselines(test, 12, DESIGN)["natural"]
    found = values(DESIGN, rows, [])
    assert found["success"] == 1 and found["error_instability"] < 0.01 < found["error_instability_permuted"]


# a whole run without a model


def labelled_dataset(folder: Path) -> tuple[Path, Dataset]:
    pairs = [([*HALVES][i % 2], i) for i in range(120)]
    (folder / "in.fasta").write_text("".join(f">P{i}\n{letters(label, i, 60)}\n" for label, i in pairs))
    (folder / "labels.tsv").write_text("Entry\tFamily\n" + "".join(f"P{i}\t{label}\n" for label, i in pairs))
    dataset = Dataset(labels={"superfamily": {"column": "Family"}})
    files = Files(fasta=str(folder / "in.fasta"), labels=str(folder / "labels.tsv"))
    build_dataset("protein", files, dataset, 0, folder / "data")
    audit_split("protein", folder / "data", dataset, folder / "audit.json")
    return folder / "data", dataset


@pytest.fixture
def unsearched(monkeypatch):
    """Samples are not compared with each other and with train, which takes seconds and is tested elsewhere."""
    monkeypatch.setattr(metrics, "compare_samples", lambda samples, train: {})


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    return labelled_dataset(tmp_path_factory.mktemp("labelled"))[0]


def scored(built: Path, folder: Path, asked: Task, floor: int = 2, samples: int = 12) -> dict[tuple, dict]:
    """{(system, metric): row} of the baselines, whose `natural` samples a base repeats."""
    predict_baselines("protein", built, asked, None, 50, samples, folder / "b.parquet")
    rows = pq.read_table(folder / "b.parquet").to_pylist()
    echo = [
        row | {"system": "base", "kind": "base"}
        for row in rows
        if row["system"] in ("natural", "kmer_regression", "trigram", "composition")
    ]
    write_rows(folder / "seed0.parquet", echo)
    limits = Floor(floor, 1)
    score_domain(
        "protein",
        "mini",
        {0: folder / "seed0.parquet"},
        folder / "b.parquet",
        built,
        asked,
        None,
        100,
        0,
        limits,
        folder / "m.json",
    )
    report = json.loads((folder / "m.json").read_text())
    return {(row["system"], row["metric"]): row for row in report["rows"] if row["split"] != "valid"}


def test_control_is_printed_beside_its_pass_rate_its_permutation_and_the_judges_own_accuracy(
    built, tmp_path, unsearched
):
    found = scored(built, tmp_path, GENERATE)
    for metric in ("agreement", "agreement_permuted", "control", "validity", "success"):
        assert found["natural", metric]["status"] == "ok"
    assert found["natural", "agreement"]["value"] == 1 > found["natural", "agreement_permuted"]["value"]
    assert found["permuted", "agreement"]["value"] == 1  # composition is all that these labels are
    assert found["classifier", "classifier_accuracy"]["value"] == 1
    assert found["classifier", "classifier_accuracy"]["n"] == len(read_split(built, "test"))
    assert [metric for system, metric in found if system == "base" and found[system, metric]["primary"]] == [
        "nll_per_residue"
    ]
    assert {found["natural", f"success: {label}"]["n"] for label in HALVES} == {6}


def test_labels_below_the_floor_print_no_number(built, tmp_path, unsearched):
    found = scored(built, tmp_path, GENERATE, floor=7)
    assert not [metric for _, metric in found if metric.startswith("success: ")]
    assert found["natural", "success"]["n"] == 12


def test_questions_with_answers_are_ranked_by_them(built, tmp_path):
    found = scored(built, tmp_path, DETERMINE)
    assert found["kmer_regression", "accuracy"]["primary"] and found["kmer_regression", "accuracy"]["value"] == 1
    assert [found["kmer_regression", f"accuracy: {label}"]["value"] for label in HALVES] == [1, 1]
    assert {found["majority", f"accuracy: {label}"]["value"] for label in HALVES} == {0, 1}
    assert {row["split"] for row in found.values()} == {"test"}
    found = scored(built, tmp_path, CALCULATE)
    assert [m for s, m in found if s == "base" and found[s, m]["primary"]] == ["within_tolerance"]
    assert found["composition", "r2_weight"]["value"] > found["train_mean", "r2_weight"]["value"]
