"""EVA (arXiv:2410.07170), against PEFT's incremental decomposition of the same activations."""

from types import SimpleNamespace

import peft
import pytest
import torch
from families import FAMILIES, VOCABULARY, begin, train
from methods.rows import Row
from peft.tuners.lora.eva import get_eva_state_dict
from peft.utils.incremental_pca import IncrementalPCA

from loratory.adapters import core, deltas
from loratory.adapters.methods.eva import InputComponents, Method, allocate_ranks
from loratory.errors import InputError

ROW = Row({"rank": 3, "alpha": 6.0, "rho": 1.0}, lambda shapes, model: sum(3 * (out + inner) for out, inner in shapes))


def close_up_to_signs(ours, theirs, tolerance):
    """Unit rows that point along the same lines."""
    torch.testing.assert_close((ours * theirs.float()).sum(1).abs(), torch.ones(len(ours)), atol=tolerance, rtol=0)


def parts_of_inputs(number=4, rows=30, size=12):
    generator = torch.Generator().manual_seed(0)
    spread = torch.logspace(0.5, -1, size)
    return [spread * torch.randn(rows, size, generator=generator) + i for i in range(number)]


def test_components_of_parts_are_those_of_the_whole():
    found = InputComponents(12)
    for part in parts_of_inputs():
        found.add_inputs(part)
    rows = torch.cat(parts_of_inputs())
    _, values, right = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
    close_up_to_signs(found.directions.T, right, 1e-4)
    torch.testing.assert_close(found.values, values, rtol=1e-4, atol=0)
    torch.testing.assert_close(torch.tensor(found.explained_shares()).sum(), torch.tensor(1.0), atol=1e-4, rtol=0)


@pytest.mark.parametrize("count", [3, 6])
def test_components_and_shares_of_parts_are_pefts(count):
    found, theirs = InputComponents(count), IncrementalPCA(count, lowrank=True, lowrank_seed=42)
    for part in parts_of_inputs():
        found.add_inputs(part)
        theirs.partial_fit(part)
    close_up_to_signs(found.directions.T, theirs.components_.float(), 1e-3)
    torch.testing.assert_close(found.values, theirs.singular_values_.float(), rtol=1e-3, atol=0)
    shares = torch.tensor(found.explained_shares())
    torch.testing.assert_close(shares, theirs.explained_variance_ratio_.float(), rtol=1e-3, atol=0)


@torch.no_grad()
@pytest.mark.parametrize(("family", "rho"), [("llama", 1.0), ("llama", 2.0), ("gpt2", 2.0)])
def test_ranks_scales_and_starts_are_pefts_of_the_same_activations(family, rho):
    """Of one example, long enough for PEFT, which goes round until components no longer turn: here at once."""
    toy, other = FAMILIES[family](), FAMILIES[family]()
    ids = torch.randint(3, VOCABULARY, (40,), generator=torch.Generator().manual_seed(3))
    toy.items = [SimpleNamespace(ids=ids, length=24)]
    session = begin(toy, Method(rank=4, alpha=6.0, rho=rho))
    adapted = list(core.linear_layers(other.model))
    options = peft.EvaConfig(rho=rho, use_label_mask=False)
    config = peft.LoraConfig(r=4, target_modules=adapted, init_lora_weights="eva", eva_config=options)
    theirs = get_eva_state_dict(other.model, [{"input_ids": ids[None]}], config, show_progress_bar=False)
    ours = {name: layer.method.rank for name, layer in session.layers.items()}
    assert sum(ours.values()) == 4 * len(adapted) and max(ours.values()) <= 4 * rho
    # layers that read the same have equal shares, and PEFT breaks their ties either way
    assert sorted(ours.get(name, 0) for name in adapted) == sorted(len(a) for a in theirs.values())
    for name, layer in session.layers.items():
        both = min(ours[name], len(theirs[name]))
        assert abs(ours[name] - len(theirs[name])) <= 1 and layer.method.scale == 1.5
        close_up_to_signs(layer.tensors["A"][:both], theirs[name][:both], 1e-2)
        assert not layer.tensors["B"].any()


def test_ranks_go_to_the_largest_shares_and_at_a_tie_to_the_earlier_layer():
    shares = {"a": [0.9, 0.05, 0.01], "b": [0.5, 0.4, 0.05], "c": [0.04, 0.03, 0.02]}
    assert allocate_ranks(shares, 1) == {"a": 1, "b": 2, "c": 0}
    assert allocate_ranks({"a": [0.5, 0.4], "b": [0.5, 0.4]}, 1) == {"a": 1, "b": 1}
    assert allocate_ranks({"a": [0.5, 0.2], "b": [0.5, 0.2], "c": [0.5, 0.0]}, 1) == {"a": 1, "b": 1, "c": 1}


def test_a_layer_without_a_share_stays_bare_and_unequal_ranks_survive_storage(tmp_path):
    toy = FAMILIES["llama"]()
    session = train(toy, Method(rank=1, rho=6.0), tmp_path / "run")
    ranks = {name: layer.method.rank for name, layer in session.layers.items()}
    assert len(ranks) < 14 and len({*ranks.values()}) > 1
    bare = core.linear_layers(toy.model).keys() - {f"{name}.base" for name in ranks}
    assert len(bare) == 14 - len(ranks)
    deltas.save_adapter(tmp_path / "a", core.export(toy.model, (), {}), causal=True)
    stored, fresh = deltas.load_adapter(tmp_path / "a"), FAMILIES["llama"]()
    assert {name: delta.rank for name, delta in stored.deltas.items()} == ranks
    core.apply(fresh.model, stored, "a")
    torch.testing.assert_close(fresh.output(), toy.output(), rtol=1e-4, atol=2e-5)


def test_a_killed_run_goes_on_with_the_same_ranks(tmp_path):
    method, straight, resumed = Method(rank=2, rho=3.0), FAMILIES["llama"](), FAMILIES["llama"]()
    train(straight, method, tmp_path / "one", save_every=2)
    with pytest.raises(KeyboardInterrupt):
        train(FAMILIES["llama"](), method, tmp_path / "two", kill_at=5, save_every=2)
    train(resumed, method, tmp_path / "two", save_every=2)
    assert torch.equal(straight.output(), resumed.output())


def test_too_few_positions_for_the_components_are_refused_by_the_layers_name():
    with pytest.raises(InputError, match=r"model\.layers\.0.*too few positions.*\(6\); expected at least 16"):
        begin(FAMILIES["llama"](), Method(rank=8, examples=1))


def test_a_rank_beyond_a_layers_inputs_is_refused():
    with pytest.raises(InputError, match=r"the rank exceeds the layer's inputs \(40\); expected at most 32"):
        begin(FAMILIES["llama"](), Method(rank=40))
