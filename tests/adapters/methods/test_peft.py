"""PEFT's types layer by layer, each against PEFT itself on the whole model."""

import peft
import pytest
import torch
from families import FAMILIES, VOCABULARY, begin, train
from methods.rows import Row
from models import llama

from loratory.adapters import core
from loratory.adapters.methods.peft import REFUSED, TYPES, Method, tensor_names, trained_parameters
from loratory.errors import InputError

ROW = Row(
    {"type": "loha", "options": {"r": 3}}, lambda shapes, model: sum(2 * 3 * (out + inner) for out, inner in shapes)
)
OPTIONS = {
    "boft": {"boft_block_size": 4},
    "c3a": {"block_size": 8},
    "deft": {"r": 4},
    "delora": {"r": 4},
    "fourierft": {"n_frequency": 40, "scaling": 10.0},
    "gralora": {"r": 4},
    "hira": {"r": 4},
    "hra": {"r": 4},
    "ia3": {"feedforward_modules": ["down_proj"]},
    "loha": {"r": 4},
    "lokr": {"r": 4},
    "oft": {"oft_block_size": 8},
    "peanut": {"r": 4},
    "psoft": {"r": 4},
    "randlora": {"r": 8, "randlora_alpha": 8},
    "road": {"group_size": 8},
    "shira": {"r": 2, "random_seed": 5},
    "supertuning": {"sparsity": 0.9},
    "vera": {"r": 8},
    "waveft": {"n_frequency": 40},
}
RATES = {
    **dict.fromkeys(("boft", "c3a", "hra", "lokr", "oft", "peanut", "supertuning"), 3e-2),
    **dict.fromkeys(("fourierft", "hira", "ia3", "psoft", "road", "vera"), 1e-1),
}
ELSEWHERE = {"c3a", "fourierft"}  # PEFT draws what other types start from 0
every = pytest.mark.parametrize("kind", TYPES)
IDS = torch.arange(12).view(2, 6) + 3


def made(kind: str, **options) -> Method:
    return Method(type=kind, options=OPTIONS[kind], **options)


@torch.no_grad()
def stirred(parameters, seed=3):
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def test_every_type_is_tried_here():
    assert OPTIONS.keys() == TYPES.keys()
    assert {kind.value.lower() for kind in peft.PeftType} == TYPES.keys() | REFUSED.keys()


@every
def test_the_whole_model_is_pefts_with_equal_tensors(kind):
    names = ["down_proj"] if kind == "ia3" else ["q_proj", "v_proj"]
    theirs, ours = llama(VOCABULARY), llama(VOCABULARY)
    config = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(kind.upper())]
    theirs = peft.get_peft_model(theirs, config(target_modules=names, **OPTIONS[kind])).eval()
    stirred(p for p in theirs.parameters() if p.requires_grad)
    layers = core.attach(ours, made(kind, target_modules=tuple(names)), 0)
    for name, layer in layers.items():
        tuner = theirs.base_model.model.get_submodule(name)
        assert set(tensor_names(tuner).values()) == set(layer.adapter)
        for key, parameter in trained_parameters(tuner).items():
            layer.adapter[key].data.copy_(parameter)
    mine, other = ours(IDS).logits, theirs(IDS).logits
    torch.testing.assert_close(mine, other, rtol=0, atol=1e-5)
    assert (mine - llama(VOCABULARY)(IDS).logits).abs().max() > 1e-4
    mine.square().mean().backward()
    other.square().mean().backward()
    for name, layer in layers.items():
        for key, parameter in trained_parameters(theirs.base_model.model.get_submodule(name)).items():
            torch.testing.assert_close(layer.adapter[key].grad, parameter.grad, rtol=1e-4, atol=1e-7)


@every
def test_a_type_learns_and_its_change_of_the_weights_is_what_it_does(kind, tmp_path):
    toy = FAMILIES["llama"]()
    bare, before = toy.output(), toy.mean_loss()
    method = made(kind, target_modules=("v_proj", "down_proj"))
    session = begin(toy, method)
    assert ((toy.output() - bare).abs().max() > 1e-4) == (kind in ELSEWHERE)
    assert all(p.requires_grad for layer in session.layers.values() for p in layer.adapter.values())
    core.detach(toy.model)
    train(toy, method, tmp_path, steps=20, rate=RATES.get(kind, 1e-2), decay=0.0)
    assert toy.mean_loss() < before - 0.02
    adapted = toy.output()
    adapter = core.export(toy.model, (), {})
    core.detach(toy.model)
    core.apply(toy.model, adapter, "stored")
    torch.testing.assert_close(toy.output(), adapted, rtol=1e-4, atol=2e-5)
    core.detach(toy.model)
    assert torch.equal(toy.output(), bare)


def layer_of(kind: str, dtype=torch.float32, seed=0):
    torch.manual_seed(1)
    linear = torch.nn.Linear(32, 48).requires_grad_(False).bfloat16().float()
    method = next(iter(made(kind).layer_methods({"down_proj": linear.weight}).values()))
    tensors = method.initial_tensors(linear.weight, torch.Generator().manual_seed(seed))
    layer = core.AdaptedLinear(linear.to(dtype), method, tensors).eval()
    stirred(layer.adapter.values())
    return layer


@every
@torch.no_grad()
def test_the_bias_stays_as_it_is(kind):
    layer, x = layer_of(kind), torch.randn(5, 32, generator=torch.Generator().manual_seed(2))
    merged = layer.weight + layer.weight_delta().to_dense()
    expected = torch.nn.functional.linear(x, merged, layer.base.bias)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer(torch.zeros(1, 32))[0], layer.base.bias)


@every
@torch.no_grad()
def test_a_base_in_half_precision_keeps_its_precision(kind):
    exact, half = layer_of(kind), layer_of(kind, torch.bfloat16)
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(2))
    assert half(x.bfloat16()).dtype == torch.bfloat16
    assert {p.dtype for p in half.adapter.values()} == {torch.float32}
    change = (half(x.bfloat16()).float() - exact(x)).norm() / exact(x).norm()
    assert change < 0.05


@every
def test_tensors_depend_on_the_generator_alone(kind):
    one, again = layer_of(kind), layer_of(kind)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    method = one.method
    tensors = method.initial_tensors(one.weight, torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one.tensors[key], again.tensors[key]) for key in tensors)
    assert torch.equal(tensors["seed"], one.tensors["seed"])


def test_a_layer_keeps_one_copy_of_its_tensors():
    layer = layer_of("loha")
    layer(torch.ones(1, 32))
    tuner = layer.method.cached_tuner(layer)
    assert not any(p.numel() for p in tuner.parameters())
    assert set(layer.state_dict()) == {
        "base.weight", "base.bias", "fixed_seed", *(f"adapter.{key}" for key in layer.adapter)
    }  # fmt: skip


@torch.no_grad()
def test_dropped_ranks_are_no_part_of_the_change():
    torch.manual_seed(0)
    linear = torch.nn.Linear(32, 48)
    method = Method(type="loha", options={"r": 4, "rank_dropout": 0.5})
    layer = core.AdaptedLinear(
        linear, method, method.initial_tensors(linear.weight, torch.Generator().manual_seed(0))
    ).eval()
    stirred(layer.adapter.values())
    x = torch.eye(32)
    expected = layer(x) - linear(x)
    torch.testing.assert_close(layer.train().weight_delta().to_dense().T, expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(layer(x), layer(x))


def test_feed_forward_layers_of_ia3_scale_their_inputs():
    toy = FAMILIES["llama"]()
    layers = begin(toy, made("ia3")).layers
    lengths = {name.rpartition(".")[2]: layer.adapter["ia3_l"].numel() for name, layer in layers.items()}
    assert (lengths["down_proj"], lengths["up_proj"]) == (48, 48)
    assert layers["model.layers.0.mlp.down_proj"].weight.shape == (32, 48)


def test_feed_forward_layers_that_are_not_there_are_refused():
    method = Method(type="ia3", options={"feedforward_modules": ["down"]})
    with pytest.raises(InputError, match="unknown adapted layer"):
        begin(FAMILIES["llama"](), method)


@pytest.mark.parametrize(("kind", "says"), REFUSED.items(), ids=REFUSED)
def test_types_that_are_no_change_of_one_weight_are_refused_by_name(kind, says):
    with pytest.raises(ValueError, match=f"`{kind}` is not supported: {says}"):
        Method(type=kind)


def test_an_unknown_type_is_refused_with_what_there_is():
    with pytest.raises(ValueError, match="unknown PEFT type `lohha`, expected one of boft"):
        Method(type="lohha")


@pytest.mark.parametrize("option", ["target_modules", "rank_pattern", "layers_to_transform", "bias"])
def test_options_about_the_whole_model_are_refused(option):
    with pytest.raises(ValueError, match=f"`{option}` is not for a single layer"):
        Method(type="loha", options={option: ["q_proj"]})


def test_an_unknown_option_is_refused_with_the_nearest():
    with pytest.raises(InputError, match=r"unknown option .alhpa.*did you mean `alpha`"):
        begin(FAMILIES["llama"](), Method(type="loha", options={"alhpa": 3}))


def test_an_unknown_option_is_known_before_anything_runs():
    with pytest.raises(
        InputError, match=r"adapters\.x\.options: PEFT's loha: unknown option .* did you mean `alpha`\?"
    ):
        Method(type="loha", options={"alhpa": 3}).check_library_options("a.yaml: adapters.x")


def test_every_type_takes_the_options_that_the_tests_train_with():
    for kind, options in OPTIONS.items():
        Method(type=kind, options=options).check_library_options("a.yaml: adapters.x")


def test_what_peft_refuses_names_the_layer():
    with pytest.raises(InputError, match=r"q_proj: .*divisible by group_size"):
        begin(FAMILIES["llama"](), Method(type="road"))


def test_a_required_option_that_is_absent_is_named():
    with pytest.raises(InputError, match="feedforward_modules"):
        begin(FAMILIES["llama"](), Method(type="ia3"))
