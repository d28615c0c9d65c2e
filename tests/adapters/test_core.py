"""Adapters on any base: identity at the start, frozen bases, exact storage, order-free random numbers."""

import pytest
import torch
from models import bert, llama, trained_adapter, whisper
from transformers import GPT2Config, GPT2LMHeadModel

from loratory.adapters import core, deltas
from loratory.adapters.methods.lora import Method
from loratory.errors import InputError

IDS = torch.arange(12).view(2, 6) + 3


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=300, n_positions=64)).eval()


FAMILIES = {
    "llama": (llama, (), lambda model: model(IDS).logits, 14),
    "gpt2": (gpt2, (), lambda model: model(IDS).logits, 8),
    "bert": (bert, ("classifier", "bert.pooler"), lambda model: model(IDS).logits, 12),
    "whisper": (
        whisper,
        (),
        lambda model: model(input_features=torch.ones(2, 80, 200), decoder_input_ids=IDS).logits,
        16,
    ),
}


@pytest.fixture(params=FAMILIES)
def family(request):
    make, heads, run, modules = FAMILIES[request.param]
    return make(), heads, run, modules


def test_every_linear_layer_but_the_output_head_is_adapted(family):
    model, heads, _, modules = family
    assert len(core.attach(model, Method(rank=2), 0, heads)) == modules


@torch.no_grad()
def test_a_fresh_adapter_changes_nothing(family):
    model, _, run, _ = family
    before = run(model)
    core.attach(model, Method(rank=2), 0)
    assert torch.equal(run(model), before)


def test_only_adapter_and_head_move_even_with_weight_decay(family):
    model, heads, run, _ = family
    core.attach(model.requires_grad_(False), Method(rank=2), 0, heads)
    parameters = core.trainable_parameters(model)
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if n not in parameters}
    started = {n: p.detach().clone() for n, p in parameters.items()}
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        run(model).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)
    assert all(not torch.equal(p, started[n]) for n, p in parameters.items())


@torch.no_grad()
def test_a_stored_adapter_gives_the_same_output_and_comes_off_without_a_trace(family):
    model, _, run, _ = family
    before = run(model)
    adapter = trained_adapter(model, Method(rank=3, alpha=5.0), seed=1)
    core.apply(model, adapter, "test")
    applied = run(model)
    core.detach(model)
    assert (applied - before).abs().max() > 1e-3
    assert torch.equal(run(model), before)
    for name, layer in core.linear_layers(model).items():
        delta = adapter.deltas[name].to_dense()
        layer.weight.data += delta.T if isinstance(layer, core.Conv1D) else delta
    torch.testing.assert_close(run(model), applied, rtol=1e-4, atol=1e-5)


def test_initial_tensors_depend_on_seed_and_name_alone():
    whole, part = llama(), llama()
    all_layers = core.attach(whole, Method(), 3)
    some = core.attach(part, Method(target_modules=("v_proj",)), 3)
    assert some.keys() < all_layers.keys()
    for name, wrapper in some.items():
        assert torch.equal(wrapper.adapter["A"], all_layers[name].adapter["A"])
    of_one_shape = [wrapper.adapter["A"] for name, wrapper in all_layers.items() if name.endswith("q_proj")]
    assert not torch.equal(of_one_shape[0], of_one_shape[1])
    other = core.attach(llama(), Method(), 4)
    assert not torch.equal(next(iter(other.values())).adapter["A"], next(iter(all_layers.values())).adapter["A"])


def test_trainable_parameters_follow_the_formula():
    model = llama()
    core.attach(model.requires_grad_(False), Method(rank=4), 0)
    expected = sum(4 * sum(core.weight_of(m.base).shape) for m in model.modules() if isinstance(m, core.AdaptedLinear))
    assert sum(p.numel() for p in core.trainable_parameters(model).values()) == expected


def test_a_target_name_that_matches_nothing_is_refused_with_the_nearest_one():
    with pytest.raises(InputError, match=r"unknown layer \(q_prj\).*did you mean `q_proj`"):
        core.attach(llama(), Method(target_modules=("q_prj",)), 0)


def test_an_adapter_of_another_size_is_refused():
    adapter = trained_adapter(llama(), Method(rank=2), 0)
    with pytest.raises(InputError, match="wrong size"):
        core.apply(llama(hidden_size=64), adapter, "elsewhere")


@torch.no_grad()
def test_a_bf16_base_takes_an_adapter():
    model = llama().to(torch.bfloat16)
    core.attach(model, Method(rank=2), 0)
    assert model(IDS).logits.dtype == torch.bfloat16


def test_a_dense_change_cut_to_its_rank_is_the_same_and_what_a_lower_rank_loses_is_told():
    random = torch.Generator().manual_seed(0)
    change = torch.randn(6, 2, generator=random) @ torch.randn(2, 5, generator=random)
    adapter = deltas.Adapter(dense={"a.weight": change, "b.weight": change.T})
    layers = {"a": False, "b": True}
    exact, lost = deltas.truncate_adapter(adapter, layers, 2)
    assert lost == pytest.approx(0, abs=1e-6) and not exact.dense
    for delta in exact.deltas.values():
        torch.testing.assert_close(delta.to_dense(), change, rtol=1e-5, atol=1e-5)
    _, lost = deltas.truncate_adapter(adapter, layers, 1)
    s = torch.linalg.svdvals(change)
    assert lost == pytest.approx(float(s[1] / s.norm()), rel=1e-4)


def test_a_dense_change_of_what_is_no_linear_layer_counts_as_lost():
    adapter = deltas.Adapter(dense={"a.weight": 3 * torch.eye(2), "norm.weight": torch.tensor([4.0, 0.0])})
    found, lost = deltas.truncate_adapter(adapter, {"a": False}, 2)
    assert found.deltas.keys() == {"a"} and lost == pytest.approx((16 / (18 + 16)) ** 0.5)
