"""OpenAI's checkpoints: equal numbers both ways, equal tokens, and nothing in them is run."""

import os
import random

import pytest
import torch
import whisper
from models import entry
from safetensors.torch import load_file
from transformers import AutoTokenizer, WhisperConfig, WhisperForConditionalGeneration
from whisper.tokenizer import get_encoding, get_tokenizer

from loratory.bases.core import load_base
from loratory.bases.openai_whisper import export_openai, import_openai, openai_tokenizer
from loratory.bases.options import WhisperOptions
from loratory.bases.pickles import prepare_pickle
from loratory.errors import InputError

VOCABULARIES = {51864: ("gpt2", 99), 51865: ("multilingual", 99), 51866: ("multilingual", 100)}


def small(vocabulary: int) -> WhisperForConditionalGeneration:
    torch.manual_seed(0)
    sizes = {"encoder_layers": 2, "decoder_layers": 1, "max_source_positions": 50, "max_target_positions": 20}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 4}
    ends = {"suppress_tokens": None, "begin_suppress_tokens": None, "bos_token_id": 0, "eos_token_id": 0}
    wide = {"d_model": 16, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "pad_token_id": 0}
    config = WhisperConfig(vocab_size=vocabulary, **sizes, **heads, **ends, **wide)
    return WhisperForConditionalGeneration(config).eval()


@pytest.fixture(scope="module", params=[51864, 51866])
def made(request, tmp_path_factory):
    """A small random model, English-only or multilingual, its folder, and its checkpoint."""
    root, model = tmp_path_factory.mktemp("openai"), small(request.param)
    model.save_pretrained(root / "folder")
    export_openai(root / "folder", root / "small.pt")
    return model, root


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    root = tmp_path_factory.mktemp("intact")
    small(51864).save_pretrained(root / "folder")
    export_openai(root / "folder", root / "small.pt")
    return root / "small.pt"


@pytest.fixture
def checkpoint(intact):
    return torch.load(intact, weights_only=True)


def prepared(path, out, **options):
    given = entry("whisper")
    given.whisper = WhisperOptions(**options)
    prepare_pickle(import_openai, path, "small", given, out)
    return load_base(out)


@torch.no_grad()
def test_openais_code_gives_an_exported_model_the_same_log_probabilities(made):
    model, root = made
    theirs = whisper.load_model(str(root / "small.pt"), "cpu")
    sound, ids = torch.randn(2, 80, 100), torch.randint(0, 50000, (2, 7))
    expected = model(sound, decoder_input_ids=ids).logits.log_softmax(-1)
    torch.testing.assert_close(theirs(sound, ids).log_softmax(-1), expected, rtol=0, atol=1e-5)
    assert theirs.is_multilingual == (model.config.vocab_size > 51864)


def test_there_and_back_every_weight_is_bit_for_bit_what_it_was(made, tmp_path):
    _, root = made
    import_openai(root / "small.pt", tmp_path / "again")
    before, after = (load_file(folder / "model.safetensors") for folder in (root / "folder", tmp_path / "again"))
    before.pop("proj_out.weight", None)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_all_tokens_and_encoded_texts_are_openais(vocabulary, tmp_path):
    expected, draw = get_encoding(*VOCABULARIES[vocabulary]), random.Random(0)
    openai_tokenizer(vocabulary).save_pretrained(tmp_path)
    found = AutoTokenizer.from_pretrained(tmp_path)
    assert len(found) == expected.n_vocab == vocabulary
    for id in range(expected.n_vocab):
        assert found.decode([id]) == expected.decode([id])
    for special in expected.special_tokens_set:
        assert found.convert_tokens_to_ids(special) == expected.encode_single_token(special)
    letters = [*map(chr, range(32, 127)), *"éßñ…’「♪字天Жक😀\n\t", "  ", "aaa", "it's ", "the "]
    for _ in range(300):
        text = "".join(draw.choice(letters) for _ in range(30))
        assert found(text, add_special_tokens=False)["input_ids"] == expected.encode(text)


def test_a_checkpoint_becomes_a_base_that_asks_as_openai_does(made, tmp_path):
    model, root = made
    multilingual = model.config.vocab_size > 51864
    base = prepared(root / "small.pt", tmp_path / "b", suppress=True)
    theirs = get_tokenizer(multilingual, num_languages=VOCABULARIES[model.config.vocab_size][1])
    assert tuple(base.decoder_prompt()) == theirs.sot_sequence_including_notimestamps
    assert base.manifest["origin"] == str(root / "small.pt") and base.manifest["whisper"]["suppress"]
    model = whisper.load_model(str(root / "small.pt"), "cpu")
    task = whisper.decoding.DecodingTask(model, whisper.DecodingOptions(without_timestamps=True, language="en"))
    logits = torch.zeros(2, 1, model.dims.n_vocab)
    for found, ids in zip(base.suppressed, (task.initial_tokens, (*task.initial_tokens, 11))):
        for each in task.logit_filters:
            each.apply(logits[0], torch.tensor([ids]))
        assert torch.equal(found, logits[0, 0])
        logits.zero_()


def test_other_languages_and_tasks_are_those_that_the_checkpoint_knows(made, tmp_path):
    model, root = made
    asked = {"language": "de", "task": "translate"}
    if model.config.vocab_size == 51864:
        with pytest.raises(InputError, match=r"an English-only base \(de, translate\); expected en, transcribe"):
            prepared(root / "small.pt", tmp_path / "b", **asked)
        return
    theirs = get_tokenizer(True, num_languages=VOCABULARIES[model.config.vocab_size][1], **asked)
    found = prepared(root / "small.pt", tmp_path / "b", **asked).decoder_prompt()
    assert tuple(found) == theirs.sot_sequence_including_notimestamps
    with pytest.raises(InputError, match=r"whisper\.language: unknown language of this base \(ger\)"):
        prepared(root / "small.pt", tmp_path / "c", language="ger")


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("place", ["dims", "model_state_dict", "more"])
def test_code_in_a_checkpoint_is_refused_in_one_line_and_not_run(checkpoint, place, tmp_path):
    torch.save(checkpoint | {place: Malicious(tmp_path / "run")}, tmp_path / "bad.pt")
    with pytest.raises(InputError, match=r"bad\.pt: not loaded: damaged, or holds more than tensors") as caught:
        import_openai(tmp_path / "bad.pt", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists() and not (tmp_path / "out").exists()


DAMAGES = {
    "2 weights are missing, such as encoder.ln_post.bias": lambda c: [
        c["model_state_dict"].pop(f"encoder.ln_post.{kind}") for kind in ("weight", "bias")
    ],
    "1 weights are unexpected, such as more": lambda c: c["model_state_dict"].update(more=torch.zeros(1)),
    "not the sizes of a Whisper model": lambda c: c["dims"].pop("n_vocab"),
    "encoder and decoder differ in width": lambda c: c["dims"].update(n_text_state=32),
    "not a vocabulary of OpenAI's (300 tokens)": lambda c: c["dims"].update(n_vocab=300),
    "not a checkpoint of Whisper": lambda c: c.pop("dims"),
    "model.decoder.layer_norm.bias: wrong size ((3,)); expected (16,)": lambda c: c["model_state_dict"].update(
        {"decoder.ln.bias": torch.zeros(3)}
    ),
}


@pytest.mark.parametrize("message", DAMAGES)
def test_what_is_no_checkpoint_of_one_whole_model_is_refused_by_name(checkpoint, message, tmp_path):
    DAMAGES[message](checkpoint)
    torch.save(checkpoint, tmp_path / "bad.pt")
    with pytest.raises(InputError) as caught:
        import_openai(tmp_path / "bad.pt", tmp_path / "out")
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no pickle", "whole"])
def test_a_damaged_file_is_refused_in_one_line(intact, content, tmp_path):
    whole = intact.read_bytes()
    (tmp_path / "bad.pt").write_bytes(whole[: len(whole) // 2] if content == "whole" else content)
    with pytest.raises(InputError, match="not loaded: damaged") as caught:
        import_openai(tmp_path / "bad.pt", tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_a_model_that_openais_code_cannot_hold_is_not_exported(tmp_path):
    config = WhisperConfig(d_model=16, encoder_ffn_dim=48, decoder_ffn_dim=64)
    config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="not a model that OpenAI's code can hold"):
        export_openai(tmp_path, tmp_path / "out.pt")
