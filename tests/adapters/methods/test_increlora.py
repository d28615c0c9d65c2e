"""IncreLoRA (arXiv:2308.12043)."""

from math import sqrt
from types import SimpleNamespace

import pytest
import torch
from families import FAMILIES, begin, train
from methods.rows import Row

from loratory.adapters import core
from loratory.adapters.methods.increlora import Method, growth_counts
from loratory.training.schedule import Training

OPTIONS = {"target_rank": 3, "increment": 2, "growths": 2, "interval": 1}
ROW = Row(OPTIONS, lambda shapes, model: sum(5 * (out + inner + 1) for out, inner in shapes), "near")
BLOCKS = 14  # of llama's 14 layers, to grow from rank 1 to a mean of 3 by 2


class Watched(Method):
    """Notes after each step how often layers have grown, and all tensors."""

    def after_step(self, session, step):
        super().after_step(session, step)
        session.grown = [*getattr(session, "grown", []), growth_counts(session)]
        tensors = {n: {k: t.detach().clone() for k, t in layer.tensors.items()} for n, layer in session.layers.items()}
        session.states = [*getattr(session, "states", []), tensors]


def trained(tmp_path, steps=16, **options):
    toy = FAMILIES["llama"]()
    return toy, train(toy, Watched(**OPTIONS | options), tmp_path, steps=steps)


def learnt_layer(method, grown: int, reserve: int) -> dict:
    generator = torch.Generator().manual_seed(5)
    tensors = method.initial_tensors(torch.zeros(6, 7), generator)
    for block in range(grown + 1):
        tensors[f"E{block}"].normal_(generator=generator)
    return tensors | {"grown": torch.tensor(grown), "reserve": torch.tensor(reserve)}


def test_a_fresh_adapter_is_the_base_exactly_without_advance_learning_and_nearly_with_it():
    x = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    for advance, most in ((False, 0.0), (True, 16 * 1e-7)):
        method = Method(**OPTIONS, advance=advance)
        change = method.forward(x, method.initial_tensors(torch.zeros(6, 7), torch.Generator().manual_seed(1)), True)
        assert change.abs().max() <= most
        assert advance == bool(change.any())


@pytest.mark.parametrize("advance", [True, False])
def test_ranks_only_grow_and_end_exactly_at_the_budget(advance, tmp_path):
    _, session = trained(tmp_path, advance=advance)
    totals = [sum(grown) for grown in session.grown]
    assert totals == sorted(totals) and totals[0] == 0 and totals[-1] == BLOCKS
    assert max(max(grown) for grown in session.grown) <= 2
    assert len(set(session.grown[-1])) > 1, "all layers got the same rank"
    assert len(set(totals)) > 3, "all growth came at once"


@pytest.mark.parametrize("target", [2, 4])
def test_the_budget_is_never_passed_when_blocks_do_not_fit_it(target, tmp_path):
    _, session = trained(tmp_path, target_rank=target, increment=3, interval=2)
    ranks = sum(1 + 3 * grown for grown in session.grown[-1])
    assert target * 14 - 3 < ranks <= target * 14


def test_waiting_blocks_stay_bit_for_bit_despite_decay_and_momentum(tmp_path):
    _, session = trained(tmp_path)
    waited = 0
    for step in range(1, 16):
        for name, now in session.states[step].items():
            before = session.states[step - 1][name]
            touched = int(before["grown"] + before["reserve"])
            for block in range(3):
                same = [torch.equal(now[f"{key}{block}"], before[f"{key}{block}"]) for key in "AEB"]
                active = block <= int(before["grown"])
                assert same == [not (active or block <= touched), not active, not (active or block <= touched)]
                waited += all(same)
    assert waited


def test_new_blocks_have_young_moments_and_every_tensor_is_in_one_group(tmp_path):
    toy, session = trained(tmp_path)
    parameters = core.trainable_parameters(toy.model)
    grouped = [p for group in session.optimizing.param_groups for p in group["params"]]
    assert (
        len(grouped) == len(set(grouped)) == 14 * 9 and parameters.keys() <= dict(toy.model.named_parameters()).keys()
    )
    ages = {k: session.optimizing.state[layer.adapter[f"E{k}"]]["step"] for layer in session.layers.values()
            for k in range(3) if session.optimizing.state.get(layer.adapter[f"E{k}"])}  # fmt: skip
    assert ages[0] == 16 > ages[1] > ages[2] > 0


@torch.no_grad()
def test_choosing_a_reserve_changes_the_function_through_the_scale_alone():
    method = Method(**OPTIONS)
    x = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    before, after = (learnt_layer(method, 0, 1) | {"grown": torch.tensor(g), "reserve": torch.tensor(1 - g)}
                     for g in (0, 1))  # fmt: skip
    torch.testing.assert_close(
        method.forward(x, after, True) * (3 + 1e-5), method.forward(x, before, True) * (1 + 1e-5)
    )


def test_when_growth_is_over_reserves_have_left_the_function(tmp_path):
    toy, session = trained(tmp_path)
    before = toy.output()
    for layer in session.layers.values():
        assert not layer.tensors["reserve"]
        for block in range(int(layer.tensors["grown"]) + 1, 3):
            for key in "AEB":
                layer.adapter[f"{key}{block}"].data.fill_(7.0)
    assert torch.equal(toy.output(), before)


@pytest.mark.parametrize("options", [{"interval": 50}, {"target_rank": 1}])
def test_a_run_in_which_nothing_grows_ends_without_reserves_too(options, tmp_path):
    _, session = trained(tmp_path, steps=6, **options)
    assert session.grown[-1] == [0] * 14
    assert not any(layer.tensors["reserve"] for layer in session.layers.values())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_importance_is_that_of_the_dense_change_and_its_gradient(family):
    """∂L/∂ΔW is ∂L/∂W, which autograd gives too."""
    toy = FAMILIES[family]()
    session = begin(toy, Method(**OPTIONS))
    for layer in session.layers.values():
        layer.adapter["E0"].data.fill_(0.7)
        layer.base.weight.requires_grad_(True)
    toy.model.train()
    session.loss(session.batch(0)).backward()
    assert not any(layer.tensors["importance"] for layer in session.layers.values())
    toy.model.zero_grad()
    session.before_step(0)
    session.loss(session.batch(0)).backward()
    for layer in session.layers.values():
        gradient = layer.base.weight.grad.T if family == "gpt2" else layer.base.weight.grad
        t = {key: tensor.detach() for key, tensor in layer.tensors.items()}
        delta = 16 / (1 + 1e-5) * (0.7 * t["B0"] @ t["A0"] + 1e-5 * t["B1"] @ t["A1"])
        expected = (delta * gradient).abs().sum() / sqrt(delta.numel())
        torch.testing.assert_close(t["importance"], expected, rtol=1e-4, atol=1e-9)


@torch.no_grad()
def test_scores_are_smoothed_importance_times_its_smoothed_deviation():
    method, tensors = Method(**OPTIONS), learnt_layer(Method(**OPTIONS), 0, 1)
    smooth = doubt = 0.0
    for now in (0.3, 0.5, 0.1):
        tensors["importance"].fill_(now)
        method.update_sensitivity(tensors)
        smooth = 0.85 * smooth + 0.15 * now
        doubt = 0.85 * doubt + 0.15 * abs(now - smooth)
    assert float(tensors["sensitivity"]) == pytest.approx(smooth)
    assert float(tensors["uncertainty"]) == pytest.approx(doubt)
    assert not tensors["importance"]


class Branches(torch.nn.Module):
    """Three linear layers side by side, of which the loss sees one."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.branches = torch.nn.ModuleList(torch.nn.Linear(8, 8, bias=False) for _ in range(3)).requires_grad_(False)

    def forward(self, x):
        return self.branches[1](x) + 1e-3 * (self.branches[0](x) + self.branches[2](x))


def test_the_layer_that_matters_gets_the_most_ranks():
    model, method = Branches(), Method(target_rank=2, increment=1, growths=3, interval=2)
    layers, recipe = core.attach(model, method, 0), Training(steps=30, learning_rate=0.01)
    session = SimpleNamespace(layers=layers, recipe=recipe)
    optimizer = torch.optim.AdamW(core.trainable_parameters(model).values(), lr=0.01)
    x, y = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(3))
    for step in range(30):
        method.before_step(session, step)
        ((model(x) - y).square().mean() + method.step_penalty(session)).backward()
        optimizer.step()
        method.after_step(session, step)
        optimizer.zero_grad()
    assert growth_counts(session) == [0, 3, 0]


def test_the_penalty_is_of_all_live_slices_of_a_factor_together():
    toy = FAMILIES["llama"]()
    method = Method(**OPTIONS, orthogonality=0.4)
    session = begin(toy, method)
    expected = []
    for layer in session.layers.values():
        t = layer.tensors
        for p in (torch.cat([t["A0"], t["A1"]]), torch.cat([t["B0"], t["B1"]], 1).T):
            expected.append(torch.linalg.norm(p @ p.T - torch.eye(3)))
    torch.testing.assert_close(method.step_penalty(session), 0.4 * torch.stack(expected).mean())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"target_rank": 18}, r"at most 1 \+ increment"), ({"warm": 0.7}, r"warm \+ final is 1")],
)
def test_impossible_schedules_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Method(**options)
