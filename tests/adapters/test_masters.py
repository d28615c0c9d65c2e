"""On a base in bf16 adapters learn in float32, and trained weights of the base have masters that do."""

import pytest
import torch
from families import FAMILIES, begin, train
from test_methods import METHODS, equal, made, row, state

from loratory.adapters import core, deltas
from loratory.adapters.contract import BaseWeightsMethod
from loratory.adapters.masters import master_copies
from loratory.config import adapter_entry
from loratory.registry import load_module
from loratory.training import sweep
from loratory.training.job import Job

OWN = [name for name in METHODS if issubclass(load_module("method", name).Method, BaseWeightsMethod)]


def half(family: str):
    toy = FAMILIES[family]()
    toy.model.to(torch.bfloat16)
    return toy


def family_of(name: str) -> str:
    return "llama" if "llama" in row(name).families else "gpt2"


@pytest.mark.parametrize("name", ["lora", "pissa", "dora", *OWN])
def test_the_gradients_on_a_bf16_base_are_those_of_its_weights_in_float32(name):
    """The same rounded weights, once computed with in bf16 and once in float32."""
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        toy = half(family_of(name))
        toy.model.to(dtype)
        session = begin(toy, made(name))
        with torch.no_grad():
            for key, p in core.trainable_parameters(toy.model).items():
                if key.endswith((".B", ".A")):
                    p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(len(key))) * 0.05)
        total, n = toy.loss(toy.model.train(), session.batch(0))
        (total / n).backward()
        found.append({key: p.grad for key, p in core.trainable_parameters(toy.model).items() if p.grad is not None})
    assert found[0].keys() == found[1].keys() and found[0]
    one, other = (torch.cat([grad[key].flatten() for key in sorted(grad)]) for grad in found)
    assert (one - other).norm() < 0.03 * other.norm()


def test_steps_too_short_for_half_precision_add_up_in_the_masters(tmp_path):
    toy = half("gpt2")
    train(toy, made("bitfit"), tmp_path, steps=3, rate=1e-7, decay=0.0)
    adapter, masters = core.export(toy.model, toy.heads, {}), master_copies(toy.model)
    ones = "transformer.h.0.ln_1.weight"
    assert ones not in masters and adapter.dense.keys() == masters.keys()
    assert all(0 < change.abs().max() < 1e-6 for name, change in adapter.dense.items() if "c_attn" not in name)
    parameters = dict(toy.model.named_parameters())
    assert all(torch.equal(parameters[name], copy.to(torch.bfloat16)) for name, copy in masters.items())


def test_a_training_of_masters_that_was_killed_goes_on_as_if_it_had_not_been(tmp_path):
    whole, again = half("llama"), half("llama")
    train(whole, made("full_ft"), tmp_path / "whole", steps=4)
    with pytest.raises(KeyboardInterrupt):
        train(again, made("full_ft"), tmp_path / "again", steps=4, save_every=2, kill_at=3)
    core.detach(again.model)
    train(again, made("full_ft"), tmp_path / "again", steps=4, save_every=2)
    assert equal(state(whole.model), state(again.model))
    assert equal(master_copies(whole.model), master_copies(again.model))


def test_valid_is_looked_at_with_what_the_masters_learnt_where_a_training_goes_on(tmp_path, monkeypatch):
    training = {"steps": 4, "batch_tokens": 24, "learning_rates": [0.05], "validate_every": 1, "save_every": 1}
    entry, look = adapter_entry({"method": "full_ft", "training": training}), sweep.mean_loss

    def losses(folder) -> list[float]:
        toy = half("llama")
        sets = {"train": toy.items[:3], "valid": toy.items[3:]}
        return [
            p["valid_loss"] for p in sweep.train_one(toy, sets, entry, 0, 0.05, Job("cpu", folder, "toy"))["curve"]
        ]

    whole, looks = losses(tmp_path / "whole"), iter(range(9))
    monkeypatch.setattr(sweep, "mean_loss", lambda *told: 1 / 0 if next(looks) == 2 else look(*told))
    with pytest.raises(ZeroDivisionError):
        losses(tmp_path / "again")
    assert losses(tmp_path / "again") == whole and len({*whole}) == 4


@torch.no_grad()
def test_what_masters_learnt_gives_the_trained_outputs_where_it_is_applied_again(tmp_path):
    toy = half("llama")
    with torch.enable_grad():
        train(toy, made("full_ft"), tmp_path, steps=4)
    trained, adapter = toy.output().float(), core.export(toy.model, toy.heads, {})
    core.detach(toy.model)
    bare = toy.output().float()
    deltas.save_adapter(tmp_path / "adapter", adapter, causal=True)
    core.apply(toy.model, deltas.load_adapter(tmp_path / "adapter"), "adapter")
    assert (toy.output().float() - trained).norm() < 0.03 * (trained - bare).norm()
