"""Every method, trained, in every form of export: what is written says what the study says, the rest is refused."""

import importlib
import json
import re
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import peft
import pytest
import torch
from families import Toy, train
from methods.test_peft import OPTIONS, RATES, TYPES
from models import causal_base, save, text_tokenizer
from safetensors.torch import load_file
from studies import ROOT
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from loratory import registry
from loratory.adapters import core, deltas
from loratory.bases.core import load_base
from loratory.errors import InputError
from loratory.export import FORMS, MERGED, export_trained

METHODS = registry.registered_names("method")
ADAPTERS = [form for form in FORMS if form != MERGED]
IDS = torch.arange(18).view(2, 9) % 40 + 3
CLOSE = {"rtol": 0, "atol": 1e-5}


def gpt2_base(folder: Path):
    tokenizer = text_tokenizer()
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": len(tokenizer), "n_positions": 64}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return save(folder, "causal", GPT2LMHeadModel(GPT2Config(**sizes, **ids, **dropout)).eval(), tokenizer)


@cache
def study(name: str, family: str | None = None, kind: str | None = None) -> Path:
    """The folder of an adapter that a few steps trained, among the results of a study.

    Args:
        kind: type of the method `peft`.
    """
    row = importlib.import_module(f"methods.test_{name}").ROW
    family = family or ("llama" if "llama" in row.families else "gpt2")
    options = row.options if kind is None else {"type": kind, "options": OPTIONS[kind] if kind != "loha" else {"r": 3}}
    rate = RATES.get(kind, row.rate)
    results = Path(mkdtemp()) / "results"
    base = {"llama": lambda path: causal_base(path, ears=False), "gpt2": gpt2_base}[family](results / "bases" / "toy")
    folder = results / "adapters" / "protein" / "toy" / name / "seed0"
    method = registry.load_module("method", name).Method(**options)
    train(Toy(lambda: base.model, 0), method, results / "checkpoints", rate=rate)
    run = {"base": "toy", "base_sha256": base.fingerprint, "seed": 0, "learning_rate": rate}
    run |= {"run_info": {"peft_config": {"method": name}, "train_config": {}}}
    deltas.save_adapter(folder, core.export(base.model, (), run), causal=True, transposed=family == "gpt2")
    return folder


def bare_model(folder: Path) -> torch.nn.Module:
    return load_base(folder.parents[4] / "bases" / "toy").model


@torch.no_grad()
def study_logits(folder: Path) -> torch.Tensor:
    model = bare_model(folder)
    bare = model(input_ids=IDS).logits
    core.apply(model, deltas.load_adapter(folder), folder)
    found = model(input_ids=IDS).logits
    assert (found - bare).abs().max() > 1e-4, "training changed nothing"
    return found


@torch.no_grad()
def peft_logits(folder: Path, exported: Path) -> torch.Tensor:
    return peft.PeftModel.from_pretrained(bare_model(folder), exported).eval()(input_ids=IDS).logits


@torch.no_grad()
def merged_logits(exported: Path) -> torch.Tensor:
    return AutoModelForCausalLM.from_pretrained(exported, use_safetensors=True).eval()(input_ids=IDS).logits


def page_rows() -> dict[str, str]:
    """{what docs/serve.md says that is exported: of which methods}."""
    page = (ROOT / "docs" / "serve.md").read_text()
    return dict(re.findall(r"^\| (adapter|whole model|nothing) \| (.*?) \|", page, re.MULTILINE))


def methods_by_export() -> dict[str, list[str]]:
    return {kind: re.findall(r"`(\w+)`", methods) for kind, methods in page_rows().items()}


def low_rank_types() -> list[str]:
    """Types of the method `peft` that are exported as adapters."""
    return page_rows()["adapter"].partition("`peft` of the types ")[2].split()


def test_the_page_names_every_method_once():
    named = [name for names in methods_by_export().values() for name in names]
    assert sorted(named) == sorted(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_exported_as_the_page_says_and_means_the_same(name, tmp_path):
    folder = study(name)
    kind = next(kind for kind, names in methods_by_export().items() if name in names)
    for form in FORMS:
        if kind == "adapter" or (kind == "whole model" and form == MERGED):
            export_trained(folder, tmp_path / form, form)
            logits = merged_logits(tmp_path / form) if form == MERGED else peft_logits(folder, tmp_path / form)
            torch.testing.assert_close(logits, study_logits(folder), **CLOSE)
            continue
        if name == "bitfit" and form == "vllm":  # its base here is GPT-2, which has biases, and which vLLM refuses
            continue
        with pytest.raises(InputError, match=rf"`{name}` .*; fix: {'run it here' if kind == 'nothing' else 'export'}"):
            export_trained(folder, tmp_path / form, form)
        assert not list(tmp_path.glob(f"*{form}*"))


@pytest.mark.parametrize("kind", TYPES)
def test_types_of_peft_that_multiply_out_to_a_low_rank_are_exported_as_adapters(kind, tmp_path):
    folder = study("peft", kind=kind)
    if kind not in low_rank_types():
        with pytest.raises(InputError, match=r"`peft` changes whole weights.*--merged.*`export_rank`"):
            export_trained(folder, tmp_path / "out", "vllm")
        return
    export_trained(folder, tmp_path / "out", "vllm")
    torch.testing.assert_close(peft_logits(folder, tmp_path / "out"), study_logits(folder), **CLOSE)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["r"] == {"loha": 9, "gralora": 8, "vera": 8}.get(kind, 4)


@pytest.mark.parametrize("form", ["peft", "lorax", MERGED])
def test_gpt2_whose_weights_lie_the_other_way_is_exported_too(form, tmp_path):
    folder = study("lora", "gpt2")
    export_trained(folder, tmp_path / "out", form)
    logits = merged_logits(tmp_path / "out") if form == MERGED else peft_logits(folder, tmp_path / "out")
    torch.testing.assert_close(logits, study_logits(folder), **CLOSE)


@pytest.mark.parametrize(
    ("form", "says"),
    [
        ("vllm", r"vllm serves no LoRA of models of this type \(gpt2\)"),
        (
            "tgi",
            r"tgi does not adapt a layer of this name, and would pass over it \(transformer\.h\.0\.attn\.c_attn\)",
        ),
    ],
)
def test_an_engine_without_lora_for_gpt2_is_named(form, says, tmp_path):
    with pytest.raises(InputError, match=says + ".*--merged"):
        export_trained(study("lora", "gpt2"), tmp_path / "out", form)


def test_a_merged_folder_is_one_of_safetensors_with_the_tokenizer_and_no_traces_of_the_workflow(tmp_path):
    folder = study("dora")
    export_trained(folder, tmp_path / "out", MERGED)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= names
    assert not names & {"base.json", "run.json", "adapter_config.json"}
    assert all(t.dtype == torch.float32 for t in load_file(tmp_path / "out" / "model.safetensors").values())
    card = (tmp_path / "out" / "README.md").read_text()
    assert "library_name: transformers" in card and "in float32" in card and str(tmp_path) not in card
