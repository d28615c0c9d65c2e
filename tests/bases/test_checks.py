"""A folder that is not a whole model of its family gets one line that says why, and nothing is written."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from folding_model import save_folding_model
from models import bert, entry, llama, save, text_tokenizer, whisper_base
from safetensors.torch import load_file, save_file
from transformers import BertForMaskedLM, LlamaModel, PreTrainedTokenizerFast

from loratory.bases.checks import check_model_folder
from loratory.bases.core import load_base, settings_digest
from loratory.bases.prepare import prepare_folder
from loratory.config import RESOURCES
from loratory.data.files import read_json
from loratory.errors import InputError
from loratory.training.pretrain import word_tokenizer

OTHER = {"transformers_weights": "other.safetensors"}
NORM, GATE = "model.norm.weight", "model.layers.0.mlp.gate_proj.weight"


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> dict[str, Path]:
    """{family: folder} as publishers have them."""
    folder = tmp_path_factory.mktemp("published")
    save(folder / "causal", "causal", llama(len(text_tokenizer())), text_tokenizer())
    whisper_base(folder / "whisper")
    save_encoder(folder / "encoder")
    save_folding_model(folder / "folding")
    return {family: folder / family for family in ("causal", "whisper", "encoder", "folding")}


def save_encoder(folder: Path) -> None:
    """A masked language model over codons, without pooler and classifier."""
    special = ["[PAD]", "[UNK]"]
    core = word_tokenizer(["acg tta gca cgt"], 64, special)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token=special[0], unk_token=special[1])
    BertForMaskedLM(bert().config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def change_json(path: Path, **changes) -> None:
    path.write_text(json.dumps({**read_json(path), **changes}))


def change_weights(folder: Path, **changes) -> None:
    """Replaces tensors, or takes out those that are None."""
    path = folder / "model.safetensors"
    tensors = {name: tensor for name, tensor in (load_file(path) | changes).items() if tensor is not None}
    save_file(tensors, path, {"format": "pt"})


def shard(folder: Path, **places) -> None:
    """The weights in two files with an index; `places` moves tensors in it."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for file, chosen in files.items():
        save_file({name: tensors[name] for name in chosen}, folder / file, {"format": "pt"})
    where = {name: file for file, chosen in files.items() for name in chosen}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where | places}))


def drop(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).unlink()


def pickle_alone(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def link_out(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "blob")
    (folder / "model.safetensors").symlink_to(folder.parent / "blob")


def cut_short(folder: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-1000])


def make_pointer(folder: Path) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (folder / "model.safetensors").write_text(text)


def exchange_tokenizer(folder: Path, texts: list[str], size: int = 64) -> None:
    core = word_tokenizer(texts, size, ["[UNK]", "<end>"])
    PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", eos_token="<end>").save_pretrained(folder)


def put_nan(folder: Path) -> None:
    gate = load_file(folder / "model.safetensors")[GATE]
    gate[3, 5] = float("nan")
    change_weights(folder, **{GATE: gate})


def publish_body(folder: Path) -> None:
    shutil.rmtree(folder)
    LlamaModel(llama(len(text_tokenizer())).config).save_pretrained(folder)
    text_tokenizer().save_pretrained(folder)


def change_template(path: Path, begin: str) -> None:
    """What the tokenizer puts before a text."""
    template = read_json(path)["post_processor"]
    template["single"][0]["SpecialToken"]["id"] = begin
    change_json(path, post_processor=template)


def config(**changes):
    return lambda folder: change_json(folder / "config.json", **changes)


FAULTS = {
    "no folder": (shutil.rmtree, r"no such folder; expected a Hugging Face model folder"),
    "no config": (lambda f: drop(f, "config.json"), r"config\.json: no such file; expected a Hugging Face model"),
    "config no JSON": (lambda f: (f / "config.json").write_text("{"), r"config\.json: not JSON"),
    "config nested": (lambda f: (f / "config.json").write_text("[" * 100_000), r"config\.json: not JSON"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), r"config\.json: not a JSON object"),
    "config no text": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe{}"), r"config\.json: not JSON"),
    "no tokenizer": (
        lambda f: drop(f, "tokenizer.json"),
        r"no whole tokenizer; expected tokenizer\.json, vocab\.txt, vocab\.json with merges\.txt, or \*\.model",
    ),
    "half a tokenizer": (
        lambda f: (f / "tokenizer.json").rename(f / "vocab.json"),
        r"no whole tokenizer; expected tokenizer\.json, vocab\.txt, vocab\.json with merges\.txt",
    ),
    "tokenizer cut short": (
        lambda f: (f / "tokenizer.json").write_text((f / "tokenizer.json").read_text()[:500]),
        r"the tokenizer does not work \(.*\); expected a tokenizer of transformers",
    ),
    "tokenizer of another model": (
        lambda f: exchange_tokenizer(f, [" ".join(map(str, range(500)))], 1000),
        r"the tokenizer has more tokens than the model has embeddings \(502\); expected at most 300",
    ),
    "tokenizer of no text": (
        lambda f: exchange_tokenizer(f, ["3 1 4"]),
        r"the tokenizer knows neither words nor residues nor codons \(5 tokens\)",
    ),
    "tokenizer without end": (
        lambda f: change_json(f / "tokenizer_config.json", eos_token=None),
        r"the tokenizer has no `eos_token`; expected one; fix: name it in tokenizer_config\.json",
    ),
    "no weights": (
        lambda f: drop(f, "model.safetensors"),
        r"no weights; expected model\.safetensors, or model\.safet",
    ),
    "pickle": (
        pickle_alone,
        r"pytorch_model\.bin: the weights are pickled, .* expected \*\.safetensors; fix: load it",
    ),
    "cut short": (cut_short, r"model\.safetensors: damaged or cut short"),
    "empty": (lambda f: (f / "model.safetensors").write_bytes(b""), r"model\.safetensors: damaged or cut short"),
    "pointer": (make_pointer, r"model\.safetensors: a Git LFS pointer in place of the file; fix: `git lfs pull`"),
    "missing weight": (
        lambda f: change_weights(f, **{NORM: None}),
        r"1 weights are missing, such as model\.norm\.weight \(LlamaForCausalLM\); expected every weight",
    ),
    "unexpected weight": (
        lambda f: change_weights(f, **{"model.extra.weight": torch.ones(2)}),
        r"1 weights are unexpected, such as model\.extra\.weight",
    ),
    "too few layers in the config": (
        config(num_hidden_layers=1),
        r"9 weights are unexpected, such as model\.layers\.1\.input_layernorm\.weight",
    ),
    "too many layers in the config": (config(num_hidden_layers=3), r"9 weights are missing, such as model\.layers\.2"),
    "wrong shape": (
        config(intermediate_size=64),
        r"6 weights of wrong shape, such as model\.layers\.0\.mlp\.down_proj\.weight \(\(32, 48\)\); expected",
    ),
    "impossible sizes": (config(num_attention_heads=5), r"the model does not open"),
    "NaN": (put_nan, rf"model\.safetensors:{GATE}: a weight is NaN or infinite"),
    "infinite": (
        lambda f: change_weights(f, **{NORM: torch.full((32,), float("-inf"), dtype=torch.bfloat16)}),
        r"model\.safetensors:model\.norm\.weight: a weight is NaN or infinite",
    ),
    "missing shard": (
        lambda f: (shard(f), drop(f, "two.safetensors")),
        r"index\.json: two\.safetensors is missing, one of 2 shards; expected all shards",
    ),
    "shard outside": (
        lambda f: shard(f, **{NORM: "../outside.safetensors"}),
        r"index\.json: a shard is not a safetensors file of the folder \(\.\./outside\.safetensors\)",
    ),
    "pickled shard": (lambda f: shard(f, **{NORM: "x.bin"}), r"index\.json: a shard is not a safetensors file"),
    "NaN in a shard": (lambda f: (put_nan(f), shard(f)), rf"(one|two)\.safetensors:{GATE}: a weight is NaN or infin"),
    "link": (
        link_out,
        r"model\.safetensors: a link leads out of the folder .* fix: copy the folder with its contents",
    ),
    "links in a circle": (
        lambda f: (drop(f, "model.safetensors"), (f / "model.safetensors").symlink_to("model.safetensors")),
        r"no weights; expected model\.safetensors",
    ),
    "odd architectures": (config(architectures=[["x"]]), r"config\.json: `architectures` is no list of names"),
    "odd manifest": (lambda f: (f / "base.json").write_text("[]"), r"base\.json: not a JSON object"),
    "quantised": (
        config(quantization_config={}),
        r"config\.json: the weights are quantised; expected weights in fp32",
    ),
    "code": (
        config(model_type="evil", architectures=["Evil"], auto_map={"AutoConfig": "evil.Config"}),
        r"config\.json: a model with code of its own, which is never run \(Evil\); expected a class of transformers",
    ),
    "kernel": (
        config(attn_implementation="owner/kernel"),
        r"`attn_implementation` asks for code from elsewhere \(owner/kernel\)",
    ),
    "kernel in a private key": (
        config(_attn_implementation="flash_attention_2"),
        r"`_attn_implementation` asks for code from elsewhere \(flash_attention_2\); expected eager or sdpa",
    ),
    "kernel by part": (config(attn_implementation={"": "owner/kernel"}), r"`attn_implementation` asks for code from"),
    "kernel further in": (config(text_config={"experts_implementation": "a/b"}), r"`experts_implementation` asks for"),
    "quantised further in": (config(text_config={"quantization_config": {}}), r"the weights are quantised"),
    "other weights": (
        lambda f: (shutil.copy(f / "model.safetensors", f / "other.safetensors"), config(**OTHER)(f)),
        r"`transformers_weights` names other weights \(other\.safetensors\); expected model\.safetensors, or",
    ),
    "adapter beside it": (
        lambda f: (f / "adapter_config.json").write_text('{"peft_type": "LORA"}'),
        r"adapter_config\.json: an adapter lies in the folder of the base; .* fix: merge it into the weights",
    ),
    "tokenizer outside": (
        lambda f: (
            (f / "tokenizer.json").rename(f.parent / "tokenizer.4.0.json"),
            change_json(f / "tokenizer_config.json", fast_tokenizer_files=["../tokenizer.4.0.json"]),
        ),
        r"tokenizer_config\.json: `fast_tokenizer_files` leads out of the folder \(\.\./tokenizer\.4\.0\.json\)",
    ),
    "layers without end": (
        config(num_hidden_layers=10**9),
        r"`num_hidden_layers` is more than the weights can fill \(1000000000\); expected at most 21",
    ),
    "labels without end": (config(num_labels=10**12), r"`num_labels` is more than the weights can fill"),
    "NaN in the config": (config(rms_norm_eps=float("nan")), r"the model's loss on a short text is not a number"),
    "no context": (config(max_position_embeddings=-1), r"the example does not fit into the base's context"),
    "empty end": (
        lambda f: change_json(f / "tokenizer_config.json", eos_token=""),
        r"the tokenizer has no `eos_token`; expected one",
    ),
    "odd length in the tokenizer": (
        lambda f: change_json(f / "tokenizer_config.json", model_max_length=[[]]),
        r"the tokenizer does not work \(TypeError: .*\); expected a tokenizer of transformers",
    ),
    "panic in the tokenizer": (
        lambda f: change_template(f / "tokenizer.json", "nowhere"),
        r"the base does not read an example \(PanicException: .*\); expected a base that does",
    ),
    "odd mark": (lambda f: (f / "base.json").write_text('{"weights": Infinity}'), r"base\.json: `weights` is no word"),
    "body alone": (
        publish_body,
        r"a model of another architecture \(LlamaModel\); expected LlamaForCausalLM of family causal",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder_that_is_no_whole_model_is_refused_in_one_line(fault, published, tmp_path):
    spoil, line = FAULTS[fault]
    folder = tmp_path / "given"
    shutil.copytree(published["causal"], folder)
    spoil(folder)
    with pytest.raises(InputError, match=line) as caught:
        prepare_folder(folder, "b", entry("causal"), tmp_path / "out" / "b")
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(folder))
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize("family", ["causal", "encoder", "whisper", "folding"])
def test_a_folder_fits_its_own_family_and_no_other(family, published):
    for other, folder in published.items():
        if other == family:
            check_model_folder(folder, family)
            continue
        with pytest.raises(InputError, match=r"config\.json: (a model of another architecture|not a folding model)"):
            check_model_folder(folder, family)


def test_the_right_family_is_named_where_another_was_given(published):
    told = r"\(WhisperForConditionalGeneration\); .* family causal; fix: `family: whisper`"
    with pytest.raises(InputError, match=told):
        check_model_folder(published["whisper"], "causal")


def test_shards_constants_of_older_versions_and_links_inside_are_accepted(published, tmp_path):
    folder = tmp_path / "given"
    shutil.copytree(published["causal"], folder)
    change_weights(folder, **{"model.rotary_emb.inv_freq": torch.ones(4)})
    shard(folder)
    (folder / "two.safetensors").rename(folder / "shards")
    (folder / "two.safetensors").symlink_to("shards")
    save_file({"other": torch.ones(1)}, folder / "consolidated.safetensors")
    prepare_folder(folder, "b", entry("causal"), tmp_path / "b")
    assert {path.name for path in (tmp_path / "b").glob("*.safetensors")} == {"one.safetensors", "two.safetensors"}
    found, given = load_base(tmp_path / "b").model, load_base(published["causal"]).model
    assert all(map(torch.equal, found.state_dict().values(), given.state_dict().values()))


def test_weights_in_a_single_shard_open_and_an_index_beside_a_whole_file_is_left_out(published, tmp_path):
    whole, single = tmp_path / "whole", tmp_path / "single"
    for folder in (whole, single):
        shutil.copytree(published["causal"], folder)
        places = dict.fromkeys(load_file(folder / "model.safetensors"), "model-1-of-1.safetensors")
        index = {"metadata": {}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (single / "model.safetensors").rename(single / "model-1-of-1.safetensors")
    for folder, kept in ((whole, {"model.safetensors"}), (single, {p.name for p in single.glob("model*")})):
        prepare_folder(folder, "b", entry("causal"), tmp_path / f"prepared {folder.name}")
        load_base(tmp_path / f"prepared {folder.name}")
        assert {path.name for path in (tmp_path / f"prepared {folder.name}").glob("model*")} == kept


def test_an_encoder_needs_no_heads_and_loses_that_of_its_pretraining(published, tmp_path):
    names = load_file(published["encoder"] / "model.safetensors")
    assert any(name.startswith("cls.") for name in names) and "classifier.weight" not in names
    prepare_folder(published["encoder"], "b", entry("encoder"), tmp_path / "b")
    assert load_base(tmp_path / "b").heads == ("classifier", "bert.pooler")


def test_an_encoder_with_more_layers_than_its_config_says_is_refused(published, tmp_path):
    shutil.copytree(published["encoder"], tmp_path / "given")
    change_json(tmp_path / "given" / "config.json", num_hidden_layers=1)
    with pytest.raises(InputError, match=r"16 weights are unexpected, such as bert\.encoder\.layer\.1"):
        check_model_folder(tmp_path / "given", "encoder")


def test_code_beside_the_weights_is_neither_run_nor_copied(published, tmp_path):
    folder = tmp_path / "given"
    shutil.copytree(published["causal"], folder)
    change_json(folder / "config.json", auto_map={"AutoModelForCausalLM": "evil.Evil", "AutoConfig": "evil.Config"})
    change_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tokenizer", None]})
    (folder / "evil.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: ...\nConfig = Tokenizer = Evil"
    )
    prepare_folder(folder, "b", entry("causal"), tmp_path / "b")
    load_base(tmp_path / "b")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "b" / "evil.py").exists()


def test_attention_is_the_librarys_own_whatever_a_config_asks_for(published, tmp_path):
    shutil.copytree(published["causal"], tmp_path / "given")
    asked = {"attn_implementation": "flash_attention_2", "experts_implementation": "deepgemm"}
    change_json(tmp_path / "given" / "config.json", **asked)
    prepare_folder(tmp_path / "given", "b", entry("causal"), tmp_path / "b")
    assert load_base(tmp_path / "b").model.config._attn_implementation == "sdpa"


def test_what_is_no_file_is_not_copied(published, tmp_path):
    shutil.copytree(published["causal"], tmp_path / "given")
    (tmp_path / "given" / "notes.txt").mkdir()
    os.mkfifo(tmp_path / "given" / "pipe.md")
    prepare_folder(tmp_path / "given", "b", entry("causal"), tmp_path / "b")
    assert not {"notes.txt", "pipe.md"} & {path.name for path in (tmp_path / "b").iterdir()}


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json", "added_tokens.json"])
def test_a_prepared_base_whose_settings_were_changed_is_not_opened(name, published, tmp_path):
    prepare_folder(published["causal"], "b", entry("causal"), tmp_path / "b")
    with open(tmp_path / "b" / name, "a") as file:
        file.write(" " if (published["causal"] / name).is_file() else "{}")
    with pytest.raises(InputError, match=r"settings differ from those the base was prepared with; fix: prepare"):
        load_base(tmp_path / "b")


def test_a_learning_curves_seconds_are_no_setting(published, tmp_path):
    prepare_folder(published["causal"], "b", entry("causal"), tmp_path / "b")
    before = settings_digest(tmp_path / "b")
    (tmp_path / "b" / "curve.json").write_text('[{"step": 0, "loss": 1.5, "seconds": 0.123}]')
    assert settings_digest(tmp_path / "b") == before


def test_an_audio_prefix_that_does_not_open_is_refused(tmp_path):
    shutil.copytree(RESOURCES / "bases" / "mini_lm", tmp_path / "given")
    path = tmp_path / "given" / "audio" / "audio_prefix.safetensors"
    save_file({name: t for name, t in load_file(path).items() if "projector" not in name}, path)
    with pytest.raises(InputError, match=r"audio: the audio prefix does not open"):
        check_model_folder(tmp_path / "given", "causal")


@pytest.mark.parametrize("name", ["whisper_tiny_en", "whisper_base", "smollm2_135m"])
def test_published_models_pass(name, real_weights):
    check_model_folder(real_weights(name), "whisper" if name.startswith("whisper") else "causal")
