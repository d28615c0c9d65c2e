"""PEFT as the oracle: its folders are read and ours are read by it, with equal logits."""

import json

import peft
import pytest
import torch
from families import five_steps
from models import bert, llama, trained_adapter, whisper
from safetensors.torch import load_file, save_file

from loratory.adapters import core, deltas
from loratory.adapters.methods.lora import Method
from loratory.errors import InputError

IDS = torch.arange(12).view(2, 6) + 3
CLOSE = {"rtol": 0, "atol": 1e-5}


def run_whisper(model):
    return model(input_features=torch.ones(2, 80, 200), decoder_input_ids=IDS).logits


@torch.no_grad()
@pytest.mark.parametrize(
    ("make", "heads", "run"),
    [
        (llama, (), lambda model: model(IDS).logits),
        (bert, ("classifier", "bert.pooler"), lambda model: model(input_ids=IDS).logits),
        (whisper, (), run_whisper),
    ],
    ids=["llama", "bert", "whisper"],
)
def test_peft_loads_our_folder_with_equal_logits(tmp_path, make, heads, run):
    model = make()
    adapter = trained_adapter(model, Method(rank=3, alpha=7.0), 1, heads)
    deltas.save_adapter(tmp_path / "a", adapter, causal=make is llama)
    fresh = make()
    core.apply(fresh, deltas.load_adapter(tmp_path / "a"), "a")
    theirs = peft.PeftModel.from_pretrained(make(), tmp_path / "a").eval()
    torch.testing.assert_close(run(theirs), run(fresh), **CLOSE)
    assert (run(fresh) - run(make())).abs().max() > 1e-3


def made_by_peft(folder, **options):
    torch.manual_seed(3)
    config = peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **options)
    model = peft.get_peft_model(llama(), config).eval()
    model.save_pretrained(folder)
    return model


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
        {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "use_rslora": True},
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ["q_proj", "down_proj"],
            "rank_pattern": {"down_proj": 2, "layers.1.self_attn.q_proj": 6},
            "alpha_pattern": {"q_proj": 3},
        },
    ],
    ids=["plain", "rslora", "patterns"],
)
def test_we_load_peft_folders_with_equal_logits(tmp_path, options):
    theirs = made_by_peft(tmp_path / "a", **options)
    ours = llama()
    core.apply(ours, deltas.load_adapter(tmp_path / "a"), "a")
    torch.testing.assert_close(ours(IDS).logits, theirs(IDS).logits, **CLOSE)


@torch.no_grad()
def test_ranks_and_scales_per_module_survive_our_own_folder(tmp_path):
    adapter = trained_adapter(llama(), Method(rank=4, alpha=8.0), 1)
    names = sorted(adapter.deltas)
    cut = adapter.deltas[names[0]]
    adapter.deltas[names[0]] = deltas.LowRank(cut.A[:2], cut.B[:, :2], 0.7)
    deltas.save_adapter(tmp_path / "a", adapter, causal=True)
    theirs = peft.PeftModel.from_pretrained(llama(), tmp_path / "a").eval()
    ours = llama()
    core.apply(ours, adapter, "a")
    torch.testing.assert_close(theirs(IDS).logits, ours(IDS).logits, **CLOSE)


@torch.no_grad()
def test_the_loop_trains_like_peft_from_the_same_start(tmp_path):
    """Same initial tensors, same optimizer, five steps: equal logits."""
    ours = llama().requires_grad_(False)
    wrappers = core.attach(ours, Method(rank=4, alpha=8.0), 0)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear")
    theirs = peft.get_peft_model(llama(), config)
    for name, wrapper in wrappers.items():
        layer = theirs.base_model.model.get_submodule(name)
        layer.lora_A["default"].weight.copy_(wrapper.adapter["A"])
    for model in (ours, theirs):
        five_steps(model, lambda model: model(input_ids=IDS, labels=IDS).loss, lr=1e-2, weight_decay=0.0)
    torch.testing.assert_close(ours(IDS).logits, theirs(IDS).logits, **CLOSE)


def test_the_same_adapter_gives_the_same_bytes(tmp_path):
    adapter = trained_adapter(llama(), Method(rank=2), 1)
    for name in ("a", "b"):
        deltas.save_adapter(tmp_path / name, adapter, causal=True)
    for file in (deltas.CONFIG, deltas.WEIGHTS, deltas.RUN):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "`use_dora` is not supported"),
        ({"bias": "all"}, "trained biases are not supported"),
        ({"peft_type": "IA3"}, "not a LoRA"),
    ],
)
def test_what_would_be_read_wrongly_is_refused_by_name(tmp_path, change, message):
    deltas.save_adapter(tmp_path / "a", trained_adapter(llama(), Method(rank=2), 1), causal=True)
    path = tmp_path / "a" / deltas.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message):
        deltas.load_adapter(tmp_path / "a")


def test_a_tensor_of_unknown_meaning_is_refused(tmp_path):
    deltas.save_adapter(tmp_path / "a", trained_adapter(llama(), Method(rank=2), 1), causal=True)
    path = tmp_path / "a" / deltas.WEIGHTS
    save_file(load_file(path) | {"base_model.model.model.norm.weight": torch.ones(32)}, path)
    with pytest.raises(InputError, match=r"neither lora_A.*model\.norm\.weight"):
        deltas.load_adapter(tmp_path / "a")


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no adapter_config\.json"):
        deltas.load_adapter(tmp_path)
