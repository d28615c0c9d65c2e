"""Every registered domain defines what the Protocols of `domains.contract` declare."""

import inspect

import pytest

from loratory.domains import contract
from loratory.registry import load_module, registered_names

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
    if sources.FOLDED:
        pairs.append(("task", contract.FoldedTaskModule))
    if "folding" in sources.FAMILIES:
        pairs.append(("metrics", contract.FoldingMetricsModule))
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


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_domain_has_one_primary_metric(domain):
    metrics = load_module("domain", domain, "metrics").METRICS
    assert sum(metric.primary for metric in metrics) == 1
    assert all(isinstance(metric, contract.Metric) for metric in metrics)


def test_a_function_of_a_protocol_is_found_in_it():
    attributes, functions = members(contract.FoldedTaskModule)
    assert attributes == []
    assert functions == {
        "sample_residues": ["text"],
        "sample_prompts": ["n", "task", "family"],
        "sample_baselines": ["test", "n", "task"],
        "examples": ["records", "task", "family"],
        "baselines": ["train", "held_out", "task"],
    }
    assert members(contract.BuildModule)[0] == ["COLUMNS", "find_leaks"]
