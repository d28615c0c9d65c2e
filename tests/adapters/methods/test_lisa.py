"""LISA (arXiv:2403.17919)."""

import pytest
import torch
from families import FAMILIES, Toy, begin, train
from methods.rows import Row
from methods.test_full_ft import body
from models import llama
from scipy.stats import chisquare

from loratory.adapters import core
from loratory.adapters.methods import full_ft
from loratory.adapters.methods.lisa import Method, sample_layers, transformer_layers
from loratory.errors import InputError

# A period of 3 makes the matrix resume at step 4, in the middle of one.
ROW = Row({"layers": 1, "period": 3}, lambda shapes, model: body(model))


def deep() -> Toy:
    return Toy(lambda: llama(60, num_hidden_layers=4), 28)


class Watched(Method):
    """Notes after each step which of the layers required a gradient and what every parameter was."""

    def after_step(self, session, step):
        parameters = dict(session.model.named_parameters())
        session.active = [*getattr(session, "active", []), {n for n, p in parameters.items() if p.requires_grad}]
        session.states = [*getattr(session, "states", []), {n: p.detach().clone() for n, p in parameters.items()}]


def layer_numbers(names) -> set[int]:
    return {int(name.split(".")[2]) for name in names if name.startswith("model.layers.")}


OUTSIDE = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}


def test_so_many_layers_and_all_outside_them_are_trained_for_a_period(tmp_path):
    session = train(deep(), Watched(layers=2, period=3), tmp_path, steps=12)
    chosen = [layer_numbers(active) for active in session.active]
    assert all(len(numbers) == 2 for numbers in chosen)
    assert all(active >= OUTSIDE for active in session.active)
    assert all(chosen[step] == chosen[step - step % 3] == sample_layers(0, step // 3, 4, 2) for step in range(12))
    assert len({frozenset(numbers) for numbers in chosen}) > 1


@pytest.mark.parametrize("reset", [True, False])
def test_resting_layers_stay_bit_for_bit_despite_decay_and_momentum_and_the_outside_moves(reset, tmp_path):
    session = train(deep(), Watched(layers=2, period=2, reset_state=reset), tmp_path, steps=10)
    rested_after_training = set()
    for step in range(1, 10):
        before, now = session.states[step - 1], session.states[step]
        moved = {name for name in now if not torch.equal(now[name], before[name])}
        assert moved == session.active[step]
        rested_after_training |= session.active[step - 1] - moved
    assert rested_after_training, "no layer was put to rest: the test shows nothing"


def test_every_layer_is_drawn_equally_often():
    draws = [layer for period in range(600) for layer in sample_layers(3, period, 6, 2)]
    assert len(draws) == 1200
    assert chisquare([draws.count(layer) for layer in range(6)]).pvalue > 0.01


def test_with_all_layers_and_kept_moments_it_is_full_fine_tuning(tmp_path):
    full, lisa = deep(), deep()
    train(full, full_ft.Method(), tmp_path / "full")
    train(lisa, Method(layers=4, period=2, reset_state=False), tmp_path / "lisa")
    assert all(torch.equal(a, b) for a, b in zip(full.model.parameters(), lisa.model.parameters()))


def test_moments_are_held_for_active_parameters_alone(tmp_path):
    toy = deep()
    session = train(toy, Watched(layers=1, period=2), tmp_path, steps=8)
    names = {p: name for name, p in toy.model.named_parameters()}
    held = {names[p] for p, state in session.optimizing.state.items() if state}
    assert held == session.active[-1]
    assert {float(state["step"]) for state in session.optimizing.state.values()} == {2.0}


def test_kept_moments_are_those_of_every_layer_that_was_trained(tmp_path):
    toy = deep()
    session = train(toy, Watched(layers=1, period=2, reset_state=False), tmp_path, steps=8)
    assert len(session.optimizing.state) == len(set().union(*session.active)) > len(session.active[-1])


@pytest.mark.parametrize(
    ("family", "layers"),
    {
        "llama": ["model.layers.0", "model.layers.1"],
        "gpt2": ["transformer.h.0", "transformer.h.1"],
        "bert": ["bert.encoder.layer.0", "bert.encoder.layer.1"],
        "whisper": ["model.encoder.layers.0", "model.decoder.layers.0"],
    }.items(),
)
def test_the_transformer_layers_are_found_in_every_family(family, layers):
    model = FAMILIES[family]().model
    names = {module: name for name, module in model.named_modules()}
    assert [names[layer] for layer in transformer_layers(model)] == layers


def test_lists_inside_a_layer_and_stacks_of_convolutions_are_no_layers():
    experts = torch.nn.ModuleDict({"experts": torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(3))})
    model = torch.nn.ModuleDict(
        {
            "convolutions": torch.nn.ModuleList(torch.nn.Conv1d(2, 2, 1) for _ in range(9)),
            "layers": torch.nn.ModuleList([experts, torch.nn.Linear(2, 2)]),
        }
    )
    assert transformer_layers(model) == list(model["layers"])


def test_more_layers_than_there_are_is_refused():
    with pytest.raises(InputError, match=r"more `layers` than the base has \(3\); expected at most 2"):
        begin(FAMILIES["llama"](), Method(layers=3))


def test_heads_outside_the_layers_are_trained_in_every_period(tmp_path):
    toy = FAMILIES["bert"]()
    session = train(toy, Watched(layers=1, period=2), tmp_path)
    assert all(active >= core.head_parameters(toy.model, toy.heads).keys() for active in session.active)
