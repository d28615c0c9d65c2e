"""X-LoRA gates saved by others: by the authors' package and by PEFT, whose model is the oracle."""

import json
import shutil

import peft
import pytest
import torch
from models import causal_base, continued, trained_adapter
from mutants import mutate_folder
from safetensors.torch import load_file, save_file

from loratory.adapters import deltas
from loratory.adapters.methods.lora import Method
from loratory.errors import InputError
from loratory.mixers.published import open_published
from loratory.mixers.store import save_mixture

IDS = torch.arange(18).view(2, 9) % 40 + 3


def study_of(folder, depth, layerwise, experts=2, **changes):
    """A base, experts, PEFT's model of them with a random gate, and its options."""
    base = causal_base(folder / "base", ears=False)
    folders = {}
    for index in range(experts):
        folders[str(index)] = str(folder / str(index))
        adapter = trained_adapter(base.model, Method(rank=2 + index), index)
        deltas.save_adapter(folders[str(index)], adapter, causal=True)
    options = {"xlora_depth": depth, "xlora_size": 16, "layerwise_scalings": layerwise, "top_k_lora": None}
    options |= {"softmax_temperature": 0.8, "global_scaling_weight": 1.2} | changes
    config = peft.XLoraConfig(task_type="CAUSAL_LM", hidden_size=32, adapters=folders, **options)
    model = causal_base(folder / "again", ears=False).model
    model.config.use_cache = False
    theirs = peft.get_peft_model(model, config).eval()
    torch.manual_seed(0)
    for parameter in theirs.base_model.internal_xlora_classifier.parameters():
        parameter.data.normal_(0, 0.3)
    return base, folders, theirs, {"enable_softmax": True, "enable_softmax_topk": False} | options


@pytest.fixture(params=[(1, True), (3, True), (2, False)], ids=["linear", "deep", "shared"])
def study(request, tmp_path):
    return study_of(tmp_path, *request.param)


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    return study_of(tmp_path_factory.mktemp("linear"), 1, True)


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    return study_of(tmp_path_factory.mktemp("deep"), 3, True)


def as_authors(folder, theirs, options, bias=True):
    """The files of the authors' package: `inner` counts activations too, `last` stands apart."""
    folder.mkdir()
    written = {"hidden_size": 32, "use_trainable_adapters": False, "enable_relu_and_dropout": True, "use_bias": bias}
    (folder / "xlora_config.json").write_text(json.dumps(written | options))
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


def change_config(folder, **changes) -> None:
    path = next(path for path in folder.iterdir() if path.suffix == ".json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"xlora_depth": "1"}, r"xlora_depth: wrong value \(1\); expected an integer"),
        ({"xlora_depth": True}, "xlora_depth: wrong value"),
        ({"xlora_depth": 0}, "xlora_depth: wrong value"),
        ({"xlora_depth": 10**9}, "the gate is not whole"),
        ({"xlora_size": -1}, "xlora_size: wrong value"),
        ({"xlora_dropout_p": 1.5}, "xlora_dropout_p: wrong value"),
        ({"softmax_temperature": float("nan")}, "softmax_temperature: wrong value"),
        ({"softmax_temperature": 0}, "softmax_temperature: wrong value"),
        ({"top_k_lora": 0}, "top_k_lora: wrong value"),
        ({"top_k_lora": 3}, r"`top_k_lora` \(3\); expected at most 2"),
        ({"enable_softmax": "false"}, "enable_softmax: wrong value"),
        ({"layerwise_scalings": 1}, "layerwise_scalings: wrong value"),
        ({"global_scaling_weight": float("inf")}, "global_scaling_weight: wrong value"),
        ({"scaling_pass_value": None}, "`scaling_pass_value` is not supported"),
        ({"hidden_size": 64}, r"`hidden_size` \(64\); expected the base's 32"),
        ({"adapters": {"0": "a", "1": "b", "2": "c"}}, r"number of `adapters` \(3\); expected 2 as given"),
        ({"adapters": "a"}, "adapters"),
        ({"use_mean_pool": True}, "`use_mean_pool` is not supported"),
        ({"a_field_of_tomorrow": 1}, "`a_field_of_tomorrow` is not supported"),
    ],
)
def test_a_value_that_no_gate_has_is_refused_by_name(linear, change, message, tmp_path):
    base, folders, theirs, options = linear
    as_peft(tmp_path / "saved", theirs, options)
    change_config(tmp_path / "saved", **change)
    with pytest.raises(InputError, match=rf"adapter_config\.json.*{message}|safetensors: {message}"):
        open_published(tmp_path / "saved", base, folders)


@torch.no_grad()
def test_the_flag_of_activations_means_nothing_where_there_are_none(linear, tmp_path):
    base, folders, theirs, options = linear
    as_authors(tmp_path / "saved", theirs, options | {"enable_relu_and_dropout": False})
    ours = open_published(tmp_path / "saved", base, folders)
    torch.testing.assert_close(ours(input_ids=IDS).logits, theirs(input_ids=IDS).logits, rtol=0, atol=1e-5)
    ours.remove_experts()


def test_a_deeper_gate_without_activations_is_refused_by_name(deep, tmp_path):
    base, folders, theirs, options = deep
    as_authors(tmp_path / "saved", theirs, options | {"enable_relu_and_dropout": False})
    with pytest.raises(InputError, match="`enable_relu_and_dropout` is not supported"):
        open_published(tmp_path / "saved", base, folders)


TOP_K = {"top_k_lora": 2, "enable_softmax": False, "enable_softmax_topk": True}


@pytest.fixture
def three(tmp_path):
    """A base, three experts and PEFT's model with a softmax of the two largest weights."""
    return study_of(tmp_path, 1, True, experts=3, **TOP_K)


@torch.no_grad()
def test_pefts_softmax_of_the_kept_weights_is_of_each_token(three, tmp_path):
    base, folders, theirs, options = three
    as_peft(tmp_path / "saved", theirs, options)
    ours = open_published(tmp_path / "saved", base, folders)
    torch.testing.assert_close(ours(input_ids=IDS).logits, theirs(input_ids=IDS).logits, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_authors_softmax_of_the_kept_weights_is_of_the_whole_batch(three, tmp_path):
    base, folders, theirs, options = three
    as_authors(tmp_path / "saved", theirs, options)
    ours = open_published(tmp_path / "saved", base, folders)
    ours(input_ids=IDS)
    wanted, applied = ours.routing_weights["tokens"], ours.applied["tokens"]
    for module in range(wanted.shape[2]):
        logits = wanted[:, :, module]
        kept = logits >= logits.topk(2, -1).values[..., -1:]
        expected = torch.zeros_like(logits)
        expected[kept] = logits[kept].softmax(0) * options["global_scaling_weight"]
        torch.testing.assert_close(applied[:, :, module], expected)


@torch.no_grad()
def test_weights_of_a_whole_batch_are_not_made_token_by_token(three, tmp_path):
    base, folders, theirs, options = three
    as_authors(tmp_path / "saved", theirs, options)
    ours = open_published(tmp_path / "saved", base, folders)
    with pytest.raises(InputError, match="tokens cannot be written one by one"):
        continued(ours, {"input_ids": IDS}, 2)
    with pytest.raises(InputError, match="cannot be saved as a mixture"):
        save_mixture(tmp_path / "mixture", ours, "xlora", folders, {})
    assert not (tmp_path / "mixture").exists()


@pytest.mark.parametrize("write", [as_authors, as_peft])
def test_a_tensor_that_the_gate_has_not_is_refused(deep, write, tmp_path):
    base, folders, theirs, options = deep
    write(tmp_path / "saved", theirs, options)
    path = next((tmp_path / "saved").glob("*.safetensors"))
    name = "base_model.internal_xlora_classifier.layers.9.weight" if write is as_peft else "inner.9.weight"
    save_file(load_file(path) | {name: torch.ones(2, 2)}, path)
    with pytest.raises(InputError, match="a tensor that the gate of this config has not"):
        open_published(tmp_path / "saved", base, folders)


@pytest.mark.parametrize("bias", [True, False])
def test_a_gate_that_lost_a_bias_is_refused(deep, bias, tmp_path):
    base, folders, theirs, options = deep
    as_authors(tmp_path / "saved", theirs, options)
    path = tmp_path / "saved" / "xlora_classifier.safetensors"
    save_file({name: t for name, t in load_file(path).items() if bias or not name.endswith("bias")}, path)
    if bias:
        save_file({name: t for name, t in load_file(path).items() if name != "inner.3.bias"}, path)
    with pytest.raises(InputError, match="the gate is not whole"):
        open_published(tmp_path / "saved", base, folders)


@torch.no_grad()
@pytest.mark.parametrize("write", [as_authors, as_peft])
def test_a_mutated_gate_is_refused_or_opened_and_the_base_is_left_bare(deep, write, tmp_path):
    base, folders, theirs, options = deep
    write(tmp_path / "saved", theirs, options | {"xlora_dropout_p": 0.2})
    before, opened = [name for name, _ in base.model.named_modules()], 0
    for seed in range(30):
        mutate_folder(tmp_path / "saved", tmp_path / "mutant", seed)
        try:
            ours = open_published(tmp_path / "mutant", base, folders)
        except InputError:
            pass
        else:
            opened += 1
            assert ours(input_ids=IDS).logits.isfinite().all()
            ours.remove_experts()
        assert [name for name, _ in base.model.named_modules()] == before
        shutil.rmtree(tmp_path / "mutant")
    assert 2 < opened < 15


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
