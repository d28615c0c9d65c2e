"""Transcripts by beams, fallback, suppression and windows, held against openai-whisper and transformers."""

import re
from itertools import pairwise

import numpy as np
import pytest
import soundfile
import torch
import whisper
from models import entry, opinionated, trained_adapter, whisper_base
from transformers import WhisperConfig, WhisperForConditionalGeneration

from loratory.adapters.methods.lora import Method
from loratory.bases.beams import Written
from loratory.bases.core import load_base
from loratory.bases.families.whisper import fails_threshold, is_silent, quiet_cuts
from loratory.bases.openai_whisper import export_openai, import_openai
from loratory.bases.options import Decoding, WhisperOptions
from loratory.bases.pickles import prepare_pickle
from loratory.bases.prepare import prepare_folder
from loratory.data.clips import Clip, Piece
from loratory.data.texts import compression_ratio
from loratory.domains.contract import Example
from loratory.errors import InputError
from loratory.mixers.core import Mixture
from loratory.mixers.methods.uniform import Mixer as Uniform
from loratory.mixers.methods.xlora import Mixer as XLora

SECONDS = (0.4, 0.7, 1.0)
PLAIN = {"without_timestamps": True, "fp16": False, "suppress_tokens": "", "suppress_blank": False, "language": "en"}
LIMIT, END = 12, 50256


def opinionated_whisper() -> WhisperForConditionalGeneration:
    """Random weights whose next tokens are far from equally likely, with a window of a second."""
    torch.manual_seed(3)
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "max_source_positions": 50, "max_target_positions": 20}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "d_model": 16}
    wide = {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "pad_token_id": 0, "suppress_tokens": None}
    ends = {"begin_suppress_tokens": None, "bos_token_id": 0, "eos_token_id": 0}
    model = WhisperForConditionalGeneration(WhisperConfig(vocab_size=51864, **sizes, **heads, **wide, **ends)).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "embed_positions" not in name:
            parameter.data.mul_(30)
    words = model.model.decoder.embed_tokens.weight.data  # the output embeddings too
    words[END] = 0.95 * words[[36442, 9979]].mean(0)
    return model


def tone(path, seconds: float, place: int) -> str:
    times = np.arange(int(16000 * seconds))
    soundfile.write(path, np.sin(times * (0.03 + 0.05 * place) * (1 + times / 40000)) * 0.4, 16000)
    return str(path)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Our base, openai-whisper's model of the same weights, and three clips."""
    root = tmp_path_factory.mktemp("pair")
    opinionated_whisper().save_pretrained(root / "folder")
    export_openai(root / "folder", root / "small.pt")
    given = entry("whisper")
    given.whisper = WhisperOptions()
    prepare_pickle(import_openai, root / "small.pt", "small", given, root / "base")
    base = load_base(root / "base")
    clips = [tone(root / f"{i}.flac", seconds, i) for i, seconds in enumerate(SECONDS)]
    items = [base.encode(Example(f"r{i}", "g", "", "yes", audio=clip)) for i, clip in enumerate(clips)]
    return base, whisper.load_model(str(root / "small.pt"), "cpu"), items


def reference(theirs, base, items, **options) -> list:
    """One clip at a time: with beams, openai-whisper's attention takes no batch of clips."""
    asked = whisper.DecodingOptions(**PLAIN, sample_len=LIMIT, **options)
    return [result for item in items for result in whisper.decode(theirs, base.audio_features([item]), asked)]


@pytest.mark.parametrize("beams", [1, 2, 5])
def test_beams_write_openais_tokens_with_their_log_probabilities(pair, beams):
    base, theirs, items = pair
    expected = reference(theirs, base, items, beam_size=None if beams == 1 else beams)
    found = base.transcribe(base.model, items, LIMIT, Decoding(beams=beams))
    assert [one.ids for one in found] == [list(result.tokens) for result in expected]
    assert any(len(one.ids) < LIMIT for one in found) or beams == 1
    ours = [one.mean_log_prob for one in found]
    assert ours == pytest.approx([result.avg_logprob for result in expected], abs=1e-4)
    silence = [result.no_speech_prob for result in expected]
    assert [one.no_speech for one in found] == pytest.approx(silence, rel=1e-3) and len({*silence}) == len(silence)


def test_beams_find_likelier_texts_than_greedy_ones_and_do_not_depend_on_the_batch(pair):
    base, _, items = pair
    greedy, best = (base.transcribe(base.model, items, LIMIT, Decoding(beams=beams)) for beams in (1, 5))
    assert [one.ids for one in greedy] != [one.ids for one in best]
    scores = [[one.log_prob / max(1, len(one.ids)) for one in each] for each in (greedy, best)]
    assert sum(scores[1]) > sum(scores[0])
    for item, one in zip(items, best):
        assert base.transcribe(base.model, [item], LIMIT, Decoding(beams=5))[0].ids == one.ids


@torch.no_grad()
@pytest.mark.parametrize("mixer", [XLora(), XLora(per="sequence"), Uniform()], ids=["token", "sequence", "uniform"])
def test_beams_of_a_mixture_are_those_of_the_whole_prefix_run_anew(tmp_path, mixer):
    base = whisper_base(tmp_path / "base")
    items = [
        base.encode(Example(f"r{i}", "g", "", "yes", audio=tone(tmp_path / f"{i}.flac", s, i)))
        for i, s in enumerate(SECONDS)
    ]
    experts = {name: trained_adapter(base.model, Method(rank=2), seed) for seed, name in enumerate("ab", 1)}
    mixture = opinionated(Mixture(base.model, experts, mixer)).eval()
    found = base.transcribe(mixture, items, 6, Decoding(beams=3))
    assert [base.transcribe(mixture, [item], 6, Decoding(beams=3))[0].ids for item in items] == [o.ids for o in found]
    for item, one in zip(items, found):
        prompt = base.decoder_prompt()
        ids = [*one.ids, base.tokenizer.eos_token_id][:6]
        logits = mixture(
            input_features=base.audio_features([item]), decoder_input_ids=torch.tensor([prompt + ids])
        ).logits
        scores = logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        assert one.log_prob == pytest.approx(float(scores[torch.arange(len(ids)), ids].sum()), abs=1e-3)
    mixture.remove_experts()


def test_a_repeating_or_unlikely_text_fails_a_threshold_and_no_other():
    text, sure = "the cat sat on the mat and saw a dog", -0.2
    assert not fails_threshold(text, sure, Decoding())
    assert fails_threshold("thank you " * 20, sure, Decoding())
    assert fails_threshold(text, -1.01, Decoding())
    loose = Decoding(compression_ratio=None, log_prob=None)
    assert not fails_threshold("thank you " * 20, -9, loose) and not fails_threshold("", sure, Decoding())
    for written in (text, "thank you " * 20, "çà et là " * 3):
        assert compression_ratio(written) == whisper.utils.compression_ratio(written)


def test_silence_is_what_openai_would_skip_a_likely_pause_whose_text_is_a_guess():
    asked = Decoding(no_speech=0.6)
    found = [is_silent(Written([5], 2 * mean, share), asked) for share in (0.59, 0.61) for mean in (-1.1, -0.9)]
    assert found == [False, False, True, False]
    assert is_silent(Written([5], -0.2, 0.61), Decoding(no_speech=0.6, log_prob=None))
    assert not is_silent(Written([5], -9, 0.99), Decoding())


def test_silence_is_said_beside_the_text_and_is_not_sampled_again(pair):
    base, _, items = pair
    greedy = base.transcribe(base.model, items, LIMIT, Decoding())
    first, last = min(one.no_speech for one in greedy), max(one.no_speech for one in greedy)
    asked = Decoding(no_speech=(first + last) / 2, log_prob=0.0, temperatures=(1.0,))  # all are guesses
    columns = base.text_columns(base.model, items, LIMIT, decoding=asked)
    silent = [one.no_speech > asked.no_speech for one in greedy]
    assert [each["no_speech"] for each in columns] == silent and {*silent} == {True, False}
    texts = [base.transcript_text(one.ids) for one in greedy]
    assert [each["text"] == text for each, text in zip(columns, texts)] == silent
    plain = base.text_columns(base.model, items, LIMIT, decoding=Decoding())
    assert plain == [{"text": text} for text in texts]


def test_a_base_without_a_token_of_silence_is_not_asked_about_it(tmp_path):
    base = whisper_base(tmp_path / "base")
    items = [base.encode(Example("r", "g", "", "yes", audio=tone(tmp_path / "one.flac", 0.4, 0)))]
    with pytest.raises(InputError, match=r"the tokenizer lacks a token for silence; expected <\|nospeech\|> or"):
        base.text(base.model, items, 3, decoding=Decoding(no_speech=0.6))


def test_what_fails_is_sampled_at_rising_temperatures_and_the_same_each_time(pair):
    base, _, items = pair
    greedy = base.transcribe(base.model, items, LIMIT, Decoding())
    worst = min(one.mean_log_prob for one in greedy)
    threshold = sorted(one.mean_log_prob for one in greedy)[1] - 1e-4
    never, some = (
        Decoding(temperatures=(0.2, 1.0), compression_ratio=None, log_prob=t) for t in (worst - 1, threshold)
    )
    assert base.transcribe(base.model, items, LIMIT, never) == greedy
    found = base.transcribe(base.model, items, LIMIT, some)
    changed = [one.ids != before.ids for one, before in zip(found, greedy)]
    assert changed == [before.mean_log_prob < threshold for before in greedy] and sum(changed) == 1
    assert base.transcribe(base.model, items, LIMIT, some) == found
    place = changed.index(True)
    alone = base.transcribe(base.model, [items[place]], LIMIT, some)[0]
    assert alone.ids == found[place].ids
    cold = Decoding(temperatures=(1e-4,), compression_ratio=None, log_prob=0.0)  # everything fails, and is drawn
    assert [o.ids for o in base.transcribe(base.model, items, LIMIT, cold)] == [o.ids for o in greedy]


def test_given_ids_are_never_written_as_in_transformers(tmp_path):
    source = whisper_base(tmp_path / "source")
    audio = [tone(tmp_path / f"{i}.flac", seconds, i) for i, seconds in enumerate(SECONDS)]

    def opened(name: str, suppress):
        given = entry("whisper")
        given.whisper = WhisperOptions(suppress=suppress)
        prepare_folder(tmp_path / "source", "w", given, tmp_path / name)
        return load_base(tmp_path / name)

    items = [source.encode(Example(f"r{i}", "g", "", "yes", audio=clip)) for i, clip in enumerate(audio)]
    free = source.generate_ids(source.model, items, LIMIT)
    banned = tuple(sorted({id for row in free for id in row}))
    base = opened("banned", list(banned))
    found = base.generate_ids(base.model, items, LIMIT)
    assert banned and not {id for row in found for id in row} & {*banned}
    prompt = torch.tensor([base.decoder_prompt()] * len(items))
    theirs = base.model.generate(
        encoder_outputs=base.model.get_encoder()(base.audio_features(items)),
        decoder_input_ids=prompt,
        decoder_attention_mask=torch.ones_like(prompt),
        max_new_tokens=LIMIT,
        suppress_tokens=[*banned],
    )
    end = base.tokenizer.eos_token_id
    assert found == [row[: row.index(end)] if end in row else row for row in theirs.tolist()]
    with pytest.raises(InputError, match=r"whisper\.suppress: the base has no such token \(100000\)"):
        opened("absent", [100000])


def loud_and_quiet(path, seconds: float, pause: float) -> str:
    """A tone with a pause of 0.2 s around `pause`."""
    times = np.arange(int(16000 * seconds)) / 16000
    samples = np.sin(times * 700 * (1 + times / 8)) * 0.4
    samples[np.abs(times - pause) < 0.1] *= 1e-4
    soundfile.write(path, samples, 16000)
    return str(path)


def test_a_long_recording_is_cut_where_it_is_quietest_and_nothing_is_lost():
    samples = np.ones(50000, np.float32)
    samples[14000:15600] = 0.001
    cuts = quiet_cuts(samples, 16000)
    assert (cuts[0], cuts[-1]) == (0, 50000) and 14800 <= cuts[1] <= 15000
    assert all(0 < last - first <= 16000 for first, last in pairwise(cuts))
    assert quiet_cuts(samples[:16000], 16000) == [0, 16000]


def test_a_recording_over_the_window_is_refused_or_written_window_after_window(pair, tmp_path):
    base, theirs, items = pair
    path = loud_and_quiet(tmp_path / "long.flac", 2.6, 0.92)
    example = Example("r9", "g", "", "some words " * 30, audio=Clip(path, seconds=2.6))
    with pytest.raises(InputError, match=r"r9: the clip is longer than the base's audio window \(2\.60 s\)"):
        base.encode_question(example, Decoding())
    chunks = Decoding(long_form="chunks")
    item = base.encode_question(example, chunks)
    windows = base.windows(item)
    assert [type(window.audio) for window in windows] == [Piece] * 3
    assert (windows[0].audio.first, windows[-1].audio.last) == (0, 41600)
    assert windows[0].audio.last == pytest.approx(0.92 * 16000, abs=800)
    expected = [result.text for result in reference(theirs, base, windows)]
    both = base.text(base.model, [items[0], item], LIMIT, decoding=chunks)
    assert both == [base.text(base.model, [items[0]], LIMIT)[0], re.sub(" +", " ", " ".join(expected)).strip()]
    with pytest.raises(InputError, match=r"long\.flac: the clip is longer"):
        base.loss(base.model, base.collate([item]))


def test_a_silent_window_of_a_recording_that_speaks_is_read(pair, tmp_path):
    base, _, _ = pair
    samples = np.zeros(48000)
    samples[:12000] = np.sin(np.arange(12000) * 0.05) * 0.4
    soundfile.write(tmp_path / "mostly.flac", samples, 16000)
    chunks = Decoding(long_form="chunks")
    item = base.encode_question(Example("r", "g", "", "", audio=str(tmp_path / "mostly.flac")), chunks)
    assert len(base.windows(item)) > 2 and base.text(base.model, [item], LIMIT, decoding=chunks)


def test_defaults_write_what_one_greedy_pass_writes(pair):
    base, _, items = pair
    texts = [base.transcript_text(ids) for ids in base.generate_ids(base.model, items, LIMIT)]
    assert base.text(base.model, items, LIMIT) == base.text(base.model, items, LIMIT, decoding=Decoding()) == texts
    assert Decoding().is_greedy and not Decoding(beams=2).is_greedy
