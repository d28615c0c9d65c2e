"""X-LoRA gates saved by others: by the authors' package and by PEFT, whose model is the oracle."""

import json

import peft
import pytest
import torch
from models import causal_base, trained_adapter
from safetensors.torch import load_file, save_file

from loratory.adapters import deltas
from loratory.adapters.methods.lora import Method
from loratory.errors import InputError
from loratory.mixers.published import open_published

IDS = torch.arange(18).view(2, 9) % 40 + 3


@pytest.fixture(params=[(1, True), (3, True), (2, False)], ids=["linear", "deep", "shared"])
def study(request, tmp_path):
    """A base, two experts, and PEFT's model of them with a random gate."""
    depth, layerwise = request.param
    base = causal_base(tmp_path / "base", ears=False)
    folders = {}
    for index, name in enumerate("01"):
        folders[name] = str(tmp_path / name)
        deltas.save_adapter(folders[name], trained_adapter(base.model, Method(rank=2 + index), index), causal=True)
    options = {"xlora_depth": depth, "xlora_size": 16, "layerwise_scalings": layerwise, "top_k_lora": None}
    options |= {"softmax_temperature": 0.8, "global_scaling_weight": 1.2}
    config = peft.XLoraConfig(task_type="CAUSAL_LM", hidden_size=32, adapters=folders, **options)
    model = causal_base(tmp_path / "again", ears=False).model
    model.config.use_cache = False
    theirs = peft.get_peft_model(model, config).eval()
    torch.manual_seed(0)
    for parameter in theirs.base_model.internal_xlora_classifier.parameters():
        parameter.data.normal_(0, 0.3)
    return base, folders, theirs, options | {"enable_softmax": True, "enable_softmax_topk": False}


def as_authors(folder, theirs, options, bias=True):
    """The files of the authors' package: `inner` counts activations too, `last` stands apart."""
    folder.mkdir()
    (folder / "xlora_config.json").write_text(
        json.dumps(options | {"hidden_size": 32, "use_trainable_adapters": False})
    )
    layers = theirs.base_model.internal_xlora_classifier.layers
    tensors = {}
    for place, layer in enumerate(layers):
        for name, tensor in layer.named_parameters():
            key = "last" if place == len(layers) - 1 else f"inner.{place}"
            if bias or name == "weight":
                tensors[f"{key}.{name}"] = tensor.detach().clone()
    save_file(tensors, folder / "xlora_classifier.safetensors")


def as_peft(folder, theirs, options):
    """The files of PEFT 0.18 and 0.19."""
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(options | {"peft_type": "XLORA", "hidden_size": 32}))
    gate = theirs.base_model.internal_xlora_classifier.state_dict()
    prefix = "base_model.internal_xlora_classifier."
    save_file({prefix + name: t.clone() for name, t in gate.items()}, folder / "adapter_model.safetensors")


@torch.no_grad()
@pytest.mark.parametrize("write", [as_authors, as_peft])
def test_a_saved_gate_gives_pefts_logits(study, write, tmp_path):
    base, folders, theirs, options = study
    write(tmp_path / "saved", theirs, options)
    ours = open_published(tmp_path / "saved", base, folders)
    torch.testing.assert_close(ours(input_ids=IDS).logits, theirs(input_ids=IDS).logits, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_gate_without_biases_is_one_whose_biases_are_zero(study, tmp_path):
    base, folders, theirs, options = study
    as_authors(tmp_path / "saved", theirs, options, bias=False)
    for name, parameter in theirs.base_model.internal_xlora_classifier.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
    ours = open_published(tmp_path / "saved", base, folders)
    torch.testing.assert_close(ours(input_ids=IDS).logits, theirs(input_ids=IDS).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scaling_pass_value": 0.5}, "`scaling_pass_value` is not supported"),
        ({"use_trainable_adapters": True}, "`use_trainable_adapters` is not supported"),
        ({"enable_softmax": False}, "`enable_softmax` and `enable_softmax_topk`"),
        ({"peft_type": "LORA"}, "not an X-LoRA"),
    ],
)
def test_what_would_be_read_wrongly_is_refused_by_name(study, change, message, tmp_path):
    base, folders, theirs, options = study
    as_peft(tmp_path / "saved", theirs, options)
    path = tmp_path / "saved" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message):
        open_published(tmp_path / "saved", base, folders)


def test_a_gate_that_lost_layers_on_saving_is_refused_and_the_base_is_left_bare(study, tmp_path):
    base, folders, theirs, options = study
    as_peft(tmp_path / "saved", theirs, options)
    path, before = tmp_path / "saved" / "adapter_model.safetensors", [n for n, _ in base.model.named_modules()]
    kept = {name: tensor for name, tensor in load_file(path).items() if ".layers.0." not in name}
    save_file(kept, path)
    with pytest.raises(InputError, match="the gate is not whole"):
        open_published(tmp_path / "saved", base, folders)
    assert [n for n, _ in base.model.named_modules()] == before


def test_a_gate_of_more_experts_is_refused(study, tmp_path):
    base, folders, theirs, options = study
    as_peft(tmp_path / "saved", theirs, options)
    with pytest.raises(InputError, match="the gate does not fit"):
        open_published(tmp_path / "saved", base, folders | {"2": folders["0"]})
