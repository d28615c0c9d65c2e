"""What a training is said to cost: operations by hand, and a count that leaves the run as it was."""

from types import SimpleNamespace

import pytest
import torch
from families import FAMILIES, begin, train
from torch import nn
from torch.utils import flop_counter

from loratory.adapters import core
from loratory.adapters.methods.full_ft import Method as Whole
from loratory.adapters.methods.lora import Method as Lora
from loratory.config import adapter_entry
from loratory.training import costs
from loratory.training.encoding import padded_positions
from loratory.training.job import Job
from loratory.training.sweep import train_one


class OneLayer:
    """A base of one frozen linear layer without heads, on examples of three lengths."""

    heads = ()

    def __init__(self):
        self.model = nn.Sequential(nn.Linear(8, 4, bias=False)).requires_grad_(False)
        self.items = [SimpleNamespace(length=length) for length in (2, 3, 5, 5)]

    def collate(self, items):
        size = len(items) * max(item.length for item in items)
        return {"x": torch.ones(size, 8), "ids": torch.ones(size)}

    def training_batch(self, items, draw):
        return self.collate(items)

    def loss(self, model, batch):
        return model(batch["x"]).sum(), len(batch["x"])


def session_of(base, method, steps=5):
    return begin(base, method, steps=steps)


def test_positions_are_those_of_the_batches():
    session = session_of(OneLayer(), Lora(rank=2), steps=7)
    for step in range(7):
        assert padded_positions(session.batch_examples(step)) == len(session.batch(step)["ids"])


def test_operations_are_those_of_the_products():
    """Forward 2 ops a weight; backward the same for each trained weight and for each input that needs a gradient."""
    session = session_of(OneLayer(), Lora(rank=2))
    n = len(session.batch(0)["ids"])
    base, a, b = (2 * n * size for size in (8 * 4, 8 * 2, 2 * 4))
    assert costs.first_batch_flops(session) == base + 2 * a + 3 * b  # neither W nor the first input has a gradient


def test_operations_grow_with_steps_and_with_other_passes():
    session = session_of(OneLayer(), Lora(rank=2))
    first = len(session.batch(0)["ids"])
    each = costs.first_batch_flops(session) / first
    assert costs.total_flops(session, 77) == pytest.approx(each * 77)
    session.loss(session.batch(0))
    assert session.positions == first
    assert costs.total_flops(session, 77) == pytest.approx(each * (77 + first))


def test_a_weight_that_is_trained_costs_more_than_one_beside_it():
    counts = []
    for method in (Lora(rank=2), Whole()):
        toy = FAMILIES["llama"]()
        counts.append(costs.first_batch_flops(begin(toy, method)))
    assert counts[0] < counts[1]


def test_counting_moves_no_parameter_and_leaves_no_gradient(tmp_path):
    toy = FAMILIES["llama"]()
    session = train(toy, Lora(rank=2), tmp_path)
    before = {name: p.detach().clone() for name, p in toy.model.named_parameters()}
    costs.first_batch_flops(session)
    after = dict(toy.model.named_parameters())
    assert all(torch.equal(after[name], before[name]) and after[name].grad is None for name in before)
    core.detach(toy.model)


def test_an_operation_that_cannot_be_counted_costs_a_figure_and_not_the_training(tmp_path, monkeypatch, capsys):
    """As torch 2.11 refuses grouped-query attention; here it is the last product of the backward pass."""
    product, limit, calls = torch.ops.aten.mm, float("inf"), []
    count = flop_counter.flop_registry[product]

    def refuse(*args, **options):
        calls.append(1)
        if len(calls) == limit:
            raise AssertionError("shapes are incompatible")
        return count(*args, **options)

    monkeypatch.setitem(flop_counter.flop_registry, product, refuse)

    def trained(folder):
        toy, entry = (
            FAMILIES["llama"](),
            adapter_entry({"method": "lora", "training": {"steps": 2, "batch_tokens": 24}}),
        )
        sets = {"train": toy.items, "valid": toy.items}
        found = train_one(toy, sets, entry, 0, 0.01, Job("cpu", tmp_path / folder, "toy"))
        assert all(parameter.grad is None for parameter in toy.model.parameters())
        return found

    expected = trained("counted")
    limit = len(calls)
    calls.clear()
    found = trained("refused")
    assert expected["flops"] > 0 and found["flops"] is None
    assert "operations are not counted: shapes are incompatible" in capsys.readouterr().out
    assert all(torch.equal(found["adapter"].deltas[name].B, d.B) for name, d in expected["adapter"].deltas.items())


def test_peak_memory_is_not_guessed_on_a_cpu():
    assert costs.PeakMemory(nn.Linear(2, 2)).peak_bytes() is None
