"""Audio reading refuses what would silently spoil a score; features are Whisper's."""

import numpy as np
import pytest
import soundfile

from loratory.data.audio import RATE, clip_samples, inspect_audio, log_mel, read_audio, read_clip
from loratory.data.clips import Clip
from loratory.data.files import file_sha256
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


@pytest.mark.parametrize("right", [-1, -0.9])
def test_channels_that_cancel_each_other_are_refused_with_the_cause(tmp_path, right):
    both = np.stack([noise(1), right * noise(1)], 1)
    error = refusal(saved(tmp_path / "a.wav", both))
    assert error.reason == "audio_phase" and "opposite phase" in str(error)


def test_one_silent_channel_beside_speech_is_read(tmp_path):
    assert len(read_audio(saved(tmp_path / "a.wav", np.stack([noise(1), 0 * noise(1)], 1)))) == RATE


@pytest.mark.parametrize("scale", [32_768, 128, 8_388_608])
def test_floats_in_the_scale_of_integers_are_refused(tmp_path, scale):
    error = refusal(saved(tmp_path / "a.wav", scale * noise(1), subtype="FLOAT"))
    assert error.reason == "audio_scale" and "beyond full scale" in str(error)


def test_an_offset_without_speech_is_silence(tmp_path):
    error = refusal(saved(tmp_path / "a.wav", 0.2 + 0 * noise(1), subtype="FLOAT"))
    assert error.reason == "audio_silent" and "beside an offset of 0.200" in str(error)


@pytest.mark.parametrize(
    ("samples", "rate", "flaws"),
    [
        (noise(1), RATE, ()),
        (np.clip(8 * noise(1), -1, 1), RATE, ("clipped",)),
        (np.clip(8 * noise(1), -0.4, 0.4), RATE, ("clipped",)),  # and made quieter afterwards
        (np.stack([np.clip(8 * noise(1), -1, 1), noise(1, seed=5)], 1), RATE, ("clipped",)),  # in one channel
        (np.stack([0 * noise(1), noise(1)], 1), RATE, ()),
        (noise(1, 8_000), 8_000, ("narrow_band",)),
        (noise(1) + 0.1, RATE, ("dc_offset",)),
    ],
)
def test_what_is_read_in_spite_of_a_flaw_says_which(tmp_path, samples, rate, flaws):
    assert inspect_audio(saved(tmp_path / "a.wav", samples, rate))[1] == flaws


def container(folder, kind, subtype):
    samples = noise(1)
    soundfile.write(folder / "whole", samples, RATE, format=kind, subtype=subtype)
    return folder / "whole"


CONTAINERS = [
    *(
        ("OGG", "VORBIS"),
        ("OGG", "OPUS"),
        ("NIST", "PCM_16"),
        ("NIST", "ULAW"),
        ("W64", "PCM_16"),
        ("W64", "MS_ADPCM"),
    ),
    *(("AIFF", "PCM_16"), ("AIFF", "IMA_ADPCM"), ("AU", "PCM_16"), ("AU", "ULAW"), ("RF64", "PCM_16")),
    *(("CAF", "PCM_16"), ("CAF", "ALAC_16"), ("WAVEX", "PCM_24"), ("WAV", "IMA_ADPCM"), ("WAV", "GSM610")),
    *(("MP3", "MPEG_LAYER_III"), ("FLAC", "PCM_16")),
]


@pytest.mark.parametrize(("kind", "subtype"), CONTAINERS)
def test_a_whole_file_is_read_and_a_part_of_it_refused_whatever_the_container(tmp_path, kind, subtype):
    path = container(tmp_path, kind, subtype)
    assert abs(len(read_audio(path)) - RATE) < 1000
    content = path.read_bytes()
    for share in (0.5, 0.9, 0.99):
        path.write_bytes(content[: int(share * len(content))])
        assert refusal(path).reason in ("audio_cut", "audio_format"), share


@pytest.mark.parametrize("kind", ["AVR", "HTK", "IRCAM", "MAT5", "PAF", "PVF", "VOC"])
def test_a_container_whose_length_nobody_checks_is_refused(tmp_path, kind):
    assert "no length to check" in str(refusal(container(tmp_path, kind, "PCM_16")))


def test_an_ogg_that_ends_between_two_pages_is_cut_short(tmp_path):
    path = saved(tmp_path / "a.ogg", noise(5), subtype="OPUS")
    path.write_bytes(path.read_bytes()[: path.read_bytes().rfind(b"OggS")])
    assert refusal(path).reason == "audio_cut"


def test_a_wav_whose_data_chunk_claims_more_than_there_is_is_cut_short(tmp_path):
    path = container(tmp_path, "WAV", "PCM_16")
    content = bytearray(path.read_bytes())
    content[40:44] = (2 * (len(content) - 44)).to_bytes(4, "little")
    path.write_bytes(content)
    assert refusal(path).reason == "audio_cut"


def test_a_wav_and_an_mp3_without_any_length_are_refused(tmp_path):
    path = container(tmp_path, "WAV", "PCM_16")
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    assert "no length" in str(refusal(path))
    path = container(tmp_path, "MP3", "MPEG_LAYER_III")
    path.write_bytes(path.read_bytes().replace(b"Xing", b"....").replace(b"Info", b"...."))
    assert "no length" in str(refusal(path))


def test_a_file_named_raw_and_a_name_too_long_for_a_file_are_refused(tmp_path):
    (tmp_path / "a.raw").write_bytes(b"\0\1" * 1000)
    assert refusal(tmp_path / "a.raw").reason == "audio_format"
    assert refusal(tmp_path / ("a" * 5000)).reason == "audio_missing"


# clips


def test_a_part_of_a_recording_is_its_samples_between_two_times(tmp_path):
    path = saved(tmp_path / "a.wav", noise(2), subtype="FLOAT")
    assert np.array_equal(read_audio(path, 0.5, 1.25), noise(2)[8_000:20_000])
    assert np.array_equal(read_audio(path, 1.5), noise(2)[24_000:])
    assert len(read_audio(path, 1.5, 2.05)) == 8_000, "times are rounded"
    for start, end in ((2.0, 3.0), (1.0, 2.5)):
        with pytest.raises(InputError, match="ends before the segment does"):
            read_audio(path, start, end)


def test_a_clip_is_read_only_while_its_recording_is_the_one_that_was_noted(tmp_path):
    path = saved(tmp_path / "a.wav", noise(1))
    clip = Clip(str(path), file_sha256(path), 1.0)
    assert np.array_equal(read_clip(clip), read_audio(path))
    saved(path, noise(2, seed=1))
    with pytest.raises(InputError, match="not the one that the dataset was built from") as caught:
        read_clip(clip)
    assert str(caught.value).startswith(f"{path}: ") and caught.value.reason == "audio_changed"


def test_a_known_length_is_not_read_again(tmp_path):
    path = saved(tmp_path / "a.wav", noise(1))
    assert clip_samples(str(path)) == clip_samples(Clip(str(path))) == RATE
    path.unlink()
    assert clip_samples(Clip(str(path), seconds=0.6)) == 9_600


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
