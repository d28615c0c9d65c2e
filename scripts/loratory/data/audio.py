"""Audio files → validated mono samples → Whisper's log-mel features. No torch here."""

import os
from functools import cache, lru_cache
from math import ceil
from pathlib import Path

import librosa
import numpy as np
import scipy.fft
import scipy.sparse
import soundfile

from loratory.data.changes import change_samples, changed_length, mask_features, warp_spectrum
from loratory.data.clips import Clip, Piece
from loratory.data.containers import check_whole, cut_error
from loratory.data.files import file_sha256
from loratory.errors import InputError

RATE = 16_000  # Hz, of the audio that every speech base takes
LOWEST_RATE = 8_000  # telephone; below it consonants are gone
SILENCE = 1e-3  # root mean square of -60 dBFS
LOUDEST = 4.0  # beyond 12 dB above full scale, samples are not in a scale of 1
CANCELLED = 0.1  # of a channel's loudness: so little is left of channels that are in opposite phase
FLAT, CLIPPED = 1e-4, 0.01  # within this of the peak lies more than this share of clipped samples
OFFSET, OFFSET_SHARE = 0.01, 0.05  # of full scale, and of the loudness
OVERHANG = 0.1  # seconds that a segment may reach beyond its recording, where times were rounded
KNOWN_DIGESTS = 1 << 16
WINDOW, HOP = 400, 160  # 25 ms every 10 ms
SAMPLES_PER_POSITION = 2 * HOP  # the encoder's second convolution halves the frames
FLOOR = 1e-10  # power that stands for silence
RANGE = 8.0  # decades of power that are kept below the loudest cell
FLAWS = ("clipped", "narrow_band", "dc_offset")


def read_clip(clip: Clip | str) -> np.ndarray:
    """As `read_audio`, of a clip whose recording is what it was; changed as the clip says.

    A path stands for a whole file of which nothing is known.

    Raises:
        InputError: as `read_audio`; also when the recording differs from that which the dataset was built from.
    """
    if isinstance(clip, str):
        return read_audio(clip)
    if isinstance(clip, Piece):
        return whole_clip(clip.whole)[clip.first : clip.last]
    check_unchanged(clip)
    samples = read_audio(clip.path, clip.start, clip.end)
    return change_samples(samples, clip.change, RATE) if clip.change else samples


@lru_cache(maxsize=2)
def whole_clip(clip: Clip) -> np.ndarray:
    """Of a clip that is read in pieces, one after another: it is as long as a recording, and is read once."""
    return read_clip(clip)


def clip_samples(clip: Clip | str) -> int:
    """How many samples at 16 kHz `read_clip` gives, without reading them where the length is known.

    Raises:
        InputError: as `read_audio`, where it is not; the recording is missing.
    """
    if isinstance(clip, Piece):
        return clip.last - clip.first
    if isinstance(clip, str) or clip.seconds is None:
        return len(read_clip(clip))
    samples = round(clip.seconds * RATE)
    return changed_length(samples, clip.change, RATE) if clip.change else samples


def check_unchanged(clip: Clip) -> None:
    """Raises:
    InputError: the recording's bytes are not those that the dataset was built from.
    """
    if clip.sha256 and recording_digest(clip.path) != clip.sha256:
        what, fix = "the recording is not the one that the dataset was built from", "run again, from `fetch_source` on"
        expected = f"sha256 {clip.sha256[:12]}…"
        raise InputError(clip.path, what, recording_digest(clip.path)[:12], expected, fix, "audio_changed")


def recording_digest(path: str) -> str:
    """sha256 of a recording's bytes; of a file that did not change, from memory.

    Raises:
        InputError: there is no such file.
    """
    check_present(path)
    found = os.stat(path)
    return stored_digest(path, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=KNOWN_DIGESTS)
def stored_digest(path: str, size: int, changed: int) -> str:
    return file_sha256(path)


def check_present(path: Path | str) -> None:
    """Raises:
    InputError: there is no such file.
    """
    if not os.path.isfile(path):  # pathlib's raises where a name is too long to be one
        raise InputError(path, "no such audio file", fix="correct the path it is listed with", reason="audio_missing")


def read_audio(path: Path | str, start: float = 0.0, end: float | None = None) -> np.ndarray:
    """Samples of a file, or of a part of it: float32, shape (n,), channels averaged, resampled to 16 kHz.

    Raises:
        InputError: see `inspect_audio`.
    """
    return inspect_audio(path, start, end)[0]


def inspect_audio(
    path: Path | str, start: float = 0.0, end: float | None = None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The samples of `read_audio`, and which of FLAWS they have.

    `clipped`: more than 1 % of a channel at its peak; `narrow_band`: sampled below 16 kHz; `dc_offset`: a mean of more
    than 1 % of full scale and 5 % of the loudness.

    Args:
        start, end: seconds in the recording; None: as far as it goes.

    Raises:
        InputError: the file is missing, no audio, without samples, cut short or without a length to tell, or ends
            before `start` or `end`; or the samples hold NaN or infinity, are far beyond full scale, cancel each other
            in two channels, are silent (below -60 dBFS), or were taken below 8 kHz.
    """
    path = Path(path)
    check_present(path)
    channels, own_rate = read_channels(path, start, end)
    if own_rate < LOWEST_RATE:
        raise InputError(path, "sampling rate", f"{own_rate} Hz", f"at least {LOWEST_RATE} Hz", reason="audio_rate")
    samples = channels.mean(axis=1)
    check_levels(path, channels, samples)
    offset = samples.mean()
    found = (
        is_clipped(channels),
        own_rate < RATE,
        abs(offset) > max(OFFSET, OFFSET_SHARE * samples.std()),
    )
    flaws = tuple(name for name, has in zip(FLAWS, found) if has)
    return librosa.resample(samples, orig_sr=own_rate, target_sr=RATE, res_type="soxr_hq"), flaws


def is_clipped(channels: np.ndarray) -> bool:
    """Whether any channel that is not silent has too many samples at its peak."""
    levels = np.abs(channels)
    peaks = levels.max(axis=0)
    return bool((((levels >= peaks * (1 - FLAT)).mean(axis=0) > CLIPPED) & (peaks > SILENCE)).any())


def read_channels(path: Path, start: float, end: float | None) -> tuple[np.ndarray, int]:
    """float32 `[samples, channels]` as stored, and their rate.

    Raises:
        InputError: as `inspect_audio`, as far as the file is concerned.
    """
    try:
        with soundfile.SoundFile(path) as file:
            rate, stated = file.samplerate, file.frames
            check_whole(path, stated)
            first, last = segment_frames(path, start, end, rate, stated)
            if first:  # not every coding can be sought in
                file.seek(first)
            channels = file.read(last - first, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: a name that ends in .raw
        expected, fix = "whole WAV, FLAC, OGG or MP3", "fetch it again, or convert it to FLAC"
        value = getattr(error, "error_string", "no header")
        raise InputError(path, "not readable as audio", value, expected, fix, "audio_format") from None
    if len(channels) < last - first:
        raise cut_error(path)
    if not len(channels):
        raise InputError(path, "audio file without samples", expected="speech", reason="audio_empty")
    return channels, rate


def recording_seconds(path: Path | str) -> float:
    """How long a recording says it is; 0 where there is none, which `read_channels` tells why."""
    try:
        with soundfile.SoundFile(path) as file:
            return file.frames / file.samplerate
    except (soundfile.LibsndfileError, TypeError):
        return 0.0


def check_stated_length(path: Path | str, stated: float | str) -> None:
    """Raises:
    InputError: a recording that can be read is not as long as its corpus says, in seconds ("": nothing is said).
    """
    try:
        seconds = float(stated or "nan")
    except ValueError:
        raise InputError(path, "a length that is no number", stated, "seconds", reason="stated_length") from None
    found = recording_seconds(path)
    if found and abs(found - seconds) > OVERHANG:
        what, fix = "the recording is not as long as its corpus says", "fetch it again, or correct the length"
        raise InputError(path, what, f"{found:.2f} s", f"{seconds:g} s", fix, "stated_length")


def segment_frames(path: Path, start: float, end: float | None, rate: int, stated: int) -> tuple[int, int]:
    """The first frame of a segment and the one after its last, of a recording of so many.

    Raises:
        InputError: the recording ends before the segment does.
    """
    first, last = round(start * rate), stated if end is None else round(end * rate)
    if (first > 0 and first >= stated) or last > stated + rate * OVERHANG:
        what, given = "the recording ends before the segment does", f"{start:g} to {last / rate:g} s"
        expected = f"times within {stated / rate:.2f} s"
        raise InputError(path, what, given, expected, "correct `segments`", "segment_times")
    return first, min(last, stated)


def check_levels(path: Path, channels: np.ndarray, samples: np.ndarray) -> None:
    """Raises:
    InputError: these are not the levels of recorded speech, with the cause.
    """
    if not np.isfinite(channels).all():
        raise InputError(path, "samples that are not numbers", "NaN or infinity", "finite samples", reason="audio_nan")
    each, peak = np.std(channels, axis=0, dtype=np.float64), np.abs(channels).max()
    if peak > LOUDEST:
        what, fix = "samples far beyond full scale", "divide them by the full scale of the integers that they were"
        raise InputError(path, what, f"{peak:g}", "float samples within -1 and 1", fix, "audio_scale")
    loudness, offset = np.std(samples, dtype=np.float64), abs(samples.mean())
    if each.max() >= SILENCE and loudness < CANCELLED * each.max():
        what, fix = "channels in opposite phase cancel each other", "invert one of them, or keep only one"
        raise InputError(path, what, f"{len(each)} channels", "channels whose mean is speech", fix, "audio_phase")
    if loudness < SILENCE:
        value = f"{20 * np.log10(max(loudness, FLOOR)):.0f} dBFS"
        value += f" beside an offset of {offset:.3f}" if offset > SILENCE else ""
        raise InputError(path, "silent audio", value, "at least -60 dBFS", reason="audio_silent")


@cache
def mel_filters(n_mels: int) -> scipy.sparse.csr_array:
    """Slaney's mel filters, shape (n_mels, WINDOW // 2 + 1).

    Sparse: 98 % are zeros, and a dense product would wait for the threads of a busy machine.
    """
    return scipy.sparse.csr_array(librosa.filters.mel(sr=RATE, n_fft=WINDOW, n_mels=n_mels))


def clip_features(clip: Clip | str, n_mels: int, frames: int) -> np.ndarray:
    """`log_mel` of a clip, changed as it says."""
    samples, change = read_clip(clip), clip.change if isinstance(clip, Clip) else None
    if change is None:
        return log_mel(samples, n_mels, frames)
    return mask_features(log_mel(samples, n_mels, frames, change.warp), ceil(len(samples) / HOP), change)


def log_mel(samples: np.ndarray, n_mels: int = 80, frames: int | None = None, warp: float = 1.0) -> np.ndarray:
    """Whisper's features of one clip: float32, shape (n_mels, frames).

    The clip is padded with silence or trimmed to `frames` of 10 ms (None: as long as it is), and the loudest cell of
    that clip alone sets the floor; openai-whisper shares it among the clips of a batch.

    Args:
        samples: (n,) mono at 16 kHz. warp: factor of the frequencies of formants, see `changes.warp_spectrum`.

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
    power = mel_filters(n_mels) @ warp_spectrum(spectrum.real**2 + spectrum.imag**2, warp, RATE).T
    features = np.full((n_mels, length // HOP), np.log10(FLOOR), np.float32)
    features[:, : power.shape[1]] = np.log10(np.maximum(power, FLOOR))
    # Whisper's scale: speech lies between about -1 and 1
    return (np.maximum(features, features.max(initial=np.log10(FLOOR)) - RANGE) + 4) / 4
