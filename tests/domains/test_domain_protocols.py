"""Every registered domain defines what the Protocols of `domains.contract` declare."""

import inspect
import math

import numpy as np
import pytest

from loratory.domains import contract
from loratory.domains.protein.quantities import SCALES
from loratory.evaluation.score import load_metrics
from loratory.registry import has_views, load_module, registered_names

DOMAINS = registered_names("domain")
MODULES = {
    "sources": contract.SourcesModule,
    "build": contract.BuildModule,
    "task": contract.TaskModule,
    "metrics": contract.MetricsModule,
    "simulate": contract.SimulateModule,
}
OPTIONS = {
    "Files": contract.FilesOptions,
    "Simulation": contract.SimulationOptions,
    "Dataset": contract.DatasetOptions,
    "Task": contract.TaskOptions,
}
FIND_LEAKS = [
    "held_out",
    "others",
    "dataset",
]  # the one function that is declared as an attribute, since it may be None


def protocols(domain: str) -> list[tuple[str, type]]:
    """`(part, Protocol)` that the modules of a domain have to satisfy."""
    sources = load_module("domain", domain, "sources")
    pairs = list(MODULES.items())
    if any("sample" in outputs for outputs in sources.FAMILIES.values()):
        pairs.append(("task", contract.SamplingTaskModule))
    if any("rank" in outputs for outputs in sources.FAMILIES.values()):
        pairs.append(("task", contract.RankingTaskModule))
    if sources.FOLDED:
        pairs.append(("task", contract.FoldedTaskModule))
    if "folding" in sources.FAMILIES:
        pairs.append(("metrics", contract.FoldingMetricsModule))
    if has_views(domain):
        pairs.append(("views", contract.ViewsModule))
    return pairs


def members(protocol: type) -> tuple[list[str], dict[str, list[str]]]:
    """Attributes, and {function: its parameters}, of a Protocol with those that it extends."""
    declared = {name: value for name, value in inspect.getmembers(protocol) if not name.startswith("_")}
    attributes = [name for name, value in declared.items() if isinstance(value, property)]
    functions = {
        name: [*inspect.signature(value).parameters][1:]
        for name, value in declared.items()
        if inspect.isfunction(value)
    }
    assert {*attributes, *functions} == {*declared}
    return attributes, functions


CASES = [(domain, part, protocol) for domain in DOMAINS for part, protocol in protocols(domain)]


@pytest.mark.parametrize("domain, part, protocol", CASES, ids=lambda value: getattr(value, "__name__", value))
def test_a_domains_module_has_every_member_with_the_declared_parameters(domain, part, protocol):
    module = load_module("domain", domain, part)
    attributes, functions = members(protocol)
    assert [name for name in [*attributes, *functions] if not hasattr(module, name)] == []
    found = {name: [*inspect.signature(getattr(module, name)).parameters] for name in functions}
    assert found == functions
    if "find_leaks" in attributes and module.find_leaks is not None:
        assert [*inspect.signature(module.find_leaks).parameters] == FIND_LEAKS


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_domains_options_extend_those_of_the_contract(domain):
    sources = load_module("domain", domain, "sources")
    assert all(issubclass(getattr(sources, name), base) for name, base in OPTIONS.items())
    assert isinstance(sources.AUDIO, bool) and isinstance(sources.FOLDED, bool)


QUESTIONS = {  # options of a task that puts each of a domain's questions, where it has several
    "protein": [
        {},
        {"ask": "generate", "label": "ec"},
        {"ask": "determine", "label": "ec"},
        {"ask": "calculate"},
        {"ask": "design"},
    ],
    "text": [{}, {"ask": "choice"}],
}
ASKED = [
    (domain, load_module("domain", domain, "sources").Task(**options))
    for domain in DOMAINS
    for options in QUESTIONS.get(domain, [{}])
]


@pytest.mark.parametrize("domain, task", ASKED, ids=lambda value: getattr(value, "question", value))
def test_a_question_of_a_domain_has_one_primary_metric_and_at_most_one_loss(domain, task):
    metrics = load_metrics(domain, task).METRICS
    assert all(isinstance(metric, contract.Metric) for metric in metrics)
    assert sum(metric.primary for metric in metrics) == 1 and sum(metric.loss for metric in metrics) <= 1
    assert len({metric.name for metric in metrics}) == len(metrics)


MORE_IS_BETTER = {
    "protein": {
        *("validity", "uniqueness", "novelty", "diversity", "plddt"),
        *("plddt_to_100", "plddt_101_300", "plddt_over_300"),
        *("tm_longer", "tm_query", "tm_reference"),
        *(
            "accuracy",
            "within_tolerance",
            "answered",
            "exact",
            "classifier_accuracy",
            "agreement",
            "control",
            "success",
        ),
        *(f"r2_{name}" for name in SCALES),
        *(f"error_{name}_permuted" for name in SCALES),
    },
    "lncrna": {
        *("auc", "auc_length_matched", "auprc", "mcc", "f1", "accuracy"),
        *("auc_to_500", "auc_501_2000", "auc_over_2000"),
        *("precision", "recall", "specificity", "balanced_accuracy"),
    },
    "speech": set(),
    "recsys": {
        *("auc", "gauc", "accuracy", "auc_cold_users", "auc_warm_users", "auc_short_past", "auc_mid_past"),
        *("auc_long_past", "auc_rare_items", "auc_mid_items", "auc_popular_items", "hit_rate_10", "ndcg_10", "mrr"),
    },
    "structure": {"spearman", "chain_spearman", "lddt", "plddt", "tm_score", "self_consistency"},
    "text": {"token_f1", "exact_match", "accuracy"},
}


@pytest.mark.parametrize("domain", DOMAINS)
def test_more_is_better_of_scores_and_less_of_losses_and_errors(domain):
    metrics = load_module("domain", domain, "metrics").METRICS
    assert {metric.name for metric in metrics if metric.direction == "up"} == MORE_IS_BETTER[domain]
    assert {metric.sign for metric in metrics if metric.direction == "down"} <= {-1}


@pytest.mark.parametrize("domain", DOMAINS)
def test_what_learning_rates_are_chosen_by_is_a_loss_of_the_domain(domain):
    losses = [metric for metric in load_module("domain", domain, "metrics").METRICS if metric.loss]
    assert [(metric.name, metric.direction) for metric in losses] == LOSSES.get(domain, [])


LOSSES = {
    "protein": [("nll_per_residue", "down"), ("nll_per_answer", "down")],
    "lncrna": [("log_loss", "down")],
    "recsys": [("log_loss", "down")],
    "text": [("nll_per_token", "down"), ("log_loss", "down")],
}
N = 6
HALF = np.arange(N) % 2
COLUMNS = {  # of N sound records each
    "protein": {
        **{"nll": 3.0 + np.arange(N), "residues": np.full(N, 2.0), "valid": HALF * 1.0, "truncated": HALF * 1.0},
        **{"cluster": np.ones(N), "novelty": 0.1 * np.arange(N), "shorter": np.zeros(N), "no_longer": np.ones(N)},
        **{"distinct": np.ones(N), "plddt": 50.0 + np.arange(N), "length": np.array([50, 60, 150, 160, 400, 500.0])},
        **{f"tm_{length}": 0.1 * np.arange(N) for length in ("longer", "query", "reference")},
        **dict.fromkeys(("answered", "right", "exact", "agrees", "agrees_permuted", "succeeds"), HALF * 1.0),
        **{f"{kind}_{name}": 0.1 * np.arange(N) for kind in ("truth", "permuted") for name in SCALES},
        **{f"value_{name}": np.ones(N) for name in SCALES},
    },
    "lncrna": {
        **{"label": HALF, "p": 0.1 + 0.1 * np.arange(N), "matched": np.ones(N, bool)},
        **{"length": np.array([100, 200, 600, 700, 3000, 4000])},
    },
    "recsys": {
        **{"label": HALF, "p": 0.1 + 0.1 * np.arange(N), "user": np.arange(N) // 2, "warm": HALF[[0, 2, 1, 0, 1, 3]]},
        **{"past": np.array([1, 2, 20, 21, 60, 61]), "item_past": np.array([0, 0, 5, 5, 9, 9])},
        **{"above": 1.0 * np.arange(N), "tied": np.zeros(N)},
    },
    "structure": {
        "plddt": np.fromiter((50.0 + np.arange(3) * k for k in range(N)), object),
        "lddt": np.fromiter((40.0 + np.arange(3) + k for k in range(N)), object),
        "spearman": 0.1 * np.arange(N),
        "tm": 0.1 * np.arange(N),
        "rmsd": 1.0 + np.arange(N),
    },
    "text": {
        **{"nll": 3.0 + np.arange(N), "tokens": np.full(N, 2.0), "exact": HALF * 1.0, "f1": 0.1 * np.arange(N)},
        **{"label": HALF, "p": 0.1 + 0.1 * np.arange(N)},
    },
}
CELLS = [(domain, metric) for domain in COLUMNS for metric in load_module("domain", domain, "metrics").METRICS]


@pytest.mark.parametrize("domain, metric", CELLS, ids=lambda value: getattr(value, "name", value))
def test_a_metric_leaves_out_no_record_that_it_counts(domain, metric):
    """Of a record without a value, either `where` says so, or the metric has no value."""
    given = COLUMNS[domain]
    whole = metric.compute_value(given)
    assert math.isfinite(whole)
    for name, column in given.items():
        if column.dtype != float:
            continue
        broken = given | {name: np.r_[math.nan, column[1:]]}
        counted = np.arange(N)[metric.row_selection(broken)]
        value = metric.compute_value(broken)
        if 0 in counted:
            assert math.isnan(value) or value == whole, f"{name} is left out in silence"
        elif 0 in (own := np.arange(N)[metric.row_selection(given)]):
            rest = {key: each[1:] for key, each in given.items()}
            assert value == metric.compute_value(rest) and len(counted) == len(own) - 1
        else:
            assert value == whole, "a record that is not counted changes the value"


@pytest.mark.parametrize("domain, metric", CELLS, ids=lambda value: getattr(value, "name", value))
def test_a_metric_that_tells_classes_apart_says_so(domain, metric):
    """Where one class is missing it has no value; what is defined for one class needs no second."""
    given = COLUMNS[domain]
    if "label" in given:
        one_class = given | {"label": np.zeros(N, int)}
        # `where` may name the rows of the other class, or the users with both
        nothing_left = metric.where is not None and not metric.where(one_class).any()
        assert math.isnan(metric.compute_value(one_class)) == (metric.classes is not None or nothing_left)


def test_a_function_of_a_protocol_is_found_in_it():
    attributes, functions = members(contract.FoldedTaskModule)
    assert attributes == []
    assert functions == {
        "sample_residues": ["text"],
        "sample_prompts": ["test", "n", "task", "family"],
        "sample_baselines": ["test", "n", "task"],
        "examples": ["records", "task", "family"],
        "baselines": ["train", "held_out", "task"],
    }
    assert members(contract.BuildModule)[0] == ["COLUMNS", "DISTINCT", "find_leaks", "group"]
