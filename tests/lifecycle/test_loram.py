"""LoRAM: what a LoRA learnt on a cut copy is on the whole base, on tiny models."""

import pytest
import torch

from loratory.adapters import core
from loratory.bases import precision
from loratory.config import stage_entry
from loratory.errors import InputError
from loratory.lifecycle import cutting, pruning
from loratory.lifecycle.sequence import JointTraining

KINDS = ("structured", "random", "semi", "unstructured")


def entry_of(**options):
    named = {"base": "mini", "domains": ("speech",), "adapter": "lora"}
    return stage_entry({"procedure": "loram", **named, **options})


def run(room, **options) -> dict:
    """{arm: (its adapter, its outputs, what it measures, whether it is stored)}."""
    entry, found = entry_of(**options), {}
    for arm in entry.iterate_arms(entry, room):
        adapter = core.export(arm.model, (), {})
        found[arm.name] = (adapter, arm.base.output(), dict(arm.measures), arm.stored)
    return found


@pytest.mark.parametrize("family", ["grouped", "whisper"])
def test_all_arms_are_there_and_the_base_is_as_it_was(open_room, family):
    room = open_room(family)
    before, output = {name: p.clone() for name, p in room.base.model.named_parameters()}, room.base.output()
    found = run(room)
    recovered = [f"recovered_{kind}" for kind in KINDS]
    assert [*found] == ["base", "lora", "pruned_lora", *recovered]
    assert [name for name, (*_, stored) in found.items() if stored] == ["lora", *recovered]
    assert all(torch.equal(p, before[name]) for name, p in room.base.model.named_parameters())
    assert torch.equal(room.base.output(), output)
    for name in recovered:
        assert float((found[name][1] - output).abs().max()) > 1e-3, name
    assert float((found["pruned_lora"][1] - found["recovered_structured"][1]).abs().max()) > 1e-4


@pytest.mark.parametrize("family", ["grouped", "whisper"])
def test_a_small_copy_holds_nothing_of_what_is_cut_and_a_masked_one_everything(open_room, family):
    room = open_room(family)
    whole = cutting.model_size(room.base.model)["parameters"]
    parts = cutting.find_parts(room.base.model, "toy")
    kept = cutting.largest_units(room.base.model, parts, 0.5)
    small = cutting.model_size(cutting.slice_base(room.base, parts, kept).model)["parameters"]
    measured = {name: measures for name, (_, _, measures, _) in run(room).items()}
    held = {name: of["parameters while training"] - of["trained numbers"] for name, of in measured.items() if of}
    assert held["lora"] == held["recovered_semi"] == held["recovered_unstructured"] == whole
    assert held["pruned_lora"] == held["recovered_structured"] == held["recovered_random"] == small < whole
    assert measured["recovered_random"]["trained numbers"] < measured["lora"]["trained numbers"]


@pytest.mark.parametrize("family", ["grouped", "whisper"])
def test_a_copy_in_four_bits_learns_nearly_what_the_copy_does(open_room, family):
    pytest.importorskip("bitsandbytes")
    found = run(open_room(family), nf4=True)
    plain, packed = found["recovered_structured"], found["recovered_structured_nf4"]
    assert packed[3] and packed[2]["parameters while training"] == plain[2]["parameters while training"]
    assert packed[2]["MB while training"] < plain[2]["MB while training"]
    one, other = (torch.cat([d.to_dense().flatten() for d in arm[0].deltas.values()]) for arm in (plain, packed))
    cosine = float(torch.cosine_similarity(one, other, dim=0))
    assert 0.3 < cosine < 1 - 1e-6 and torch.equal(one != 0, other != 0)


def test_four_bits_without_their_library_are_refused_before_anything_is_learnt(open_room, monkeypatch):
    monkeypatch.setattr(precision, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"nf4: a copy in 4 bits needs bitsandbytes; fix: `pip install"):
        run(open_room(), nf4=True)


def test_keeping_everything_is_the_plain_lora_to_the_bit(open_room):
    found = run(open_room(), share=0.0)
    plain = found["lora"][0].deltas
    for arm in ("pruned_lora", "recovered_structured", "recovered_random", "recovered_unstructured"):
        adapter, output, *_ = found[arm]
        assert adapter.deltas.keys() == plain.keys()
        for name, delta in plain.items():
            assert torch.equal(adapter.deltas[name].A, delta.A) and torch.equal(adapter.deltas[name].B, delta.B)
        assert torch.equal(output, found["lora"][1])


def test_what_was_learnt_lies_where_it_was_kept_and_nowhere_else(open_room):
    room = open_room()
    parts = cutting.find_parts(room.base.model, "toy")
    kept = cutting.random_units(parts, 0.5, room.seed)
    assert any(part.units == 4 and (kept[part.name].diff() > 1).any() for part in parts), "key-value heads apart"
    found = run(room)
    deltas = found["recovered_random"][0].deltas
    for side, dim in (("rows", 0), ("columns", 1)):
        for name, places in cutting.layer_places(parts, kept, side).items():
            change = deltas[name].to_dense()
            lost = torch.ones(change.shape[dim], dtype=torch.bool)
            lost[places] = False
            assert lost.any() and not change.index_select(dim, lost.nonzero()[:, 0]).any()
            assert change.index_select(dim, places).any()


def test_an_adapter_that_has_learnt_nothing_changes_nothing(open_room):
    room = open_room()
    whole, parts = room.base.output(), cutting.find_parts(room.base.model, "toy")
    kept = cutting.random_units(parts, 0.5, 0)
    small = cutting.slice_base(room.base, parts, kept)
    core.attach(small.model, room.method, 0)
    fresh = cutting.scatter_adapter(core.export(small.model, (), {}), room.base.model, parts, kept)
    with pruning.wear_adapter(room, fresh):
        assert torch.equal(room.base.output(), whole)


def test_masked_copies_learn_with_the_zeros_that_they_say(open_room, monkeypatch):
    seen = {}
    start = JointTraining.make_hooks

    def note(self, domain, layers):
        seen[self.name] = {name: (layer.weight == 0).float().mean().item() for name, layer in layers.items()}
        return start(self, domain, layers)

    monkeypatch.setattr(JointTraining, "make_hooks", note)
    run(open_room(), share=0.75)
    assert {*seen["lora"].values()} == {0.0} == {*seen["pruned_random"].values()}
    assert {*seen["pruned_semi"].values()} == {0.5}
    assert all(share == pytest.approx(0.75, abs=1e-3) for share in seen["pruned_unstructured"].values())


@pytest.mark.parametrize(("share", "words"), [(1.0, "less than 1"), (-0.5, "greater than or equal to 0")])
def test_a_share_outside_its_range_is_refused(share, words):
    with pytest.raises(ValueError, match=f"(?s)share.*{words}"):
        entry_of(share=share)


def test_a_model_of_another_kind_is_refused_before_anything_learns(open_room):
    entry = entry_of()
    with pytest.raises(InputError, match=r"toy: heads and channels cannot be cut out of it \(GPT2LMHeadModel"):
        next(entry.iterate_arms(entry, open_room("gpt2")))
