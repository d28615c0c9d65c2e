"""Adapter folders from elsewhere: opened as PEFT opens them, or refused in one line."""

import json
import shutil

import peft
import pytest
import torch
from models import bert, llama, trained_adapter
from mutants import mutate_folder
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from loratory.adapters import core, deltas
from loratory.adapters.methods.lora import Method
from loratory.adapters.methods.smora import Method as Smora
from loratory.errors import InputError

IDS = torch.arange(12).view(2, 6) + 3
CLOSE = {"rtol": 0, "atol": 1e-5}
A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
B = A.replace("lora_A", "lora_B")
OPTIONS = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], "rank_pattern": {"down_proj": 2}}


def save_by_peft(folder, **options):
    torch.manual_seed(3)
    config = peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **options)
    model = peft.get_peft_model(llama(), config).eval()
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "a"
    save_by_peft(folder, alpha_pattern={"q_proj": 3}, **OPTIONS)
    (folder / "README.md").unlink()
    return folder


@pytest.fixture
def foreign(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "a")


def change_weights(folder, change) -> None:
    tensors = load_file(folder / deltas.WEIGHTS)
    change(tensors)
    save_file(tensors, folder / deltas.WEIGHTS, metadata={"format": "pt"})


def change_config(folder, **changes) -> None:
    path = folder / deltas.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def open_on_llama(folder):
    model = llama()
    core.apply(model, deltas.load_adapter(folder), folder)
    return model


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": r".*\.(q|v)_proj"},
        {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]},
        {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["layers.0.self_attn.q_proj"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["norm"]},
        {"target_modules": ["q_proj"], "init_lora_weights": "orthogonal"},
        {"target_modules": ["q_proj"], "rank_pattern": {r"layers\.1\..*": 2}, "use_rslora": True},
    ],
    ids=["pattern", "layers", "all but", "saved", "orthogonal", "rank"],
)
def test_what_peft_saved_gives_pefts_logits(tmp_path, options):
    torch.manual_seed(3)
    config = peft.LoraConfig(task_type="CAUSAL_LM", **{"init_lora_weights": False, "r": 4, **options})
    theirs = peft.get_peft_model(llama(), config).eval()
    for name, parameter in theirs.named_parameters():
        if "modules_to_save" in name:
            parameter.add_(0.1)
    theirs.save_pretrained(tmp_path / "a")
    torch.testing.assert_close(open_on_llama(tmp_path / "a")(IDS).logits, theirs(IDS).logits, **CLOSE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(A), r"lora_B without its lora_A \(model.layers.0.self_attn.q_proj\)"),
        (lambda t: t.pop(B), r"lora_A without its lora_B \(model.layers.0.self_attn.q_proj\)"),
        (lambda t: t.update({B: torch.zeros(32, 3)}), r"q_proj: wrong rank .*expected rank 4, as adapter_config.json"),
        (lambda t: t.update({A: torch.zeros(3, 32), B: torch.zeros(32, 3)}), "wrong rank .*expected rank 4"),
        (lambda t: t.update({A: torch.zeros(4, 32, 1)}), "wrong rank"),
        (lambda t: t.update({A: torch.full((4, 32), torch.nan)}), rf"{A}: a weight is NaN or infinite"),
        (lambda t: t.update({B: torch.full((32, 4), torch.inf)}), rf"{B}: a weight is NaN or infinite"),
        (lambda t: t.update({A: torch.zeros(4, 32, dtype=torch.int8)}), r"weights of another type \(int8\)"),
        (lambda t: t.update({f"x.{A}": t.pop(A)}), "not the name of a layer's tensor"),
        (lambda t: t.update({A.replace("q_proj", "q" * 300): t.pop(A)}), "not the name of a layer's tensor"),
        (
            lambda t: t.update({A.replace("q_proj", "v_proj"): t.pop(A), B.replace("q_proj", "v_proj"): t.pop(B)}),
            "does not name",
        ),
        (lambda t: t.update({A.replace("lora_A.", "lora_A.default."): t.pop(A)}), "neither lora_A, lora_B nor"),
        (lambda t: t.clear(), "no lora_A and no lora_B"),
    ],
)
def test_an_adapter_that_is_not_whole_is_refused_by_name(foreign, change, message):
    change_weights(foreign, change)
    with pytest.raises(InputError, match=rf"{deltas.WEIGHTS}.*{message}"):
        deltas.load_adapter(foreign)


@pytest.mark.parametrize(
    ("rename", "message"),
    [("layers.0.", r"layers.9.*unknown linear layer of this base"), ("layers.", "unknown linear layer of this base")],
)
def test_a_layer_that_the_base_lacks_is_refused_by_name(foreign, rename, message):
    other = {"layers.0.": "layers.9.", "layers.": "blocks."}[rename]
    change_weights(foreign, lambda t: [t.update({name.replace(rename, other): t.pop(name)}) for name in list(t)])
    with pytest.raises(InputError, match="unknown linear layer of this base"):
        open_on_llama(foreign)


def test_an_adapter_that_lost_a_layer_is_refused_by_name(foreign):
    change_weights(foreign, lambda tensors: [tensors.pop(name) for name in (A, B)])
    with pytest.raises(
        InputError, match=r"1 of the layers that its config names.*\(model.layers.0.self_attn.q_proj\)"
    ):
        open_on_llama(foreign)


def test_an_adapter_that_lost_a_saved_module_is_refused_by_name(tmp_path):
    save_by_peft(tmp_path / "a", modules_to_save=["norm"], **OPTIONS)
    change_weights(tmp_path / "a", lambda tensors: tensors.pop("base_model.model.model.norm.weight"))
    with pytest.raises(InputError, match=r"its config names are not in the adapter \(model.*norm.weight\)"):
        open_on_llama(tmp_path / "a")


def test_an_adapter_of_a_weight_that_the_base_ties_is_refused():
    model = llama(tie_word_embeddings=True)
    adapter = deltas.Adapter(heads={"model.embed_tokens.weight": torch.zeros(300, 32)})
    with pytest.raises(InputError, match=r"embed_tokens.weight: the base ties this weight to lm_head.weight"):
        core.apply(model, adapter, "a")


def test_a_scale_that_no_number_holds_is_refused(foreign):
    change_config(foreign, alpha_pattern={"q_proj": 1e300})
    with pytest.raises(InputError, match=r"q_proj: the scale is too large \(2.5e\+299\)"):
        deltas.load_adapter(foreign)


@torch.no_grad()
def test_a_head_comes_off_again_with_its_adapter():
    model = bert()
    before = model(IDS).logits
    adapter = trained_adapter(bert(), Method(rank=2), 1, ("classifier",))
    core.apply(model, adapter, "a")
    assert not torch.equal(model(IDS).logits, before)
    core.detach(model)
    assert torch.equal(model(IDS).logits, before)


NESTED = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (deltas.WEIGHTS, b"", "damaged or cut short"),
        (deltas.WEIGHTS, b"\xff" * 100, "damaged or cut short"),
        (deltas.WEIGHTS, b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (deltas.CONFIG, b"", "not JSON"),
        (deltas.CONFIG, b'{"peft_type": "LORA"', "not JSON"),
        (deltas.CONFIG, b"\xff\xfe{}", "not JSON"),
        (deltas.CONFIG, NESTED.encode(), "not JSON"),
        (deltas.CONFIG, b'{"r": ' + b"9" * 5000 + b"}", "not JSON"),
        (deltas.CONFIG, b"[]", "not a JSON object"),
        (deltas.RUN, b"[1]", "not a JSON object"),
        (deltas.DENSE, b"", "damaged or cut short"),
        (deltas.OWN, b"", "damaged or cut short"),
    ],
)
def test_a_file_that_is_no_such_file_is_refused_by_name(foreign, file, content, message):
    (foreign / file).write_bytes(content)
    with pytest.raises(InputError, match=rf"{file}: {message}"):
        deltas.load_adapter(foreign)


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F8_E4M3", "F64", "I64", "BOOL", "C64", "unheard of"])
def test_weights_of_a_type_that_no_adapter_has_are_refused(foreign, dtype):
    size = 8 * {"F4": 4, "F6_E2M3": 6, "F64": 64, "I64": 64, "C64": 64}.get(dtype, 8) // 8
    header = json.dumps({A: {"dtype": dtype, "shape": [2, 4], "data_offsets": [0, size]}}).encode()
    (foreign / deltas.WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header + bytes(size))
    with pytest.raises(InputError, match=rf"{deltas.WEIGHTS}.*(type|damaged)"):
        deltas.load_adapter(foreign)


def test_an_adapter_is_copied_without_what_else_lies_in_its_folder(foreign, tmp_path):
    (foreign / "training_args.bin").write_bytes(b"pickle")
    deltas.copy_adapter(foreign, tmp_path / "copy")
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == [deltas.CONFIG, deltas.WEIGHTS]


def test_pickled_weights_are_refused_unopened(foreign):
    (foreign / deltas.WEIGHTS).rename(foreign / "adapter_model.bin")
    with pytest.raises(InputError, match=r"adapter_model\.bin: the weights are pickled"):
        deltas.load_adapter(foreign)


@pytest.mark.parametrize("file", [deltas.CONFIG, deltas.WEIGHTS, deltas.RUN, "notes.txt"])
def test_a_link_that_leads_out_of_the_folder_is_refused(foreign, file, tmp_path):
    (foreign / file).touch()
    (foreign / file).rename(tmp_path / file)
    (foreign / file).symlink_to(tmp_path / file)
    with pytest.raises(InputError, match=rf"{file}: a link leads out of the folder"):
        deltas.load_adapter(foreign)


def test_a_dense_change_of_unknown_meaning_is_refused(tmp_path):
    deltas.save_adapter(tmp_path / "a", deltas.Adapter(dense={"x.weight": torch.ones(2, 2)}), causal=True)
    save_file({"x.weight": torch.ones(2, 2)}, tmp_path / "a" / deltas.DENSE)
    with pytest.raises(InputError, match=r"delta\.safetensors: a tensor of unknown meaning \(x\.weight\)"):
        deltas.load_adapter(tmp_path / "a")


@pytest.fixture
def own(tmp_path):
    core.attach(model := llama(), Smora(rank=8, alpha=8.0, target_modules=("q_proj",)), 0)
    deltas.save_adapter(tmp_path / "own", core.export(model, (), {}), causal=True)
    return tmp_path / "own"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "../evil"}, r"q_proj: unknown method \(../evil\)"),
        ({"kind": ["smora"]}, "unknown method"),
        ({"options": {"rank": "8"}}, "rank: wrong value"),
        ({"options": None}, "no options"),
        (
            {"options": {"rank": 16, "alpha": 8.0}},
            r"q_proj:A: the method's tensors do not fit \(\(8, 32\) float32\); expected \(16",
        ),
    ],
)
def test_a_change_that_depends_on_the_input_is_held_against_its_method(own, change, message):
    given = json.loads((own / deltas.OWN_CONFIG).read_text())
    name = "model.layers.0.self_attn.q_proj"
    (own / deltas.OWN_CONFIG).write_text(json.dumps(given | {name: given[name] | change}))
    with pytest.raises(InputError, match=message):
        open_on_llama(own)


def test_tensors_of_no_method_are_refused(own):
    given = json.loads((own / deltas.OWN_CONFIG).read_text())
    given.pop("model.layers.0.self_attn.q_proj")
    (own / deltas.OWN_CONFIG).write_text(json.dumps(given))
    with pytest.raises(InputError, match=r"own\.safetensors: a tensor of no method"):
        open_on_llama(own)


def logits_by_peft(folder) -> torch.Tensor | None:
    """None where PEFT does not open the folder."""
    try:
        return peft.PeftModel.from_pretrained(llama(), folder).eval()(IDS).logits
    except Exception:  # PEFT raises errors of many types
        return None


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
def test_a_mutated_folder_is_refused_or_means_what_it_means_to_peft(saved, tmp_path):
    opened = 0
    for seed in range(60):
        folder = tmp_path / str(seed)
        what = mutate_folder(saved, folder, seed)
        try:
            ours = open_on_llama(folder)(IDS).logits
        except InputError:
            continue
        opened += 1
        theirs = logits_by_peft(folder)
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, **CLOSE, msg=what)
    assert 8 < opened < 30


def test_our_own_folders_are_whole_on_every_base(tmp_path):
    for model, heads in ((llama(), ()), (bert(), ("classifier", "bert.pooler"))):
        deltas.save_adapter(tmp_path / "a", trained_adapter(model, Method(rank=2), 1, heads), causal=not heads)
        core.check_fit(model, deltas.load_adapter(tmp_path / "a"), "a")
        assert isinstance(model, LlamaForCausalLM) or deltas.load_adapter(tmp_path / "a").heads
