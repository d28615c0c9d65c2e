"""`training.gradient_checkpointing`: the same training of an adapter, with fewer activations held."""

import pytest
import torch
from families import FAMILIES
from torch import nn

from loratory.adapters import core
from loratory.bases.blocks import transformer_blocks
from loratory.config import adapter_entry
from loratory.errors import InputError
from loratory.training import sweep
from loratory.training.job import Job
from loratory.training.recompute import recompute_activations
from loratory.training.session import AdapterSession


@pytest.fixture
def gradients(monkeypatch):
    """What reaches the optimizer in every step."""
    found = []

    def note(self, step):
        self.method.after_step(self, step)
        trained = core.trainable_parameters(self.model).values()
        found.append(torch.cat([p.grad.flatten() for p in trained if p.grad is not None]))

    monkeypatch.setattr(AdapterSession, "after_step", note)
    return found


def trained(folder, family, method, **options):
    toy, passes, held = FAMILIES[family](), [], []
    for block in transformer_blocks(toy.model):
        inner = next(block.children())
        inner.register_forward_pre_hook(lambda inner, _: passes.append(inner) if inner.training else None)
    given = {"method": method} | ({} if method == "full_ft" else {"dropout": 0.2})
    recipe = {"steps": 3, "batch_tokens": 48, "learning_rates": [0.01], **options}
    entry = adapter_entry(given | {"training": recipe})
    noted = lambda tensor: (held.append(tensor.numel()), tensor)[1]  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(noted, lambda tensor: tensor):
        sets = {"train": toy.items, "valid": toy.items}
        trial = sweep.train_one(toy, sets, entry, 0, 0.01, Job(toy.model.device.type, folder, "toy"))
    assert not any(block.gradient_checkpointing or block.training for block in transformer_blocks(toy.model))
    return trial, len(passes), sum(held)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_gradients_are_those_without_it_and_fewer_activations_are_held(family, method, tmp_path, gradients):
    plain, passes, held = trained(tmp_path / "plain", family, method)
    expected, gradients[:] = [*gradients], []
    again, repeated, fewer = trained(tmp_path / "again", family, method, gradient_checkpointing=True)
    assert repeated == 2 * passes and fewer < held
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    assert again["valid_loss"] == pytest.approx(plain["valid_loss"], rel=1e-6)
    assert [p["loss"] for p in again["curve"]] == pytest.approx([p["loss"] for p in plain["curve"]], rel=1e-6)


def test_a_model_without_blocks_is_refused():
    with pytest.raises(InputError, match="no blocks whose activations"), recompute_activations(nn.Linear(2, 2), True):
        pass


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_less_memory_is_needed_on_a_gpu(tmp_path, capsys):
    from families import Toy
    from models import llama

    def peak(name, **options):
        toy = Toy(lambda: llama(60, num_hidden_layers=12, hidden_size=256).cuda(), 84)
        toy.items = [item for item in toy.items for _ in range(40)]
        for item in toy.items:
            item.ids = item.ids.cuda()
        recipe = {"steps": 2, "batch_tokens": 2048, "learning_rates": [0.01], **options}
        entry = adapter_entry({"method": "lora", "training": recipe})
        sets = {"train": toy.items, "valid": toy.items[:4]}
        return sweep.train_one(toy, sets, entry, 0, 0.01, Job("cuda", tmp_path / name, name))["accelerator_memory_max"]

    assert peak("again", gradient_checkpointing=True) < 0.8 * peak("plain")
    assert "again: at most " in capsys.readouterr().out
