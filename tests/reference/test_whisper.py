"""Real Whisper on real clips, held against openai-whisper from the samples on, and against transformers alone."""

import jiwer
import numpy as np
import pytest
import soundfile
import torch
import whisper
from models import entry
from transformers import AutoTokenizer, WhisperFeatureExtractor, WhisperForConditionalGeneration
from whisper.normalizers import EnglishTextNormalizer

from loratory.bases.core import load_base
from loratory.bases.families.whisper import fails_threshold
from loratory.bases.openai_whisper import export_openai
from loratory.bases.options import Decoding, WhisperOptions
from loratory.bases.prepare import prepare_folder
from loratory.data.audio import RATE, read_audio
from loratory.data.ledger import Ledger
from loratory.domains.contract import Example
from loratory.domains.speech import build, metrics
from loratory.domains.speech.sources import Dataset, Files, Task
from loratory.domains.speech.task import examples

LIMIT = 48  # tokens; nobody says more in these clips, but some answers would never end
GREEDY = {
    "temperature": 0,
    "beam_size": None,
    "without_timestamps": True,
    "fp16": False,
    "language": "en",
    "sample_len": LIMIT,
}
PLAIN = {"suppress_tokens": "", "suppress_blank": False}


@pytest.fixture(scope="module")
def records(shared_data):
    """Clips of 20 children and 4 adults, spread over the corpus; the adults last."""
    root = shared_data / "child_speech" / "speechocean762"
    found = []
    for ages, count in (({"max_age": 15}, 20), ({"min_age": 16}, 4)):
        files = Files(folders=[str(root / "test")], audio_root=str(root))
        own = list(build.read(files, Dataset(max_seconds=10, **ages), Ledger()))
        found += own[:: len(own) // count][:count]
    return [record | {"group": record["speaker"], "read_in_train": False} for record in found]


@pytest.fixture(scope="module")
def pair(real_weights, tmp_path_factory):
    """(name, options) -> our base and openai-whisper's model of the same weights."""
    root = tmp_path_factory.mktemp("whisper")

    def opened(name: str, **options):
        folder, checkpoint = root / f"{name}{len(options)}", root / f"{name}.pt"
        given = entry("whisper")
        given.whisper = WhisperOptions(**options)
        prepare_folder(real_weights(name), name, given, folder)
        if not checkpoint.is_file():
            export_openai(real_weights(name), checkpoint)
        return load_base(folder), whisper.load_model(str(checkpoint), "cpu")

    return opened


def eights(things: list) -> list[list]:
    return [things[at : at + 8] for at in range(0, len(things), 8)]


def reference(model, mels, **options) -> list:
    """What openai-whisper writes; `mels` may be what its encoder made of them."""
    options = whisper.DecodingOptions(**GREEDY, **options)
    return [result for some in eights(mels) for result in whisper.decode(model, torch.stack(some), options)]


def features(record) -> torch.Tensor:
    """openai-whisper's, of a clip alone: within a batch it would share the loudest cell."""
    return whisper.log_mel_spectrogram(whisper.pad_or_trim(torch.from_numpy(read_audio(record["audio"]))))


def written(base, records) -> list[list[int]]:
    items = [base.encode(example) for example in examples(records, Task(), "whisper")]
    return [row for some in eights(items) for row in base.generate_ids(base.model, some, LIMIT)]


def check_both_variants(pair, name: str, records, suppressed: int) -> tuple[list[str], list]:
    """Without suppression, and of the last `suppressed` clips with it; returns our texts and OpenAI's results."""
    (base, model), (silent, _) = pair(name), pair(name, suppress=True)
    prompt = whisper.tokenizer.get_tokenizer(model.is_multilingual, language="en", task="transcribe")
    assert tuple(base.decoder_prompt()) == prompt.sot_sequence_including_notimestamps
    expected, found = reference(model, [features(record) for record in records], **PLAIN), written(base, records)
    assert found == [result.tokens for result in expected]
    encoded = [result.audio_features for result in expected[-suppressed:]]
    assert written(silent, records[-suppressed:]) == [result.tokens for result in reference(model, encoded)]
    return [base.transcript_text(row) for row in found], expected


def test_tiny_en_writes_openais_tokens_and_has_its_word_errors(pair, records):
    texts, expected = check_both_variants(pair, "whisper_tiny_en", records, 4)
    assert texts == [result.text for result in expected]
    rows = [{"id": r["id"], "reference": r["text"], "text": text} for r, text in zip(records, texts)]
    columns = metrics.columns(rows, records, Task())
    ours = next(metric for metric in metrics.METRICS if metric.name == "wer").compute_value(columns)
    clean = EnglishTextNormalizer()
    theirs = jiwer.wer([clean(r["text"]) for r in records], [clean(result.text) for result in expected])
    assert ours == pytest.approx(theirs, abs=1e-12) and 0.1 < ours < 0.8


def test_base_writes_openais_tokens(pair, records):
    check_both_variants(pair, "whisper_base", records[-6::3], 2)


def test_tiny_en_writes_openais_beams_and_falls_back_where_openai_does(pair, records):
    base, model = pair("whisper_tiny_en")
    some = records[:2]
    items = [base.encode(example) for example in examples(some, Task(), "whisper")]
    asked = whisper.DecodingOptions(**GREEDY | PLAIN | {"beam_size": 5})
    expected = [whisper.decode(model, features(record), asked) for record in some]  # one by one: it takes no batch
    found = base.transcribe(base.model, items, LIMIT, Decoding(beams=5))
    assert [one.ids for one in found] == [result.tokens for result in expected]
    assert [one.mean_log_prob for one in found] == pytest.approx([result.avg_logprob for result in expected], abs=1e-3)
    for one, result in zip(found, expected):
        failed = result.compression_ratio > 2.4 or result.avg_logprob < -1.0
        assert fails_threshold(base.transcript_text(one.ids), one.mean_log_prob, Decoding()) == failed


@pytest.mark.parametrize("name", ["whisper_tiny_en", "whisper_base"])
def test_silence_is_as_likely_as_openai_says_of_speech_and_of_noise(pair, records, tmp_path, name):
    base, model = pair(name)
    soundfile.write(tmp_path / "noise.flac", np.random.default_rng(0).normal(0, 0.003, 3 * RATE), RATE)
    noise = {"id": "noise", "audio": str(tmp_path / "noise.flac"), "audio_sha256": "", "seconds": 3.0}
    some = [records[0] | noise | {"start": 0.0, "end": -1.0}, records[0]]
    items = [base.encode(example) for example in examples(some, Task(), "whisper")]
    expected = reference(model, [features(record) for record in some], **PLAIN)
    found = base.transcribe(base.model, items, LIMIT, Decoding())
    assert [one.no_speech for one in found] == pytest.approx([r.no_speech_prob for r in expected], rel=1e-2)
    assert found[0].no_speech > 0.6 > found[1].no_speech


def test_a_recording_of_a_minute_is_written_window_after_window_as_openai_writes_it(pair, records, tmp_path):
    base, model = pair("whisper_tiny_en")
    samples = np.concatenate([read_audio(record["audio"]) for record in records])[: 36 * RATE]
    soundfile.write(tmp_path / "long.flac", samples, RATE)
    chunks = Decoding(long_form="chunks")
    item = base.encode_question(Example("long", "g", "", "", audio=str(tmp_path / "long.flac")), chunks)
    found = base.text(base.model, [item], LIMIT, decoding=chunks)[0]
    parts = [part.audio for part in base.windows(item)]
    assert len(parts) == 2 and parts[0].last == parts[1].first
    whole = read_audio(tmp_path / "long.flac")
    pieces = [torch.from_numpy(whole[part.first : part.last]) for part in parts]
    mels = [whisper.log_mel_spectrogram(whisper.pad_or_trim(piece)) for piece in pieces]
    assert found == " ".join(result.text for result in reference(model, mels, **PLAIN))
    assert len(found.split()) > 30


@torch.no_grad()
def test_the_loss_is_that_of_openais_and_of_transformers_log_probabilities(pair, real_weights, records):
    base, model = pair("whisper_tiny_en")
    some = records[::12]
    items = [base.encode(example) for example in examples(some, Task(), "whisper")]
    found, tokens = base.loss(base.model, base.collate(items))
    theirs = WhisperForConditionalGeneration.from_pretrained(real_weights("whisper_tiny_en"), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(real_weights("whisper_tiny_en"))
    extract = WhisperFeatureExtractor.from_pretrained(real_weights("whisper_tiny_en"))
    losses = {"openai": 0.0, "transformers": 0.0}
    for example, record in zip(examples(some, Task(), "whisper"), some):
        prompt = tokenizer.convert_tokens_to_ids(["<|startoftranscript|>", "<|notimestamps|>"])
        ids = torch.tensor([prompt + tokenizer(example.target, add_special_tokens=False)["input_ids"]])
        answers = torch.cat([ids[0, 2:], torch.tensor([tokenizer.eos_token_id])])
        heard = extract(read_audio(record["audio"]), sampling_rate=16000, return_tensors="pt").input_features
        for name, logits in (
            ("openai", model(features(record)[None], ids)),
            ("transformers", theirs(heard, decoder_input_ids=ids).logits),
        ):
            losses[name] -= float(logits[0, 1:].log_softmax(-1)[torch.arange(len(answers)), answers].sum())
    assert tokens == sum(label != -100 for item in items for label in item.labels)
    for loss in losses.values():
        assert float(found) == pytest.approx(loss, abs=1e-3 * len(some))
