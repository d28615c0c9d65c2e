"""Every method on every family of bases: the properties that all must have, from one table of rows."""

import importlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from families import FAMILIES, begin, train

from loratory import registry
from loratory.adapters import core, deltas
from loratory.adapters.masters import master_copies

METHODS = registry.registered_names("method")
CLOSE = {"rtol": 1e-4, "atol": 2e-5}


@cache
def row(name: str):
    try:
        return importlib.import_module(f"methods.test_{name}").ROW
    except ModuleNotFoundError:
        pytest.fail(f"tests/adapters/methods/test_{name}.py with a ROW is missing: every method is tested alike")


PAIRS = [(method, family) for method in METHODS for family in row(method).families]
every = pytest.mark.parametrize(("name", "family"), PAIRS, ids=["-".join(pair) for pair in PAIRS])


def made(name: str):
    return registry.load_module("method", name).Method(**row(name).options)


def state(model) -> dict:
    """Every tensor once: a state dict would repeat a tied matrix under a name that is no parameter's."""
    return {n: t.detach().clone() for n, t in [*model.named_parameters(), *model.named_buffers()]}


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@dataclass(frozen=True)
class Outcome:
    """What a training leaves on a model.

    Attributes:
        bare, trained, detached: every tensor of the model before it, after it, and once the adapter is off again.
        output: of the model with the trained adapter. adapter: as it is stored.
        killed: the checkpoints that were there before the last but one step.
        wrapped: names of the adapted layers. moved: names of the base's own weights that may move.
    """

    bare: dict
    trained: dict
    detached: dict
    output: torch.Tensor
    adapter: deltas.Adapter
    killed: Path
    wrapped: frozenset
    moved: frozenset


@cache
def outcome(name: str, family: str) -> Outcome:
    """Of one training with seed 0, for all tests that ask; none changes it."""
    toy = FAMILIES[family]()
    bare = state(toy.model)
    folder = Path(mkdtemp()) / "checkpoints"
    session = train(toy, made(name), folder, copy_at=5, save_every=2, rate=row(name).rate)
    moved = core.ORIGINALS.get(toy.model, {}).keys() | core.head_parameters(toy.model, toy.heads).keys()
    trained, output, adapter = state(toy.model), toy.output(), core.export(toy.model, toy.heads, {})
    core.detach(toy.model)
    killed, wrapped = folder.with_suffix(".killed"), frozenset(session.layers)
    return Outcome(bare, trained, state(toy.model), output, adapter, killed, wrapped, frozenset(moved))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_row(name):
    assert row(name)


@every
def test_a_fresh_adapter_starts_where_its_method_says(name, family):
    toy, starts = FAMILIES[family](), row(name).starts
    if toy.heads:  # heads are drawn anew, by their names
        core.attach(toy.model, registry.load_module("method", "lora").Method(), 0, toy.heads)
        core.detach(toy.model)
    before = toy.output()
    begin(toy, made(name))
    after = toy.output()
    if starts == "equal":
        torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)
    else:
        change = (after - before).norm() / before.norm()
        assert change < 1e-3 if starts == "near" else change > 1e-6


@every
def test_trained_parameters_follow_the_formula(name, family):
    toy = FAMILIES[family]()
    session = begin(toy, made(name))
    heads = sum(p.numel() for p in core.head_parameters(toy.model, toy.heads).values())
    shapes = [tuple(layer.weight.shape) for layer in session.layers.values()]
    trained = sum(p.numel() for p in core.trainable_parameters(toy.model).values())
    assert trained == row(name).trained(shapes, toy.model) + heads


@every
def test_only_what_is_trained_moves_despite_weight_decay_and_the_base_comes_back(name, family):
    found, heads = outcome(name, family), FAMILIES[family]().heads
    layers = {f"{n}.base" for n in found.wrapped}
    now = {n.replace(".base.", ".") if n.rpartition(".")[0] in layers else n: t for n, t in found.trained.items()}
    assert all(torch.equal(now[n], found.bare[n]) for n in found.bare if n not in found.moved)
    assert all(torch.equal(t, found.bare[n]) for n, t in found.detached.items() if not core.is_inside(n, heads))


@every
@torch.no_grad()
def test_merged_and_unmerged_are_the_same_function(name, family):
    toy, found = FAMILIES[family](), outcome(name, family)
    adapter, parameters = found.adapter, dict(toy.model.named_parameters())
    for head, tensor in adapter.heads.items():
        parameters[head].copy_(tensor)
    if adapter.deltas or adapter.dense or adapter.own:  # heads alone stay on the base
        assert (toy.output() - found.output).abs().max() > 1e-6, "training changed nothing"
    if not row(name).merges:
        assert adapter.own and not adapter.deltas and not adapter.dense
        return
    for module, delta in adapter.deltas.items():
        layer = toy.model.get_submodule(module)
        layer.weight.add_(delta.to_dense().T if isinstance(layer, core.Conv1D) else delta.to_dense())
    for parameter, change in adapter.dense.items():
        parameters[parameter].add_(change)
    torch.testing.assert_close(toy.output(), found.output, **CLOSE)


@every
def test_a_stored_adapter_on_a_fresh_base_gives_the_same_outputs(name, family, tmp_path):
    fresh, found = FAMILIES[family](), outcome(name, family)
    deltas.save_adapter(tmp_path / "a", found.adapter, causal=fresh.kind == "causal", transposed=family == "gpt2")
    core.apply(fresh.model, deltas.load_adapter(tmp_path / "a"), "a")
    torch.testing.assert_close(fresh.output(), found.output, **CLOSE)


@every
def test_the_same_seed_gives_the_same_run_even_when_it_was_killed_in_between(name, family, capfd):
    resumed, found = FAMILIES[family](), outcome(name, family)
    capfd.readouterr()
    train(resumed, made(name), found.killed, save_every=2, rate=row(name).rate)
    assert "step 4 of 6, continued" in capfd.readouterr().out
    assert equal(found.trained, state(resumed.model))


@pytest.mark.parametrize("name", METHODS)
def test_the_method_learns(name, tmp_path):
    toy = FAMILIES[row(name).families[0]]()
    before = toy.mean_loss()
    train(toy, made(name), tmp_path, steps=25, rate=row(name).rate, decay=0.0)
    assert toy.mean_loss() < before - 0.02


@pytest.mark.parametrize("name", METHODS)
def test_a_step_in_micro_batches_is_the_step_on_the_whole_batch(name, tmp_path):
    parted = FAMILIES[family := row(name).families[0]]()
    train(parted, made(name), tmp_path, rate=row(name).rate, parts=2)
    torch.testing.assert_close(parted.output(), outcome(name, family).output, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_a_base_in_bf16_is_trained_on_and_stays_in_bf16(name, tmp_path):
    toy = FAMILIES[row(name).families[0]]()
    toy.model.to(torch.bfloat16)
    before, bare = toy.mean_loss(), state(toy.model)
    train(toy, made(name), tmp_path, steps=12, rate=row(name).rate, decay=0.0)
    assert toy.output().dtype == torch.bfloat16 and toy.mean_loss() < before
    assert {p.dtype for p in core.trainable_parameters(toy.model).values()} == {torch.float32}
    trained, adapter = toy.output(), core.export(toy.model, toy.heads, {})
    stored = [t for delta in adapter.deltas.values() for t in (delta.A, delta.B)] + [*adapter.dense.values()]
    stored += [t for own in adapter.own.values() for t in own.tensors.values() if t.is_floating_point()]
    assert stored and {t.dtype for t in stored} == {torch.float32}
    core.detach(toy.model)
    assert equal(state(toy.model), bare) and not master_copies(toy.model)
    core.apply(toy.model, adapter, "a")
    assert (toy.output() - trained).norm() < 0.02 * trained.norm()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@torch.no_grad()
def test_a_dense_change_too_small_for_half_precision_is_not_rounded_away(family):
    toy = FAMILIES[family]()
    toy.model.to(torch.bfloat16)
    name, layer = next(iter(core.linear_layers(toy.model).items()))
    layer.weight.fill_(1.0)
    change = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(0)) * 1e-4
    x = torch.full((1, core.weight_of(layer).shape[1]), 1.0, dtype=torch.bfloat16)
    x[:, ::2] = -1.0  # so that what the weight itself gives is 0
    bare = layer(x)
    core.apply(toy.model, deltas.Adapter(dense={f"{name}.weight": change}), "a")
    matrix = change.T if family == "gpt2" else change
    added = toy.model.get_submodule(name)(x) - bare
    torch.testing.assert_close(added.float(), x.float() @ matrix.T, rtol=0.02, atol=1e-5)
    core.detach(toy.model)
    assert torch.equal(toy.model.get_submodule(name)(x), bare)


@pytest.mark.parametrize("family", FAMILIES)
def test_as_many_layers_are_adapted_as_the_family_has(family):
    toy = FAMILIES[family]()
    assert len(begin(toy, made("lora")).layers) == toy.modules
