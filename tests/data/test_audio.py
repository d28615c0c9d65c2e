"""Audio reading refuses what would silently spoil a score; features are Whisper's."""

import numpy as np
import pytest
import soundfile

from loratory.data.audio import RATE, log_mel, read_audio
from loratory.errors import InputError


def noise(seconds, rate=RATE, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, int(seconds * rate)).astype(np.float32)


def tone(rate, hertz=440, seconds=1.0):
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def saved(path, samples, rate=RATE, **more):
    soundfile.write(path, samples, rate, **more)
    return path


def refusal(path) -> InputError:
    with pytest.raises(InputError) as caught:
        read_audio(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    return caught.value


# reading


@pytest.mark.parametrize("kind", ["wav", "flac"])
def test_samples_come_back_unchanged_at_the_own_rate(tmp_path, kind):
    samples = (noise(1) * 32768).round().clip(-32768, 32767) / 32768
    read = read_audio(saved(tmp_path / f"a.{kind}", samples, subtype="PCM_16"))
    assert read.dtype == np.float32 and np.array_equal(read, samples.astype(np.float32))


@pytest.mark.parametrize("kind", ["ogg", "mp3"])
def test_lossy_formats_are_read_whole(tmp_path, kind):
    assert len(read_audio(saved(tmp_path / f"a.{kind}", tone(RATE)))) == RATE


def test_channels_are_averaged(tmp_path):
    left, right = noise(1, seed=1), noise(1, seed=2)
    read = read_audio(saved(tmp_path / "a.wav", np.stack([left, right], 1), subtype="FLOAT"))
    assert np.allclose(read, (left + right) / 2, atol=1e-7)


@pytest.mark.parametrize("rate", [8_000, 44_100])
def test_a_tone_keeps_its_pitch_and_length_through_resampling(tmp_path, rate):
    read = read_audio(saved(tmp_path / "a.wav", tone(rate), rate))
    assert abs(len(read) - RATE) <= RATE // 100
    peaks = [log_mel(samples)[:, 20:80].mean(axis=1).argmax() for samples in (read, tone(RATE))]
    assert peaks[0] == peaks[1]


def test_resampling_does_not_alias(tmp_path):
    read = read_audio(saved(tmp_path / "a.wav", tone(44_100, 10_000) + 0.1 * tone(44_100, 1_000), 44_100))
    spectrum = np.abs(np.fft.rfft(read[1000:-1000] * np.hanning(len(read) - 2000)))
    alias, kept = (round(hertz * (len(read) - 2000) / RATE) for hertz in (6_000, 1_000))
    assert spectrum[alias - 2 : alias + 3].max() < 1e-3 * spectrum[kept - 2 : kept + 3].max()


# refusals


def test_missing_file(tmp_path):
    assert refusal(tmp_path / "none.wav").reason == "audio_missing"


@pytest.mark.parametrize("content", [b"", b"not audio at all, but a page of text\n" * 20])
def test_empty_file_or_text_named_wav(tmp_path, content):
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    assert refusal(path).reason == "audio_format"


@pytest.mark.parametrize("kind, reason", [("wav", "audio_empty"), ("flac", "audio_format")])
def test_header_without_samples(tmp_path, kind, reason):
    assert refusal(saved(tmp_path / f"a.{kind}", np.zeros(0))).reason == reason


def test_flac_written_to_a_pipe_has_no_length_to_check(tmp_path):
    path = saved(tmp_path / "a.flac", noise(1))
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # the 36 bits of STREAMINFO that count samples
    content[22:26] = bytes(4)
    path.write_bytes(content)
    assert "no length" in str(refusal(path))


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.98])
def test_truncated_file(tmp_path, kind, share):
    path = saved(tmp_path / f"a.{kind}", noise(2))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert refusal(path).reason in ("audio_cut", "audio_format")
    if kind == "wav":
        assert "cut short after" in str(refusal(path))


def test_wav_written_to_a_pipe_has_no_length_and_is_read(tmp_path):
    path = saved(tmp_path / "a.wav", noise(1))
    content = bytearray(path.read_bytes())
    content[4:8] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    assert len(read_audio(path)) == RATE


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_numbers(tmp_path, value):
    samples = noise(1)
    samples[100] = value
    assert refusal(saved(tmp_path / "a.wav", samples, subtype="FLOAT")).reason == "audio_nan"


@pytest.mark.parametrize("level", [0.0, 0.0005])
def test_silence(tmp_path, level):
    error = refusal(saved(tmp_path / "a.wav", level * np.ones(RATE), subtype="FLOAT"))
    assert error.reason == "audio_silent" and "dBFS" in str(error)


def test_quiet_speech_is_not_silence(tmp_path):
    assert len(read_audio(saved(tmp_path / "a.wav", 0.02 * noise(1), subtype="FLOAT"))) == RATE


def test_channels_that_cancel_are_silent(tmp_path):
    both = np.stack([noise(1), -noise(1)], 1)
    assert refusal(saved(tmp_path / "a.wav", both)).reason == "audio_silent"


def test_sampling_rate_below_telephone(tmp_path):
    error = refusal(saved(tmp_path / "a.wav", noise(1, 4_000), 4_000))
    assert error.reason == "audio_rate" and "4000 Hz" in str(error)


# features


@pytest.mark.parametrize("seconds", [0.5, 3.2, 30, 31])
@pytest.mark.parametrize("n_mels", [80, 128])
def test_features_equal_openai_whisper(seconds, n_mels):
    from whisper.audio import log_mel_spectrogram, pad_or_trim

    theirs = log_mel_spectrogram(pad_or_trim(noise(seconds)), n_mels).numpy()
    ours = log_mel(noise(seconds), n_mels, frames=3000)
    assert ours.shape == theirs.shape == (n_mels, 3000) and ours.dtype == np.float32
    assert np.abs(ours - theirs).max() <= 1e-4


@pytest.mark.parametrize("chunk_seconds", [4, 30])
@pytest.mark.parametrize("seconds", [0.01, 1.7, 4, 5.03])
def test_features_equal_hugging_face_at_any_chunk_length(chunk_seconds, seconds):
    from transformers import WhisperFeatureExtractor

    extract = WhisperFeatureExtractor(chunk_length=chunk_seconds)
    theirs = extract(noise(seconds), sampling_rate=RATE, return_tensors="np")["input_features"][0]
    ours = log_mel(noise(seconds), frames=100 * chunk_seconds)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-4


@pytest.mark.parametrize("samples", [16_000, 16_159, 20_001])
def test_unpadded_features_equal_openai_whisper(samples):
    from whisper.audio import log_mel_spectrogram

    clip = noise(2)[:samples]
    assert np.abs(log_mel(clip) - log_mel_spectrogram(clip).numpy()).max() <= 1e-4


def test_padding_that_is_skipped_equals_padding_that_is_computed():
    clip = tone(RATE, seconds=1.234)
    padded = np.concatenate([clip, np.zeros(400 * 160 - len(clip), np.float32)])
    assert np.allclose(log_mel(clip, frames=400), log_mel(padded, frames=400), atol=1e-6)
