"""Exported folders: PEFT says with them what the study says, cards what was measured; the rest is refused."""

import json
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
import yaml
from models import causal_base, draw_gate, encoder_base, trained_adapter, whisper_base
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from loratory import __main__ as command_line
from loratory import export, registry
from loratory.adapters import core, deltas
from loratory.adapters.deltas import LowRank
from loratory.adapters.methods.lora import Method
from loratory.bases.core import load_base
from loratory.errors import InputError
from loratory.export import export_trained
from loratory.mixers.core import Mixture
from loratory.mixers.store import save_mixture

IDS = torch.arange(18).view(2, 9) % 40 + 3
HOSTILE = "CC0 | <script>alert(1)</script> [here](https://example.org) `x`\n---\n# head"
VALUES = {
    "value": 0.7654321,
    "low": 0.7111,
    "high": 0.8222,
    "per_seed": [0.7333],
    "unit": "",
    "direction": "up",
    "n": 321,
}


def metric_row(system: str, **changes) -> dict:
    row = {"system": system, "metric": "auc", "split": "test", "status": "ok", "primary": True, "loss": False}
    return row | VALUES | changes


@pytest.fixture
def results(tmp_path) -> Path:
    """Results of a study of two domains, with an adapter each that has another rank and scale in one of its layers."""
    results = tmp_path / "results"
    base = causal_base(results / "bases" / "toy", ears=False)
    for seed, domain in enumerate(("protein", "lncrna")):
        adapter = trained_adapter(base.model, Method(rank=2 + seed, alpha=4.0), seed)
        [name, *_] = adapter.deltas
        a, b = adapter.deltas[name].A, adapter.deltas[name].B
        adapter.deltas[name] = LowRank(torch.cat([a, a.flip(1)]), torch.cat([b, b], 1), 0.7)
        run = {"base": "toy", "base_sha256": base.fingerprint, "seed": 0, "learning_rate": 0.01}
        run |= {"run_info": {"peft_config": {"method": "lora"}, "train_config": {"steps": 5}}}
        deltas.save_adapter(folder_of(results, domain), replace(adapter, run=run), causal=True)
        rows = [metric_row(f"lora@{domain}"), metric_row("base", value=0.5), metric_row("lora@other", value=0.1234)]
        rows += [metric_row("mixed", value=0.6), metric_row(f"lora@{domain}", metric="f1", status="undefined")]
        digests = {"/home/somebody/private/my.fasta": "ab12"}
        for file, content in {
            f"data/{domain}/card.json": {"records": {"train": 12, "test": 3}, "source": {"licence": HOSTILE}},
            f"data/{domain}/audit.json": {"counts": {"groups_in_two_splits": 0}},
            f"raw/data/{domain}/files.json": {"sha256": digests, "simulated": domain == "lncrna"},
            f"metrics/data/{domain}/toy.json": {"seeds": [0], "rows": rows},
        }.items():
            (results / file).parent.mkdir(parents=True, exist_ok=True)
            (results / file).write_text(json.dumps(content))
    return results


def folder_of(results: Path, domain: str) -> Path:
    return results / "adapters" / domain / "toy" / "lora" / "seed0"


@pytest.fixture
def adapter(results) -> Path:
    return folder_of(results, "protein")


def save_mixed(results: Path, kind: str, **options) -> tuple[Path, torch.Tensor]:
    """A mixture of the two adapters among the results, and what it says."""
    base = load_base(results / "bases" / "toy")
    folders = {domain: folder_of(results, domain) for domain in ("protein", "lncrna")}
    experts = {domain: deltas.load_adapter(folder) for domain, folder in folders.items()}
    mixer = registry.load_module("mixer", kind).Mixer(**options)
    mixture = Mixture(base.model, mixer.prepare_experts(experts, 0), mixer, domains=list(experts)).eval()
    if mixture.gate is not None:
        draw_gate(mixture.gate, 0, 0.3)
    run = {"base": "toy", "base_sha256": base.fingerprint, "seed": 0, "adapters": dict.fromkeys(folders, "lora")}
    folder = results / "mixtures" / "mixed" / "seed0"
    save_mixture(folder, mixture, kind, folders, run)
    return folder, mixture(input_ids=IDS).logits


def bare_model(results: Path):
    return load_base(results / "bases" / "toy").model


@torch.no_grad()
@pytest.mark.parametrize("form", ["peft", "vllm", "lorax", "tgi"])
def test_an_exported_adapter_gives_in_peft_the_logits_of_the_study(results, adapter, form, tmp_path):
    bare = bare_model(results)(input_ids=IDS).logits
    wanted = peft.PeftModel.from_pretrained(bare_model(results), adapter).eval()(input_ids=IDS).logits
    export_trained(adapter, tmp_path / "out", form)
    found = peft.PeftModel.from_pretrained(bare_model(results), tmp_path / "out").eval()(input_ids=IDS).logits
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    assert (wanted - bare).abs().max() > 1e-2


@pytest.mark.parametrize("form", ["vllm", "lorax", "tgi"])
def test_engines_get_one_rank_and_one_scale_and_some_every_layer_of_a_type(results, adapter, form, tmp_path):
    stored = deltas.load_adapter(adapter)
    [name, *_] = stored.deltas
    del stored.deltas[name]
    [name, *_] = stored.deltas
    delta = stored.deltas[name]
    stored.deltas[name] = LowRank(torch.cat([delta.A] * 3), torch.cat([delta.B] * 3, 1), 0.4)
    deltas.save_adapter(adapter, stored, causal=True)
    export_trained(adapter, tmp_path / "out", form)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    rank = 6 if form == "vllm" else 8  # the next that the others have a kernel for
    assert (config["r"], config["rank_pattern"], config["alpha_pattern"], config["bias"]) == (rank, {}, {}, "none")
    assert config["modules_to_save"] is None
    shapes = {
        t.shape[0] for n, t in load_file(tmp_path / "out" / "adapter_model.safetensors").items() if "lora_A" in n
    }
    assert shapes == {rank}
    assert len(config["target_modules"]) == len(stored.deltas) + (form != "vllm")


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"depth": 3, "width": 16},
        {"depth": 2, "width": 16, "dropout": 0.0, "layerwise": False, "scale": 1.3},
        {"top_k": 1, "temperature": 0.7},
        {"top_k": 1, "renormalise": True, "temperature": 0.7},
        {"top_k": 2, "renormalise": True, "temperature": 0.7},
    ],
    ids=str,
)
def test_an_exported_xlora_gives_in_peft_the_logits_of_the_study(results, options, tmp_path):
    folder, wanted = save_mixed(results, "xlora", **options)
    export_trained(folder, tmp_path / "out", "peft")
    model = bare_model(results)
    bare = model(input_ids=IDS).logits
    model.config.use_cache = False
    card = (tmp_path / "out" / "README.md").read_text()
    names = {
        "model": model,
        "FOLDER": str(tmp_path / "out"),
        "PeftConfig": peft.PeftConfig,
        "PeftModel": peft.PeftModel,
    }
    exec(card.partition("```python\n")[2].partition("```")[0], names)
    theirs = names["mixture"].eval()
    torch.testing.assert_close(theirs(input_ids=IDS).logits, wanted, rtol=0, atol=1e-5)
    assert (wanted - bare).abs().max() > 1e-2


def test_a_card_holds_what_was_measured_of_the_system_and_no_path_of_the_machine(adapter, tmp_path):
    export_trained(adapter, tmp_path / "out", "peft")
    card = (tmp_path / "out" / "README.md").read_text()
    _, front, text = card.split("---\n", 2)
    fields = yaml.safe_load(front)
    [result] = fields["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "auc", "value": 0.7654321, "name": "auc [0.7111, 0.8222]"}]
    assert fields["library_name"] == "peft" and "base_model" not in fields
    assert r"| protein | auc ↑ | 0.7654 \[0.7111, 0.8222\] | 0.7333 | 0.5 \[0.7111, 0.8222\] | 321 |" in text
    assert "0.1234" not in card and "| f1" not in card
    assert "my.fasta (sha256 ab12)" in text and "/home" not in card and str(tmp_path) not in card
    assert "loratory run CONFIG.yaml RESULTS/adapters/protein/toy/lora/seed0/run.json" in text
    assert '"steps": 5' in text and deltas.load_adapter(adapter).run["base_sha256"] in text


def test_a_card_escapes_what_configs_say_and_names_simulated_data(results, tmp_path):
    export_trained(folder_of(results, "lncrna"), tmp_path / "out", "peft")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "<script>" not in card and "[here](" not in card and "\n# head" not in card and "CC0 | " not in card
    assert "CC0 \\| &lt;script&gt;" in card
    assert "simulated data, which says nothing about the world" in card


def test_a_card_names_the_commit_of_a_published_base(results, adapter, tmp_path):
    manifest = results / "bases" / "toy" / "base.json"
    facts = json.loads(manifest.read_text()) | {"origin": "owner/model", "revision": "0" * 40, "licence": "MIT"}
    manifest.write_text(json.dumps(facts))
    export_trained(adapter, tmp_path / "out", "peft")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("owner/model", "0" * 40)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "base_model: owner/model\n" in card and "| licence | MIT |" in card


def test_a_card_of_what_was_not_measured_says_so(results, adapter, tmp_path):
    (results / "metrics" / "data" / "protein" / "toy.json").unlink()
    export_trained(adapter, tmp_path / "out", "peft")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Nothing yet: no metrics" in card and "model-index" not in card


def make_dense(folder: Path) -> None:
    stored = deltas.load_adapter(folder)
    stored.run["run_info"]["peft_config"]["method"] = "full_ft"
    dense = {f"{name}.weight": torch.randn_like(delta.to_dense()) for name, delta in stored.deltas.items()}
    deltas.save_adapter(folder, replace(stored, deltas={}, dense=dense), causal=True)


def make_empty(folder: Path) -> None:
    stored = deltas.load_adapter(folder)
    for name in (deltas.CONFIG, deltas.WEIGHTS):
        folder.joinpath(name).unlink()
    tensor = {"model.norm.weight": torch.zeros(32)}
    deltas.save_adapter(folder, replace(stored, deltas={}, dense=tensor), causal=True)
    folder.joinpath(deltas.DENSE).unlink()
    save_file({}, folder / deltas.DENSE)


def make_fused(folder: Path) -> None:
    stored = deltas.load_adapter(folder)
    changes = {"model.layers.0.self_attn.qkv_proj": next(iter(stored.deltas.values()))}
    deltas.save_adapter(folder, replace(stored, deltas=changes), causal=True)


def make_heavy(folder: Path) -> None:
    stored = deltas.load_adapter(folder)
    [name, *_] = stored.deltas
    delta = stored.deltas[name]
    stored.deltas[name] = LowRank(delta.A.repeat(100, 1), delta.B.repeat(1, 100), 0.01)
    deltas.save_adapter(folder, stored, causal=True)


def make_headed(folder: Path) -> None:
    stored = deltas.load_adapter(folder)
    deltas.save_adapter(folder, replace(stored, heads={"lm_head.weight": torch.zeros(3, 4)}), causal=True)


def make_foreign(folder: Path) -> None:
    manifest = folder.parents[4] / "bases" / "toy" / "base.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"weights_sha256": "0"}))


def make_masked(folder: Path) -> None:
    manifest = folder.parents[4] / "bases" / "toy" / "base.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"family": "masked"}))


@pytest.mark.parametrize(
    ("change", "form", "says"),
    [
        (make_dense, "peft", "`full_ft` changes whole weights, which is no LoRA (model.layers."),
        (make_dense, "tgi", "fix: export the whole model `--merged`, or train it with `export_rank`"),
        (make_empty, "peft", "the adapter changes nothing"),
        (make_headed, "vllm", "modules were trained whole (lm_head.weight)"),
        (
            make_fused,
            "tgi",
            "tgi does not adapt a layer of this name, and would pass over it (model.layers.0.self_attn.qkv",
        ),
        (make_heavy, "lorax", "the rank is above lorax's highest (200); expected at most 128"),
        (make_heavy, "tgi", "fix: export it `--for peft`, or the whole model `--merged`, or train it at a lower rank"),
        (make_masked, "vllm", "its base is no causal language model (masked)"),
        (make_foreign, "peft", "what is exported was trained on another base"),
    ],
)
def test_what_a_form_cannot_say_is_refused_by_name_and_nothing_is_written(adapter, change, form, says, tmp_path):
    change(adapter)
    with pytest.raises(InputError) as caught:
        export_trained(adapter, tmp_path / "out", form)
    assert says in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results"]


def test_an_engine_of_texts_gets_no_adapter_that_learnt_from_audio(results, tmp_path):
    (results / "adapters" / "protein").rename(results / "adapters" / "speech")
    with pytest.raises(InputError, match=r"what it reads is audio \(speech\); expected text"):
        export_trained(folder_of(results, "speech"), tmp_path / "out", "vllm")


@pytest.mark.parametrize(
    ("kind", "options", "form", "says"),
    [
        ("arrow", {}, "peft", "PEFT's X-LoRA cannot express this mixture (arrow)"),
        ("arrow", {}, "tgi", "tgi serves single adapters and not a mixture that weighs its experts by its input"),
        ("xlora", {"per": "sequence"}, "peft", "PEFT's X-LoRA cannot express this mixture (xlora)"),
        ("xlora", {}, "lorax", "fix: PEFT runs X-LoRA (`--for peft`), of the engines mistral.rs does; or export"),
        (
            "xlora",
            {},
            "merged",
            "no model of plain weights holds a mixture that weighs its experts by its input (xlora)",
        ),
    ],
)
def test_a_mixture_that_a_form_cannot_say_is_refused_by_name(results, kind, options, form, says, tmp_path):
    folder, _ = save_mixed(results, kind, **options)
    with pytest.raises(InputError) as caught:
        export_trained(folder, tmp_path / "out", form)
    assert says in str(caught.value) and not (tmp_path / "out").exists()


@torch.no_grad()
@pytest.mark.parametrize("form", ["peft", "vllm", "lorax", "tgi", "merged"])
@pytest.mark.parametrize(
    ("kind", "options"), [("uniform", {}), ("weighted_merge", {}), ("ties", {"density": 0.5}), ("pooled", {})], ids=str
)
def test_a_mixture_that_weighs_every_token_alike_is_exported_as_one_adapter(results, kind, options, form, tmp_path):
    folder, wanted = save_mixed(results, kind, **options)
    export_trained(folder, tmp_path / "out", form)
    if form == "merged":
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()(input_ids=IDS).logits
    else:
        found = peft.PeftModel.from_pretrained(bare_model(results), tmp_path / "out").eval()(input_ids=IDS).logits
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "merger of adapters" in card.lower() and "xlora" not in yaml.safe_load(card.split("---\n")[1])["tags"]


@torch.no_grad()
@pytest.mark.parametrize(("kind", "make"), [("whisper", whisper_base), ("encoder", encoder_base)])
def test_adapters_of_other_families_leave_as_whole_models_and_engines_refuse_them(kind, make, tmp_path):
    base = make(tmp_path / "results" / "bases" / "toy")
    folder = folder_of(tmp_path / "results", "speech" if kind == "whisper" else "protein")
    adapter = trained_adapter(base.model, Method(rank=2), 0, base.heads)
    run = {"base": "toy", "base_sha256": base.fingerprint, "seed": 0, "learning_rate": 0.01}
    deltas.save_adapter(folder, replace(adapter, run=run), causal=False)
    ids = IDS % 20 + 3
    inputs = {"input_ids": ids}
    if kind == "whisper":
        inputs = {"input_features": torch.linspace(-1, 1, 200).expand(2, 80, 200), "decoder_input_ids": ids}
    core.apply(base.model, adapter, folder)
    wanted = base.model(**inputs).logits
    export_trained(folder, tmp_path / "whole", "merged")
    found = type(base).model_class.from_pretrained(tmp_path / "whole").eval()(**inputs).logits
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    with pytest.raises(InputError, match=rf"no causal language model \({kind}\); expected causal; fix: .*--merged"):
        export_trained(folder, tmp_path / "out", "vllm")


@pytest.mark.parametrize("place", ["results/adapters/protein/out", "file/out"])
def test_no_folder_is_written_among_the_results_or_below_a_file(adapter, place, tmp_path):
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=r"would lie among the results|nothing can be written here"):
        export_trained(adapter, tmp_path / place, "peft")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_link_that_leads_nowhere_is_something_that_exists(adapter, tmp_path):
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="the folder exists"):
        export_trained(adapter, tmp_path / "out", "merged")
    assert not (tmp_path / "nowhere").exists()


def test_a_disk_that_fills_up_leaves_nothing_behind(adapter, tmp_path, monkeypatch):
    def fail(*given, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "write_card", fail)
    with pytest.raises(OSError, match="No space left"):
        export_trained(adapter, tmp_path / "out", "vllm")
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


@pytest.mark.parametrize(("rank", "flag"), [(1, 1), (9, 16), (130, 256)])
def test_the_card_for_vllm_names_a_rank_that_it_knows(adapter, rank, flag, tmp_path):
    stored = deltas.load_adapter(adapter)
    changes = {
        name: LowRank(d.A[:1].repeat(rank, 1), d.B[:, :1].repeat(1, rank), 0.1) for name, d in stored.deltas.items()
    }
    deltas.save_adapter(adapter, replace(stored, deltas=changes), causal=True)
    export_trained(adapter, tmp_path / "out", "vllm")
    assert f"--max-lora-rank {flag} " in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(("rank", "kernel"), [(3, 8), (16, 16), (40, 64), (128, 128)])
def test_lorax_and_tgi_get_ranks_that_they_have_kernels_for(adapter, rank, kernel, tmp_path):
    stored = deltas.load_adapter(adapter)
    changes = {n: LowRank(d.A[:1].repeat(rank, 1), d.B[:, :1].repeat(1, rank), 0.1) for n, d in stored.deltas.items()}
    deltas.save_adapter(adapter, replace(stored, deltas=changes), causal=True)
    for form in ("lorax", "tgi"):
        export_trained(adapter, tmp_path / form, form)
        assert json.loads((tmp_path / form / "adapter_config.json").read_text())["r"] == kernel


def test_the_command_writes_a_folder_once_and_says_in_one_line_what_is_wrong(adapter, tmp_path, capsys):
    given = ["export", str(adapter), str(tmp_path / "out"), "--for", "vllm"]
    assert command_line.main(given) == 0 and (tmp_path / "out" / "README.md").is_file()
    assert command_line.main(given) == 1
    assert command_line.main(["export", str(adapter.parent), str(tmp_path / "more")]) == 1
    first, second = capsys.readouterr().err.splitlines()[-2:]
    assert "the folder exists" in first and "neither a trained adapter nor a trained mixture" in second
