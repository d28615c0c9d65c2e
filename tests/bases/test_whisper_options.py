"""How a Whisper base is asked: the prompt that its folder calls for, and a window as long as the clips."""

from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from models import entry, opinionated, trained_adapter, whisper_base
from pydantic import ValidationError
from transformers import GenerationConfig

from loratory.adapters import core
from loratory.adapters.methods.lora import Method
from loratory.bases.core import load_base
from loratory.bases.families.whisper import PROMPT, prompt_tokens
from loratory.bases.options import WhisperOptions
from loratory.bases.prepare import prepare_folder
from loratory.config import RESOURCES
from loratory.data.files import write_json
from loratory.domains.contract import Example
from loratory.errors import InputError
from loratory.mixers.core import Mixture
from loratory.mixers.methods.xlora import Mixer as XLora

ENGLISH = [PROMPT[0], PROMPT[3]]
NAMES = dict.fromkeys([*PROMPT, "<|de|>", "<|translate|>"], 0)
CLOSE = {"rtol": 0, "atol": 1e-5}


def model_of(size: int, stated=None, where: str = "generation_config"):
    found = SimpleNamespace(config=SimpleNamespace(vocab_size=size), generation_config=GenerationConfig())
    if stated is not None:
        getattr(found, where).is_multilingual = stated
    return found


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (model_of(51864), ENGLISH),  # although the tokenizer names languages
        (model_of(51865), list(PROMPT)),
        (model_of(51866), list(PROMPT)),
        (model_of(51865, stated=False), ENGLISH),
        (model_of(51864, stated=True, where="config"), list(PROMPT)),
        (model_of(384), list(PROMPT)),
        (model_of(384, stated=False, where="config"), ENGLISH),
    ],
)
def test_the_prompt_is_what_the_folder_says_else_what_openais_sizes_say_else_what_tokens_there_are(model, expected):
    assert prompt_tokens("here", model, NAMES, WhisperOptions()) == expected


def test_a_small_vocabulary_without_languages_is_english_alone():
    vocabulary = dict.fromkeys(ENGLISH, 0)
    assert prompt_tokens("here", model_of(300), vocabulary, WhisperOptions()) == ENGLISH
    with pytest.raises(InputError, match="here: whisper: an English-only base"):
        prompt_tokens("here", model_of(300), vocabulary, WhisperOptions(task="translate"))


def test_a_tokenizer_without_the_prompts_tokens_is_refused():
    with pytest.raises(InputError, match=r"lacks a token of the decoder prompt \(<\|notimestamps\|>\)"):
        prompt_tokens("here", model_of(51864), {PROMPT[0]: 0}, WhisperOptions())


def prepared(source, out, **options):
    given = entry("whisper")
    given.whisper = WhisperOptions(**options)
    prepare_folder(source, "w", given, out)
    return load_base(out)


def test_the_shipped_base_keeps_its_prompt_and_knows_no_other_language(tmp_path):
    source = RESOURCES / "bases" / "mini_whisper"
    assert prepared(source, tmp_path / "en").decoder_prompt() == [1, 2, 3, 4]
    with pytest.raises(InputError, match=r"unknown language of this base \(de\); expected one of en"):
        prepared(source, tmp_path / "de", language="de")
    with pytest.raises(InputError, match=r"suppression is defined for OpenAI's vocabularies alone \(384 tokens\)"):
        prepared(source, tmp_path / "quiet", suppress=True)


def test_what_a_published_folder_says_of_its_languages_is_read(tmp_path):
    whisper_base(tmp_path / "source")
    write_json(tmp_path / "source" / "generation_config.json", {"is_multilingual": False})
    found = prepared(tmp_path / "source", tmp_path / "b")
    assert found.tokenizer.convert_ids_to_tokens(found.decoder_prompt()) == ENGLISH


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A base with a window of 2 s, opened with both windows, and clips of 0.5, 0.9 and 2 s as examples."""
    root = tmp_path_factory.mktemp("window")
    whisper_base(root / "source")
    found = []
    for i, seconds in enumerate((0.5, 0.9, 2.0)):
        tone = np.sin(np.arange(int(16000 * seconds)) * (0.03 + 0.05 * i)) * 0.4
        soundfile.write(root / f"{i}.flac", tone, 16000)
        found.append(Example(f"r{i}", "g", "", "yes no " * (i + 1), audio=str(root / f"{i}.flac")))
    full, clip = (prepared(root / "source", root / window, window=window) for window in ("full", "clip"))
    return SimpleNamespace(full=full, clip=clip, examples=found)


def test_a_clip_costs_its_own_positions_and_a_batch_is_as_long_as_its_longest(clips):
    items = [clips.clip.encode(example) for example in clips.examples]
    assert [item.length - len(item.labels) for item in items] == [25, 45, 100]
    assert clips.clip.collate(items[:2])["features"].shape == (2, 80, 90)
    assert clips.full.collate([clips.full.encode(clips.examples[0])])["features"].shape == (1, 80, 200)
    for name, parameter in clips.full.model.named_parameters():
        assert torch.equal(parameter, clips.clip.model.get_parameter(name)), name


def test_silence_after_a_clip_is_read_as_far_as_the_window_goes(clips, tmp_path):
    base = prepared(clips.full.folder, tmp_path / "b", window="clip", silence=1.2)
    items = [base.encode(example) for example in clips.examples]
    assert [item.length - len(item.labels) for item in items] == [85, 100, 100]
    full = clips.full.audio_features([clips.full.encode(clips.examples[0])])
    assert torch.equal(base.audio_features(items[:1]), full[..., :170])
    with pytest.raises(ValidationError, match="`silence` needs `window: clip`"):
        WhisperOptions(silence=1)


def test_a_clip_as_long_as_the_window_gives_the_same_loss_gradients_and_text(clips):
    losses, gradients = [], []
    for base in (clips.full, clips.clip):
        items = [base.encode(example) for example in clips.examples]
        wrappers = core.attach(base.model, Method(rank=2), 0)
        for wrapper in wrappers.values():
            wrapper.adapter["B"].data.fill_(0.1)
        loss, _ = base.loss(base.model, base.collate(items))
        loss.backward()
        losses.append(loss.item())
        gradients.append({name: wrapper.adapter["A"].grad for name, wrapper in wrappers.items()})
        core.detach(base.model)
        base.model.requires_grad_(False)
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert gradients[0].keys() == gradients[1].keys() and any("encoder" in name for name in gradients[0])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-5)
        assert gradient.abs().sum() > 0


@torch.no_grad()
def test_a_short_window_is_the_encoder_with_its_positions_cut(clips):
    base, items = clips.clip, [clips.clip.encode(example) for example in clips.examples[:2]]
    short = clips.full.model.config.__class__.from_dict(base.model.config.to_dict() | {"max_source_positions": 45})
    cut = type(clips.full.model.model.encoder)(short).eval()
    weights = clips.full.model.model.encoder.state_dict()
    cut.load_state_dict(weights | {"embed_positions.weight": weights["embed_positions.weight"][:45]})
    features = base.audio_features(items)
    found = base.model.get_encoder()(features).last_hidden_state
    torch.testing.assert_close(found, cut(features).last_hidden_state, **CLOSE)
    assert found.shape == (2, 45, 16)


@torch.no_grad()
def test_a_mixture_hears_a_short_window_in_both_passes_and_writes_what_it_would_anew(clips):
    base, items = clips.clip, [clips.clip.encode(example) for example in clips.examples[:2]]
    experts = {name: trained_adapter(base.model, Method(rank=2), seed) for seed, name in enumerate("ab", 1)}
    mixture = opinionated(Mixture(base.model, experts, XLora())).eval()
    features, ids = base.audio_features(items), torch.tensor([base.decoder_prompt()] * 2)
    for _ in range(5):
        ids = torch.cat([ids, mixture(input_features=features, decoder_input_ids=ids).logits[:, -1:].argmax(-1)], 1)
    streams = mixture.stream_routing(input_features=features, decoder_input_ids=ids)
    assert streams["frames"].shape[1] == 45
    end, rows = base.tokenizer.eos_token_id, ids[:, len(base.decoder_prompt()) :].tolist()
    expected = [row[: row.index(end)] if end in row else row for row in rows]
    assert base.generate_ids(mixture, items, 5) == expected
    mixture.remove_experts()
