"""Full fine-tuning, the upper reference arm."""

import pytest
import torch
from families import FAMILIES, begin, train
from methods.rows import Row

from loratory.adapters import core
from loratory.adapters.methods.full_ft import Method

HEADS = ("classifier", "bert.pooler")  # of the toy bases


def body(model) -> int:
    """Numbers outside the heads; tied matrices once."""
    return sum(p.numel() for name, p in model.named_parameters() if not core.is_inside(name, HEADS))


ROW = Row({}, lambda shapes, model: body(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_of_the_base_moves(family, tmp_path):
    toy = FAMILIES[family]()
    before = {name: p.detach().clone() for name, p in toy.model.named_parameters()}
    train(toy, Method(), tmp_path)
    assert [name for name, p in toy.model.named_parameters() if torch.equal(p, before[name])] == []


def test_the_steps_are_those_of_adamw(tmp_path):
    toy, other = FAMILIES["llama"](), FAMILIES["llama"]()
    session = train(toy, Method(), tmp_path, steps=3, rate=1e-3)
    optimizer = torch.optim.AdamW(other.model.requires_grad_(True).parameters(), weight_decay=0.1)
    for step in range(3):
        total, targets = other.loss(other.model, session.batch(step))
        (total / targets).backward()
        torch.nn.utils.clip_grad_norm_(other.model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = session.recipe.learning_rate_at(step)
        optimizer.step()
        optimizer.zero_grad()
    for mine, its in zip(toy.model.parameters(), other.model.parameters()):
        torch.testing.assert_close(mine, its)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_moved_comes_back_bit_for_bit(family, tmp_path):
    toy = FAMILIES[family]()
    before = {name: p.detach().clone() for name, p in toy.model.named_parameters()}
    train(toy, Method(), tmp_path)
    core.detach(toy.model)
    after = dict(toy.model.named_parameters())
    changed = [name for name, value in before.items() if not torch.equal(after[name], value)]
    assert all(core.is_inside(name, HEADS) for name in changed), changed


def test_a_tied_matrix_is_trained_and_exported_once():
    toy = FAMILIES["gpt2"]()
    begin(toy, Method())
    names = core.export(toy.model, (), {}).dense.keys()
    assert "transformer.wte.weight" in names and "lm_head.weight" not in names


def test_choosing_layers_is_refused_as_all_weights_are_trained():
    with pytest.raises(ValueError, match="target_modules"):
        Method(target_modules=("q_proj",))
