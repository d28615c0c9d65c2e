"""Augmented sound: speed, pitch, noise, vocal tract length and masked features, as a `Change` says.

Resampling and the phase vocoder are librosa's; the rest is written here, as no library serves. audiomentations (0.43)
wants an older soxr than the one that everything here is resampled with. torchaudio (2.11, only maintained) and lhotse
(1.33) draw from generators of the whole process, so that what a clip becomes would depend on all that was drawn before
it; and none of them warps the vocal tract.
"""

from math import ceil

import librosa
import numpy as np

from loratory.data.clips import Change

PITCH_WINDOW = 512  # samples, 32 ms at 16 kHz: longer ones, as librosa has them for music, blur speech
WARPED_BELOW = 4800  # Hz: formants lie below; above, the warped axis goes straight to the highest frequency


def changed_length(samples: int, change: Change, rate: int) -> int:
    """How many samples `change_samples` makes of so many."""
    return ceil(samples * (float(rate) / played_rate(change, rate)))  # as librosa rounds


def played_rate(change: Change, rate: int) -> int:
    """The rate that samples are taken for, so that they are played faster or slower at their own."""
    return round(rate * change.speed)


def change_samples(samples: np.ndarray, change: Change, rate: int) -> np.ndarray:
    """float32 `[n]` → float32 `[changed_length(n)]`: speed, then pitch, then noise.

    Sources: speed, Ko et al. 2015 (Interspeech), "Audio augmentation for speech recognition"; pitch by a phase vocoder
    and resampling.
    """
    if change.speed != 1:
        samples = librosa.resample(samples, orig_sr=played_rate(change, rate), target_sr=rate, res_type="soxr_hq")
    if change.semitones:
        samples = librosa.effects.pitch_shift(samples, sr=rate, n_steps=change.semitones, n_fft=PITCH_WINDOW)
    if change.noise is not None:
        loudness = np.sqrt(np.mean(samples**2, dtype=np.float64)) * 10 ** (-change.noise / 20)
        samples = samples + loudness * np.random.default_rng([change.seed, 0]).standard_normal(len(samples))
    return np.asarray(samples, np.float32)


def warp_spectrum(power: np.ndarray, warp: float, rate: int) -> np.ndarray:
    """Power spectra `[frames, bins]` of a vocal tract that is 1 / `warp` times as long.

    What lay at a frequency f lies at `warp` f, up to WARPED_BELOW; beyond, the axis is straight up to half the rate.
    Source: vocal tract length perturbation, Jaitly & Hinton 2013 (ICML workshop on speech), equation 1.
    """
    if warp == 1:
        return power
    top, bins = rate / 2, power.shape[1]
    hertz = np.linspace(0, top, bins)
    knee = WARPED_BELOW * min(warp, 1) / warp
    places = np.interp(hertz, [0, knee * warp, top], [0, knee, top]) / top * (bins - 1)  # where each bin comes from
    lower = np.minimum(places.astype(int), bins - 2)
    share = (places - lower).astype(power.dtype)
    return power[:, lower] * (1 - share) + power[:, lower + 1] * share


def mask_features(features: np.ndarray, frames: int, change: Change) -> np.ndarray:
    """Log-mel features `[bands, all frames]` of a clip of so many frames with the mean of the clip at what is hidden.

    Source: SpecAugment without time warping, Park et al. 2019, arXiv:1904.08779, section 2.
    """
    masks, features = change.masks, features.copy()
    frames = min(frames, features.shape[1])
    if masks is None or not frames:
        return features
    random, mean = np.random.default_rng([change.seed, 1]), features[:, :frames].mean()
    longest = min(masks.longest_time, int(masks.longest_share * frames))
    for _ in range(masks.bands):
        features[draw_stretch(random, min(masks.widest_band, len(features)), len(features)), :frames] = mean
    for _ in range(masks.times):
        features[:, draw_stretch(random, longest, frames)] = mean
    return features


def draw_stretch(random: np.random.Generator, longest: int, length: int) -> slice:
    """A stretch of 0 to `longest` places of `length`, anywhere among them."""
    width = int(random.integers(longest + 1))
    start = int(random.integers(length - width + 1))
    return slice(start, start + width)
