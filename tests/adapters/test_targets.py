"""Layers by name: parts of an encoder-decoder, cross-attention, and convolutions, as PEFT adapts them too."""

from types import SimpleNamespace

import peft
import pytest
import torch
from families import FAMILIES, begin, train
from methods.test_adalora import ROW as ADALORA
from torch import nn
from transformers import WhisperConfig, WhisperForConditionalGeneration

from loratory import registry
from loratory.adapters import core, deltas
from loratory.adapters.methods import corda, eva, galore, lora, s2_lora
from loratory.errors import InputError
from loratory.mixers.core import Mixture
from loratory.mixers.methods.uniform import Mixer as Uniform

CONVS = {"model.encoder.conv1", "model.encoder.conv2"}
LAYER = "model.decoder.layers.0."


def targets(*names) -> set[str]:
    return {*core.target_layers(FAMILIES["whisper"]().model, names or None)}


def test_parts_of_whisper_are_chosen_by_name():
    everything, attention = targets(), {"q_proj", "k_proj", "v_proj", "out_proj"}
    assert len(everything) == 16 and not everything & CONVS
    encoder, decoder = targets("encoder"), targets("decoder")
    assert encoder | decoder == everything and not encoder & decoder
    assert all(name.startswith("model.encoder.") for name in encoder) and len(encoder) == 6
    assert targets("cross_attention") == targets("encoder_attn") == {f"{LAYER}encoder_attn.{n}" for n in attention}
    assert targets("decoder.self_attn") == {f"{LAYER}self_attn.{n}" for n in attention}
    assert targets("encoder.q_proj") == {"model.encoder.layers.0.self_attn.q_proj"}
    assert targets("cross_attention.v_proj", "encoder.fc1") == {
        f"{LAYER}encoder_attn.v_proj",
        "model.encoder.layers.0.fc1",
    }
    assert targets("conv") == targets("encoder.conv") == CONVS and targets("conv1") == {"model.encoder.conv1"}
    assert targets(*everything) == everything and len(targets("v_proj")) == 3


@pytest.mark.parametrize("name", ["q_pro", "decoder.conv1", "encoder.encoder_attn", "v_proj.encoder", ""])
def test_a_name_that_matches_nothing_is_refused_with_what_there_is(name):
    with pytest.raises(InputError, match=r"WhisperFor\w+: target_modules: unknown layer .*expected one of"):
        targets("encoder", name)


@torch.no_grad()
def test_a_convolution_is_the_linear_layer_of_its_windows():
    torch.manual_seed(0)
    for stride, padding in ((1, 1), (2, 1), (2, 0)):
        conv, x = nn.Conv1d(4, 6, 3, stride, padding), torch.randn(2, 4, 11)
        windowed = core.WindowedConv(conv)
        torch.testing.assert_close(windowed(windowed.windows(x)).transpose(1, 2), conv(x))


def test_an_adapted_convolution_is_one_of_a_changed_kernel_and_comes_off_again(tmp_path):
    toy = FAMILIES["whisper"]()
    before = toy.output()
    train(toy, lora.Method(rank=3, target_modules=("conv",)), tmp_path)
    trained, adapter = toy.output(), core.export(toy.model, (), {})
    core.detach(toy.model)
    assert torch.equal(toy.output(), before) and not torch.allclose(trained, before, atol=1e-5)
    assert adapter.deltas.keys() == CONVS and {delta.kernel for delta in adapter.deltas.values()} == {3}
    for name, delta in adapter.deltas.items():
        conv = toy.model.get_submodule(name)
        conv.weight.data.add_(delta.to_dense().view_as(conv.weight))
    torch.testing.assert_close(toy.output(), trained, rtol=0, atol=1e-5)


def test_peft_reads_an_adapted_convolution_and_we_read_its(tmp_path):
    toy = FAMILIES["whisper"]()
    train(toy, lora.Method(rank=3, target_modules=("conv", "encoder.q_proj")), tmp_path)
    expected, adapter = toy.output(), core.export(toy.model, (), {})
    deltas.save_adapter(tmp_path / "a", adapter, causal=False)
    theirs = FAMILIES["whisper"]()
    theirs.model = peft.PeftModel.from_pretrained(theirs.model, tmp_path / "a")
    for module in theirs.model.modules():
        if isinstance(module, peft.tuners.lora.layer.Conv1d):
            module.stride = module.base_layer.stride  # transformers asks for it, and PEFT's layer does not have it
    torch.testing.assert_close(theirs.output(), expected, rtol=0, atol=1e-5)
    theirs.model.save_pretrained(tmp_path / "b")
    ours = FAMILIES["whisper"]()
    core.apply(ours.model, deltas.load_adapter(tmp_path / "b"), "b")
    torch.testing.assert_close(ours.output(), expected, rtol=0, atol=1e-5)


def test_a_change_of_another_kernel_or_of_a_linear_layer_does_not_fit_a_convolution():
    toy = FAMILIES["whisper"]()
    wrong = deltas.Adapter(deltas={"model.encoder.conv1": deltas.LowRank(torch.ones(2, 240), torch.ones(16, 2), 1.0)})
    with pytest.raises(InputError, match=r"a:model\.encoder\.conv1: wrong kernel \(1\); expected 3"):
        core.apply(toy.model, wrong, "a")


@pytest.mark.parametrize("method", [eva.Method(rank=2, examples=2), corda.Method(rank=2, examples=2)], ids=str)
def test_starts_that_look_at_inputs_see_the_windows_of_a_convolution(method):
    method = type(method)(**method.model_dump() | {"target_modules": ("conv1", "encoder.q_proj")})
    toy = FAMILIES["whisper"]()
    before = toy.output()
    begin(toy, method)
    torch.testing.assert_close(toy.output(), before, rtol=0, atol=1e-5)


def test_gradients_of_convolutions_are_not_projected_and_their_experts_not_mixed(tmp_path):
    toy = FAMILIES["whisper"]()
    with pytest.raises(InputError, match="the gradient of a convolution is not projected"):
        train(toy, galore.Method(target_modules=("conv",)), tmp_path)
    toy = FAMILIES["whisper"]()
    train(toy, lora.Method(rank=2, target_modules=("conv",)), tmp_path)
    adapter = core.export(toy.model, (), {})
    core.detach(toy.model)
    with pytest.raises(InputError, match=r"here:a: experts of convolutions are not mixed \(model\.encoder\.conv1\)"):
        Mixture(toy.model, {"a": adapter, "b": adapter}, Uniform(), "here")


@pytest.mark.parametrize(
    ("width", "layers", "ffn", "expected"),
    [(384, 4, 1536, 26_112), (512, 6, 2048, 35_072), (768, 12, 3072, 53_760)],
    ids=["tiny", "base", "small"],
)
def test_s2_lora_on_all_attention_trains_as_few_numbers_as_the_paper_says(width, layers, ffn, expected):
    """2 r d of the shared pair and r for each of 12 matrices a layer: 0.02 % of Whisper small at r = 32."""
    sizes = {"d_model": width, "encoder_layers": layers, "decoder_layers": layers}
    wide = {"encoder_ffn_dim": ffn, "decoder_ffn_dim": ffn, "encoder_attention_heads": 6, "decoder_attention_heads": 6}
    with torch.device("meta"):
        heads = {name: width // 64 for name in wide if "heads" in name}
        model = WhisperForConditionalGeneration(WhisperConfig(**sizes, **wide | heads, vocab_size=51865))
    model.to_empty(device="cpu").requires_grad_(False)
    method = s2_lora.Method(rank=32, target_modules=("q_proj", "k_proj", "v_proj", "out_proj"))
    wrappers = core.attach(model, method, 0)
    method.prepare_training(SimpleNamespace(layers=wrappers))
    assert len(wrappers) == 12 * layers
    assert sum(p.numel() for p in core.trainable_parameters(model).values()) == expected


@pytest.mark.parametrize("name", ["lora", "adalora", "s2_lora", "bitfit", "full_ft"])
def test_the_methods_of_the_speech_study_train_whisper(name, tmp_path):
    toy = FAMILIES["whisper"]()
    options = ADALORA.options if name == "adalora" else {}
    before = toy.mean_loss()
    train(toy, registry.load_module("method", name).Method(**options), tmp_path, steps=12, rate=0.02)
    assert toy.mean_loss() < before
