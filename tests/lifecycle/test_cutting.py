"""Models with fewer heads and channels: exactly what is left when the others are masked."""

from types import SimpleNamespace

import models
import pytest
import torch
from families import FAMILIES
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from loratory.adapters import core
from loratory.adapters.deltas import LowRank
from loratory.bases.core import load_base
from loratory.bases.prepare import prepare_folder
from loratory.config import adapter_entry
from loratory.domains.contract import Example
from loratory.errors import InputError
from loratory.lifecycle import cutting

LORA = adapter_entry({"method": "lora", "rank": 2})


def small_model(kind):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 8}
    ids = {"vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = {**sizes, **ids, "num_key_value_heads": 4}
    return {
        "llama": lambda: models.llama(60, num_attention_heads=8, num_key_value_heads=4, attention_bias=True),
        "one_key_value_head_a_query": lambda: models.llama(60),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**config)),
        "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**config, head_dim=6)),
        "whisper": lambda: models.whisper(60),
    }[kind]().eval()


KINDS = ("llama", "one_key_value_head_a_query", "qwen2", "qwen3", "whisper")


@pytest.fixture(params=KINDS)
def base(request):
    """A base with random biases, so that a forgotten one would show."""
    model = small_model(request.param).requires_grad_(False)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return SimpleNamespace(model=model, heads=(), folder="toy")


@torch.no_grad()
def logits(model) -> torch.Tensor:
    ids = torch.arange(3, 12).repeat(2, 1)
    if model.config.model_type == "whisper":
        sound = torch.linspace(-1, 1, 200).expand(2, 80, 200)
        return model(input_features=sound, decoder_input_ids=ids).logits
    return model(input_ids=ids).logits


def attach_trained(base, seed=1, method=LORA):
    """A LoRA that changes the output."""
    generator = torch.Generator().manual_seed(seed)
    for layer in core.attach(base.model, method, seed).values():
        layer.adapter["B"].data.copy_(torch.randn(layer.adapter["B"].shape, generator=generator) * 0.3)


def scattered_units(parts) -> dict:
    """Half of the units, and no block of neighbours: the last one and every other before it."""
    kept = {part.name: torch.arange(part.units - 1, -1, -2).flip(0)[-part.kept_number(0.5) :] for part in parts}
    assert any(part.units > 2 and (kept[part.name].diff() > 1).any() for part in parts)
    return kept


def masks_of(parts, kept) -> dict:
    found = {part.name: torch.zeros(part.units) for part in parts}
    for name, mask in found.items():
        mask[kept[name]] = 1
    return found


@pytest.mark.parametrize("adapted", [False, True], ids=["bare", "lora"])
def test_a_masked_model_a_sliced_one_and_a_merged_one_say_the_same(base, adapted):
    parts = cutting.find_parts(base.model, "toy")
    kept, whole = scattered_units(parts), logits(base.model)
    if adapted:
        attach_trained(base)
    with cutting.mask_units(base.model, parts, masks_of(parts, kept)):
        masked = logits(base.model)
    small = cutting.slice_base(base, parts, kept)
    torch.testing.assert_close(logits(small.model), masked, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits(cutting.merge_base(small).model), masked, atol=1e-5, rtol=1e-5)
    assert float((masked - whole).abs().max()) > 1e-3, "what is cut has counted for something"
    core.detach(base.model)
    assert torch.equal(logits(base.model), whole), "the base itself stays whole"


def test_all_units_kept_is_the_same_model_to_the_bit(base):
    parts = cutting.find_parts(base.model, "toy")
    attach_trained(base)
    same = cutting.slice_base(base, parts, cutting.all_units(parts))
    assert torch.equal(logits(same.model), logits(base.model))
    before, after = base.model.state_dict(), same.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_what_is_no_unit_is_untouched_and_what_is_cut_is_nowhere(base):
    parts = cutting.find_parts(base.model, "toy")
    small = cutting.slice_base(base, parts, scattered_units(parts))
    cut = {layer for part in parts for layer in (*part.rows, *part.columns)}
    before, after = base.model.state_dict(), small.model.state_dict()
    for name, tensor in before.items():
        if name.rpartition(".")[0] not in cut or name.endswith(("o_proj.bias", "fc2.bias")):
            assert torch.equal(after[name], tensor), name
    expected = sum(
        (part.units - part.kept_number(0.5)) * numbers_of_a_unit(base.model, part, layer)
        for part in parts
        for layer in (*part.rows, *part.columns)
    )
    sizes = [cutting.model_size(each.model)["parameters"] for each in (base, small)]
    assert sizes[0] - sizes[1] == expected > 0


def numbers_of_a_unit(model, part, layer) -> int:
    module = model.get_submodule(layer)
    if layer in part.columns:
        return part.columns[layer] * module.out_features
    return part.rows[layer] * (module.in_features + (module.bias is not None))


def test_heads_go_with_their_key_value_head_and_only_in_numbers_that_the_class_allows():
    parts = cutting.find_parts(small_model("llama"), "toy")
    heads = parts[0]
    assert (heads.units, *heads.sizes) == (4, 1, 2, 4), "3 of 4 pairs are 6 heads, and 32 is no multiple of 6"
    assert heads.rows["model.layers.0.self_attn.q_proj"] == 2 * heads.rows["model.layers.0.self_attn.k_proj"] == 8
    assert [heads.kept_number(share) for share in (0, 0.2, 0.25, 0.5, 0.99)] == [4, 4, 4, 2, 1]
    assert [part.kept_number(0.2) for part in parts if part.units == 48] == [38, 38]


def test_a_class_that_reads_its_config_otherwise_is_refused_and_none_of_these_is(base, tmp_path):
    parts = cutting.find_parts(base.model, "toy")
    small = cutting.slice_base(base, parts, scattered_units(parts))
    small.model.save_pretrained(tmp_path)
    opened = type(small.model).from_pretrained(tmp_path).eval()
    assert torch.equal(logits(opened), logits(small.model))
    first = next(iter(parts[-1].rows))
    small.model.get_submodule(first).weight.data = torch.zeros(1, 1)
    with pytest.raises(InputError, match=f"toy:{first}: the model's class takes no such number"):
        cutting.check_config(small.model, [first], "toy")


def test_an_adapter_of_convolutions_stays_with_what_is_cut():
    base = SimpleNamespace(model=small_model("whisper").requires_grad_(False), heads=(), folder="toy")
    parts = cutting.find_parts(base.model, "toy")
    kept = scattered_units(parts)
    attach_trained(base, method=adapter_entry({"method": "lora", "rank": 2, "target_modules": ("conv", "fc1")}))
    small = cutting.slice_base(base, parts, kept)
    torch.testing.assert_close(logits(cutting.merge_base(small).model), logits(small.model), atol=1e-5, rtol=1e-5)
    learnt = core.export(small.model, (), {})
    core.detach(base.model)
    core.check_fit(base.model, cutting.scatter_adapter(learnt, base.model, parts, kept), "scattered")
    assert "model.encoder.conv1" in learnt.deltas


def test_whisper_is_cut_by_channels_alone():
    parts = cutting.find_parts(small_model("whisper"), "toy")
    assert [(part.name, part.units) for part in parts] == [
        ("model.encoder.layers.0", 32),
        ("model.decoder.layers.0", 32),
    ]


@pytest.mark.parametrize("family", ["gpt2", "phi3", "bert"])
def test_a_model_of_another_kind_is_refused_by_its_name(family):
    model = FAMILIES[family]().model
    with pytest.raises(InputError, match=f"toy: heads and channels cannot be cut out of it .{type(model).__name__}"):
        cutting.find_parts(model, "toy")


def test_the_units_of_the_largest_weights_stay(base):
    parts = cutting.find_parts(base.model, "toy")
    part = parts[-1]
    [columns] = part.columns
    base.model.get_parameter(f"{columns}.weight")[:, [1, part.units - 1]] *= 100
    kept = cutting.largest_units(base.model, parts, 1 - 2 / part.units)
    assert kept[part.name].tolist() == [1, part.units - 1]
    drawn = [cutting.random_units(parts, 0.5, seed) for seed in (0, 0, 1)]
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])
    assert any(not torch.equal(drawn[0][name], drawn[2][name]) for name in drawn[0])
    assert {len(drawn[0][part.name]) - part.kept_number(0.5) for part in parts} == {0}


def small_lora(base, parts, kept, seed=1):
    small = cutting.slice_base(base, parts, kept)
    attach_trained(small, seed)
    return small, core.export(small.model, (), {})


def test_a_scattered_change_is_the_small_one_where_it_was_and_nothing_elsewhere(base):
    parts = cutting.find_parts(base.model, "toy")
    kept = scattered_units(parts)
    _, learnt = small_lora(base, parts, kept)
    found = cutting.scatter_adapter(learnt, base.model, parts, kept)
    core.check_fit(base.model, found, "scattered")
    rows, columns = (cutting.layer_places(parts, kept, side) for side in ("rows", "columns"))
    for name, delta in found.deltas.items():
        whole, own = delta.to_dense(), learnt.deltas[name].to_dense()
        places = torch.meshgrid(
            *(p.get(name, torch.arange(n)) for p, n in zip((rows, columns), whole.shape)), indexing="ij"
        )
        torch.testing.assert_close(whole[places], own)
        assert torch.equal(whole.index_put(places, torch.tensor(0.0)), torch.zeros_like(whole))


def test_scattered_factors_on_a_masked_base_are_the_small_model_with_its_lora(base):
    parts = cutting.find_parts(base.model, "toy")
    kept = scattered_units(parts)
    small, learnt = small_lora(base, parts, kept)
    core.apply(base.model, cutting.scatter_adapter(learnt, base.model, parts, kept), "scattered")
    with cutting.mask_units(base.model, parts, masks_of(parts, kept)):
        torch.testing.assert_close(logits(base.model), logits(small.model), atol=1e-5, rtol=1e-5)


def test_scattering_is_linear_and_keeps_everything_where_nothing_is_cut(base):
    parts = cutting.find_parts(base.model, "toy")
    kept = scattered_units(parts)
    (_, one), (_, other) = (small_lora(base, parts, kept, seed) for seed in (1, 2))
    both = {n: LowRank(d.A + other.deltas[n].A, d.B + other.deltas[n].B, d.scale) for n, d in one.deltas.items()}
    scattered = [
        cutting.scatter_adapter(each, base.model, parts, kept) for each in (one, other, core.Adapter(deltas=both))
    ]
    for name in both:
        for key in ("A", "B"):
            first, second, total = (getattr(each.deltas[name], key) for each in scattered)
            torch.testing.assert_close(first + second, total)
    everything = cutting.all_units(parts)
    _, whole = small_lora(base, parts, everything)
    same = cutting.scatter_adapter(whole, base.model, parts, everything)
    assert all(
        torch.equal(same.deltas[n].A, d.A) and torch.equal(same.deltas[n].B, d.B) for n, d in whole.deltas.items()
    )


def test_two_of_four_and_the_largest_share():
    weight = torch.tensor([[1.0, -4, 3, 2, 0, 0, 5, -6]])
    assert cutting.two_of_four(weight).tolist() == [[False, True, True, False, False, False, True, True]]
    assert cutting.largest_share(weight, 0.25).tolist() == [[False] * 6 + [True, True]]
    model = models.llama(60, intermediate_size=46)
    with pytest.raises(InputError, match=r"toy:model.layers.0.mlp.down_proj: no two of four weights can be kept"):
        cutting.check_fours(model, core.target_layers(model, None), "toy")


@pytest.mark.parametrize("family", ["causal", "whisper"])
def test_a_cut_base_is_an_ordinary_folder(family, tmp_path):
    base = (models.causal_base if family == "causal" else models.whisper_base)(tmp_path / "whole")
    parts = cutting.find_parts(base.model, base.folder)
    small = cutting.slice_base(base, parts, cutting.largest_units(base.model, parts, 0.5))
    cutting.save_base(small, tmp_path / "small", name="small", origin="test")
    opened = load_base(tmp_path / "small")
    batch = base.trial_batch()
    with torch.no_grad():
        assert torch.equal(opened.loss(opened.model, batch)[0], small.loss(small.model, batch)[0])
    stored = [(tmp_path / folder / "model.safetensors").stat().st_size for folder in ("whole", "small")]
    sizes = [1e6 * cutting.model_size(each.model)["MB"] for each in (base, small)]
    assert stored[0] - stored[1] == pytest.approx(sizes[0] - sizes[1], abs=500) and sizes[0] - sizes[1] > 4000
    assert opened.fingerprint != base.fingerprint == opened.manifest["start_sha256"]
    prepare_folder(tmp_path / "small", "again", models.entry(family), tmp_path / "again")
    if family == "causal":
        assert opened.audio is not None
        question = [opened.encode(Example("a", "", "does it", ""))]
        assert opened.text(opened.model, question, 5) == small.text(small.model, question, 5)
