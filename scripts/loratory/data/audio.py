"""Audio files → validated mono samples → Whisper's log-mel features. No torch here."""

from functools import cache
from pathlib import Path

import librosa
import numpy as np
import scipy.fft
import scipy.sparse
import soundfile

from loratory.errors import InputError

RATE = 16_000  # Hz, of the audio that every speech base takes
LOWEST_RATE = 8_000  # telephone; below it consonants are gone
SILENCE = 1e-3  # root mean square of -60 dBFS
WINDOW, HOP = 400, 160  # 25 ms every 10 ms
SAMPLES_PER_POSITION = 2 * HOP  # the encoder's second convolution halves the frames
FLOOR = 1e-10  # power that stands for silence
RANGE = 8.0  # decades of power that are kept below the loudest cell
NO_LENGTH = 2**63 - 1  # frames that libsndfile reports of a FLAC that was written to a pipe
UNKNOWN_SIZES = (0, 0xFFFFFFFF)  # what a RIFF header says when it was written before its length was known


def read_audio(path: Path | str, rate: int = RATE) -> np.ndarray:
    """Samples of the whole file: float32 in [-1, 1], shape (n,), channels averaged, resampled to `rate` Hz.

    Raises:
        InputError: the file is missing, no audio, without samples, cut short, holds NaN or infinity, is silent
            (below -60 dBFS), or was sampled below 8 kHz.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(path, "no such audio file", fix="correct the path it is listed with", reason="audio_missing")
    try:
        with soundfile.SoundFile(path) as file:
            own_rate, stated = file.samplerate, file.frames
            if stated == NO_LENGTH:
                what, fix = "audio file whose header has no length", "encode it again, into a file"
                raise InputError(path, what, expected="a length to check against", fix=fix, reason="audio_format")
            channels = file.read(dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        expected, fix = "whole WAV, FLAC, OGG or MP3", "fetch it again, or convert it to FLAC"
        raise InputError(path, "not readable as audio", error.error_string, expected, fix, "audio_format") from None
    if not stated:
        raise InputError(path, "audio file without samples", expected="speech", reason="audio_empty")
    if len(channels) < stated or is_cut_short(path):
        what = f"audio file is cut short after {len(channels)} samples"
        raise InputError(path, what, expected="as many as its header says", fix="fetch it again", reason="audio_cut")
    if own_rate < LOWEST_RATE:
        raise InputError(path, "sampling rate", f"{own_rate} Hz", f"at least {LOWEST_RATE} Hz", reason="audio_rate")
    samples = channels.mean(axis=1)
    loudness = np.sqrt(np.square(samples).mean())
    if not np.isfinite(loudness):
        raise InputError(path, "samples that are not numbers", "NaN or infinity", "finite samples", reason="audio_nan")
    if loudness < SILENCE:
        value = f"{20 * np.log10(max(loudness, FLOOR)):.0f} dBFS"
        raise InputError(path, "silent audio", value, "at least -60 dBFS", reason="audio_silent")
    return librosa.resample(samples, orig_sr=own_rate, target_sr=rate, res_type="soxr_hq")


def is_cut_short(path: Path) -> bool:
    """Whether a RIFF (WAV) file is shorter than its header says; libsndfile reads what is there and says nothing."""
    with open(path, "rb") as file:
        head = file.read(8)
    size = int.from_bytes(head[4:], "little")
    there = path.stat().st_size - 8
    return head[:4] == b"RIFF" and size not in UNKNOWN_SIZES and there + 1 < size  # some writers forget the pad byte


@cache
def mel_filters(n_mels: int) -> scipy.sparse.csr_array:
    """Slaney's mel filters, shape (n_mels, WINDOW // 2 + 1).

    Sparse: 98 % are zeros, and a dense product would wait for the threads of a busy machine.
    """
    return scipy.sparse.csr_array(librosa.filters.mel(sr=RATE, n_fft=WINDOW, n_mels=n_mels))


def log_mel(samples: np.ndarray, n_mels: int = 80, frames: int | None = None) -> np.ndarray:
    """Whisper's features of one clip: float32, shape (n_mels, frames).

    The clip is padded with silence or trimmed to `frames` of 10 ms (None: as long as it is), and the loudest cell of
    that clip alone sets the floor; openai-whisper shares it among the clips of a batch.

    Args:
        samples: (n,) mono at 16 kHz.

    Source: Radford et al. 2022, arXiv:2212.04356, section 2.2; equal to HF's `WhisperFeatureExtractor`.
    """
    length = len(samples) if frames is None else frames * HOP
    reached = min(length, len(samples) + WINDOW)  # a frame that starts beyond holds padding alone
    clip = np.zeros(reached, np.float32)
    clip[: len(samples)] = samples[:reached]
    centred = np.pad(clip, WINDOW // 2, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(centred, WINDOW)[: reached // HOP * HOP : HOP]
    # a periodic Hann window, as torch.stft takes
    spectrum = scipy.fft.rfft(windows * np.hanning(WINDOW + 1)[:-1].astype(np.float32))  # numpy's takes 7 times longer
    power = mel_filters(n_mels) @ (spectrum.real**2 + spectrum.imag**2).T
    features = np.full((n_mels, length // HOP), np.log10(FLOOR), np.float32)
    features[:, : power.shape[1]] = np.log10(np.maximum(power, FLOOR))
    # Whisper's scale: speech lies between about -1 and 1
    return (np.maximum(features, features.max(initial=np.log10(FLOOR)) - RANGE) + 4) / 4
