"""What somebody else hands over is inert or refused in one line: no program of it runs, nothing outside is read."""

import json
import os
import pickle
import shutil
import time
from pathlib import Path

import joblib
import numpy as np
import pytest
from models import causal_base, entry, llama, save, text_tokenizer, trained_adapter
from safetensors.torch import load_file, save_file
from studies import changed, shipped
from transformers.integrations import hub_kernels

from loratory import registry
from loratory.adapters.deltas import load_adapter, save_adapter
from loratory.adapters.methods.lora import Method
from loratory.bases import core
from loratory.bases.checks import check_model_folder
from loratory.bases.core import load_base
from loratory.bases.families.causal import LONGEST_FRAME
from loratory.bases.prepare import prepare_folder
from loratory.config import domain_options, read_config
from loratory.data.ledger import Ledger
from loratory.domains.contract import Example
from loratory.domains.dataset import gather_records
from loratory.errors import InputError, on_one_line
from loratory.job import open_log
from loratory.mixers.core import Mixture
from loratory.mixers.methods.xlora import Mixer
from loratory.mixers.published import open_published
from loratory.mixers.store import open_mixture, save_mixture

MARK = "a_program_ran"
CODE = f"open({MARK!r}, 'w')\nclass Own: pass\n"
PICKLES = (
    *("pytorch_model.bin", "adapter_model.bin", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"),
    *("xlora_classifier.bin", "gate.pt", "model.ckpt", "tf_model.h5", "flax_model.msgpack", "scaler.joblib", "x.npy"),
)
SCRIPTS = ("modeling_own.py", "tokenization_own.py", "configuration_own.py", "__init__.py", "conftest.py", "setup.py")


class Program:
    """A pickle of it leaves a mark when it is opened."""

    def __reduce__(self):
        return open, (MARK, "w")


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path, monkeypatch):
    """In the folder of the test, where a program would leave its mark."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not Path(MARK).exists()


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "base"
    save(folder, "causal", llama(len(text_tokenizer())), text_tokenizer())
    (folder / "base.json").unlink()
    return folder


@pytest.fixture
def given(published, tmp_path) -> Path:
    return shutil.copytree(published, tmp_path / "given")


def change_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def add_programs(folder: Path) -> None:
    for name in PICKLES:
        (folder / name).write_bytes(pickle.dumps(Program()))
    for name in SCRIPTS:
        (folder / name).write_text(CODE)


def prepared(folder: Path) -> core.Base:
    prepare_folder(folder, "b", entry("causal"), folder.parent / "out")
    return load_base(folder.parent / "out")


def test_the_marks_of_these_tests_are_seen():
    pickle.loads(pickle.dumps(Program())).close()
    assert Path(MARK).exists()
    Path(MARK).unlink()


def test_programs_beside_a_base_are_neither_run_nor_copied(given, tmp_path):
    add_programs(given)
    auto = {"AutoModelForCausalLM": "modeling_own.Own", "AutoConfig": "configuration_own.Own"}
    change_json(given / "config.json", auto_map=auto)
    change_json(given / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_own.Own", None]})
    assert prepared(given).tokens("yes")
    assert not {*os.listdir(tmp_path / "out")} & {*PICKLES, *SCRIPTS}


def test_a_tokenizer_of_code_alone_is_refused(given):
    add_programs(given)
    auto = {"AutoTokenizer": ["tokenization_own.Own", None]}
    change_json(given / "tokenizer_config.json", tokenizer_class="Own", auto_map=auto)
    with pytest.raises(InputError, match="the tokenizer does not work"):
        prepared(given)


def test_programs_beside_an_adapter_a_mixture_and_a_published_gate_are_not_run(tmp_path):
    base = causal_base(tmp_path / "base", ears=False)
    folders = {name: tmp_path / name for name in "ab"}
    for seed, folder in enumerate(folders.values()):
        save_adapter(folder, trained_adapter(base.model, Method(rank=2), seed), causal=True)
        add_programs(folder)
    experts = {name: load_adapter(folder) for name, folder in folders.items()}
    mixture = Mixture(base.model, experts, Mixer(depth=1))
    save_mixture(tmp_path / "mixture", mixture, "xlora", folders, {"base_sha256": base.fingerprint})
    mixture.remove_experts()
    add_programs(tmp_path / "mixture")
    open_mixture(tmp_path / "mixture", base).remove_experts()
    (tmp_path / "gate").mkdir()
    add_programs(tmp_path / "gate")
    options = {"hidden_size": 32, "xlora_depth": 1, "layerwise_scalings": False}
    (tmp_path / "gate" / "xlora_config.json").write_text(json.dumps(options))
    with pytest.raises(InputError, match=r"no xlora_classifier\.safetensors; expected the gate as safetensors"):
        open_published(tmp_path / "gate", base, folders)


@pytest.mark.parametrize("key", ["tokenizer_file", "vocab_file", "merges_file", "added_tokens_file", "name_or_path"])
def test_a_file_outside_that_a_tokenizer_names_is_not_read(key, published, given, tmp_path):
    """One that is read there would change what tokens a text has."""
    other = json.loads((given / "tokenizer.json").read_text())
    other["pre_tokenizer"], other["model"]["merges"] = None, []
    (tmp_path / "other.json").write_text(json.dumps(other))
    change_json(given / "tokenizer_config.json", **{key: str(tmp_path / "other.json")})
    text = "will the user like it"
    assert prepared(given).tokens(text) == core.open_tokenizer(published)(text, add_special_tokens=False)["input_ids"]


def test_a_regular_expression_of_a_tokenizer_that_runs_for_ever_ends_in_one_line(given):
    split = {"type": "Split", "pattern": {"Regex": "(Q+)+x"}, "behavior": "Isolated", "invert": False}
    change_json(given / "tokenizer.json", pre_tokenizer={"type": "Sequence", "pretokenizers": [split]})
    base = prepared(given)
    with pytest.raises(InputError, match=r"the tokenizer does not read a text .*; fix: take another base"):
        base.tokens("Q" * 5000)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        f"{{{{ cycler.__init__.__globals__.os.system('touch {MARK}') }}}}",
        f"{{{{ self.__init__.__globals__['__builtins__'].open('{MARK}', 'w') }}}}",
        f"{{{{ joiner['__init__']['__globals__']['os'].popen('touch {MARK}') }}}}",
        "{{ ''|attr('__class__')|attr('__mro__') }}{{ ''.format.__self__.__class__.__base__ }}",
        "{{ messages.append(1) }}",
        "{% include 'config.json' %}",
        "{% extends '../../etc/passwd' %}",
        "{% import 'os' as os %}",
        "{% for i in range(10**9) %}x{% endfor %}",
        "{{ raise_exception('a\n\x1b[2J') }}",
        "{{ 'x' * " + str(LONGEST_FRAME + 100) + " }}",
    ],
)
def test_a_chat_template_reaches_nothing_but_the_prompt(template, given):
    change_json(given / "tokenizer_config.json", chat_template=template)
    base = prepared(given)
    with pytest.raises(InputError, match=r"the chat template .*; fix: set `task\.chat: false`") as caught:
        base.prompt_tokens(Example("r", "", "hello", "x", chat=True))
    assert str(caught.value).isprintable()


def test_no_model_fetches_kernels_where_nobody_asks_for_them():
    assert not hub_kernels._kernels_enabled


def test_settings_that_would_fill_memory_are_not_read(given):
    with open(given / "config.json", "r+b") as file:
        file.truncate(core.LARGEST_OBJECT + 1)  # of zeros, which take no space
    with pytest.raises(InputError, match=r"config\.json: more than 64 MB of JSON; expected settings, not data"):
        check_model_folder(given, "causal")


def test_weights_that_an_index_of_an_adapter_or_a_link_names_elsewhere_are_not_read(tmp_path):
    base = causal_base(tmp_path / "base", ears=False)
    save_adapter(tmp_path / "a", trained_adapter(base.model, Method(rank=2), 0), causal=True)
    weights = tmp_path / "a" / "adapter_model.safetensors"
    save_file(load_file(weights), tmp_path / "elsewhere.safetensors")
    weights.unlink()
    index = {"weight_map": dict.fromkeys(load_file(tmp_path / "elsewhere.safetensors"), "../elsewhere.safetensors")}
    (tmp_path / "a" / "adapter_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"no adapter_model\.safetensors; expected a PEFT LoRA folder"):
        load_adapter(tmp_path / "a")
    weights.symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(InputError, match="a link leads out of the folder"):
        load_adapter(tmp_path / "a")


def object_array(path: Path) -> None:
    with open(path, "wb") as file:
        np.save(file, np.array([Program()], dtype=object), allow_pickle=True)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet", "a.tsv"])
@pytest.mark.parametrize(
    "write", [lambda p: p.write_bytes(pickle.dumps(Program())), object_array, lambda p: joblib.dump(Program(), p)]
)
def test_a_pickle_in_place_of_records_is_refused(write, name, tmp_path):
    write(tmp_path / name)
    sources = domain_options("text", "Files", {"records": [str(tmp_path / name)]})
    dataset = domain_options("text", "Dataset", {})
    with pytest.raises(InputError) as caught:
        gather_records(registry.load_module("domain", "text", "build"), sources, dataset, 0, Ledger("fail"))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "name",
    ["{x}", "a b", "$(touch x)", "`x`", "a;b", "a|b", "a\nb", "../a", "<b>", "a'b", 'a"b', "*", "a\x1b[2J", "ä"],
)
@pytest.mark.parametrize("section", ["bases", "adapters", "mixtures", "domains"])
def test_a_name_that_means_more_than_itself_is_refused(section, name):
    study = shipped("test")
    study[section] = study[section] | {name: next(iter(study[section].values()))}
    with pytest.raises(InputError) as caught:
        read_config(study, "study.yaml")
    assert str(caught.value).isprintable()


ADDRESSES = {
    "https://user:hunter2@host.org/a.fasta": "hunter2",
    "https://hunter2@host.org/a.fasta": "hunter2",
    "https://host.org/a.fasta?token=hunter2": "hunter2",
    "https://host.org/a.fasta?x=1&X-Amz-Signature=hunter2": "hunter2",
    "https://host.org/hf_abcdefghijklmnopqrstuvwxyz": "hf_a",
}


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_with_a_secret_is_refused_and_not_repeated(address):
    source = {"kind": "files", "fasta": [address], "sha256": {address: "0" * 64}}
    with pytest.raises(InputError, match="an address with a name, password or token in it") as caught:
        read_config(changed(shipped("test"), {"domains.protein.source": source}), "study.yaml")
    assert ADDRESSES[address] not in str(caught.value)


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_error_line_repeats_no_secret_wherever_it_stands(address):
    error = InputError(address, f"it could not be fetched from {address}", [address], address, address)
    assert ADDRESSES[address] not in str(error) + error.where + error.detail
    assert "host.org/" in str(error)


@pytest.mark.parametrize(
    "line",
    [
        "HF_TOKEN=hunter2",
        "export AWS_SECRET_ACCESS_KEY='hunter2 hunter2'",
        'GITHUB_TOKEN="hunter2"',
        "hf_" + "hunter2" * 5,
        "ghp_" + "hunter2" * 5,
        "github_pat_11AA_" + "hunter2" * 5,
    ],
)
def test_a_token_that_was_pasted_somewhere_is_in_no_error_line_and_no_log(line, tmp_path):
    assert "hunter2" not in str(InputError(line, "wrong", f"see {line}", line))
    with open_log(tmp_path / "log") as log:
        print(f"see {line} here", file=log)
    said = (tmp_path / "log").read_text()
    assert "hunter2" not in said and said.startswith("see ") and said.endswith(" here\n")


def test_what_is_no_secret_is_told_as_it_is():
    text = "batch_tokens=512 pad_token=<pad> TOKENS=5 ghp_of; "
    text += "https://zenodo.org/a.csv?download=1 at user@host.org, data/hf_hub_of_small_models/a 5, key=3: monkey=1"
    assert on_one_line(text) == text


def test_an_expression_of_a_foreign_adapter_ends_at_once(tmp_path):
    base = causal_base(tmp_path / "base", ears=False)
    save_adapter(tmp_path / "a", trained_adapter(base.model, Method(rank=2), 0), causal=True)
    before = time.process_time()
    for field in ("alpha_pattern", "rank_pattern"):
        shutil.copytree(tmp_path / "a", tmp_path / field)
        change_json(tmp_path / field / "adapter_config.json", **{field: {"(([a-z._0-9]+)+)+x": 2}})
        with pytest.raises(InputError, match="a pattern that may take for ever"):
            load_adapter(tmp_path / field)
    assert time.process_time() - before < 30  # unbounded, it takes longer than the universe is old
