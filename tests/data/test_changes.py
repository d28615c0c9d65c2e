"""Augmented sound is what its names say, is the same every time, and never leaves the range of sound."""

import numpy as np
import pytest
import soundfile

from loratory.data.audio import HOP, RATE, clip_features, clip_samples, log_mel, read_clip
from loratory.data.changes import change_samples, changed_length, mask_features, warp_spectrum
from loratory.data.clips import Change, Clip, Masks, is_changed

MASKS = Masks(bands=2, widest_band=27, times=2, longest_time=100, longest_share=0.3)
EVERYTHING = Change(speed=0.9, semitones=-2.5, noise=10, warp=1.07, masks=MASKS, seed=7)


def tone(hertz=440.0, seconds=1.0):
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


def peak(samples) -> float:
    """Hz of the strongest line."""
    return float(np.abs(np.fft.rfft(samples * np.hanning(len(samples)))).argmax() * RATE / len(samples))


@pytest.fixture
def clip(tmp_path):
    samples = tone() + np.random.default_rng(0).normal(0, 0.01, RATE)
    soundfile.write(tmp_path / "a.flac", samples, RATE)
    return Clip(str(tmp_path / "a.flac"), seconds=1.0)


@pytest.mark.parametrize("speed", [0.8, 0.9, 1.1, 1.25])
def test_speed_divides_the_length_and_multiplies_the_pitch(speed):
    faster = change_samples(tone(), Change(speed=speed), RATE)
    assert abs(len(faster) - RATE / speed) <= 1
    assert peak(faster) == pytest.approx(440 * speed, abs=2)


@pytest.mark.parametrize("samples", [1600, 15_999, 16_000, 16_001, 48_017])
@pytest.mark.parametrize("speed", [0.83, 0.9, 1.0, 1.1, 1.0 / 3 + 0.5])
def test_the_length_is_known_before_the_sound_is(samples, speed):
    change = Change(speed=speed)
    made = change_samples(np.random.default_rng(0).normal(0, 0.1, samples).astype(np.float32), change, RATE)
    assert len(made) == changed_length(samples, change, RATE)


@pytest.mark.parametrize("semitones", [-4, -0.5, 3, 12])
def test_pitch_moves_by_semitones_and_the_length_stays(semitones):
    moved = change_samples(tone(), Change(semitones=semitones), RATE)
    assert len(moved) == RATE
    assert peak(moved) == pytest.approx(440 * 2 ** (semitones / 12), rel=0.01)


@pytest.mark.parametrize("ratio", [0, 5, 20])
def test_noise_has_the_ratio_that_it_is_given_and_is_white(ratio):
    sound = tone(seconds=4)
    noise = (change_samples(sound, Change(noise=ratio, seed=3), RATE) - sound).astype(np.float64)
    assert 10 * np.log10(np.mean(sound.astype(np.float64) ** 2) / np.mean(noise**2)) == pytest.approx(ratio, abs=0.2)
    bands = np.split((np.abs(np.fft.rfft(noise)) ** 2)[1:], 4)
    assert max(map(np.sum, bands)) < 1.1 * min(map(np.sum, bands))


@pytest.mark.parametrize("warp", [0.9, 1.1])
def test_a_warped_spectrum_has_its_lines_at_other_places_and_its_ends_where_they_were(warp):
    power = np.zeros((1, 201), np.float32)
    power[0, [0, 50, 100, 200]] = 1  # 0, 2000, 4000 and 8000 Hz
    lines = warp_spectrum(power, warp, RATE)[0]
    assert lines.dtype == np.float32 and lines.argmax() in (0, 200)
    assert lines[0] == lines[200] == 1
    assert lines[1:75].argmax() + 1 == round(50 * warp) and lines[75:150].argmax() + 75 == round(100 * warp)
    assert np.array_equal(warp_spectrum(power, 1.0, RATE), power)


def test_masks_hide_no_more_than_they_may_and_hide_it_behind_the_mean():
    features = np.random.default_rng(1).normal(size=(80, 300)).astype(np.float32)
    seen = set()
    for seed in range(40):
        masked = mask_features(features, 200, Change(masks=MASKS, seed=seed))
        hidden = masked != features
        assert np.array_equal(masked[:, 200:], features[:, 200:]), "what is behind the clip stays silence"
        assert (masked[hidden] == features[:, :200].mean()).all()
        rows, columns = hidden[:, :200].all(1), hidden[:, :200].all(0)
        assert rows.sum() <= 2 * 27 and columns.sum() <= 2 * 60, "0.3 of 200 frames are 60"
        assert hidden.sum() == rows.sum() * 200 + columns.sum() * 80 - rows.sum() * columns.sum()
        seen.add((rows.sum(), columns.sum()))
    assert len(seen) > 20


def test_a_clip_that_is_changed_is_the_same_every_time_and_another_with_another_seed(clip):
    changed = Clip(clip.path, seconds=1.0, change=EVERYTHING)
    other = Clip(clip.path, seconds=1.0, change=Change(**{**EVERYTHING.__dict__, "seed": 8}))
    assert is_changed(changed) and not is_changed(clip) and not is_changed(clip.path)
    first, again, third = (clip_features(one, 80, 3000) for one in (changed, changed, other))
    assert np.array_equal(first, again) and not np.array_equal(first, third)
    assert first.shape == (80, 3000) and first.dtype == np.float32 and np.isfinite(first).all()
    assert first.max() <= 1.6 and first.max() - first.min() <= 2 + 1e-6, "Whisper's scale: 8 decades are 2"
    assert np.abs(read_clip(changed)).max() < 1
    assert clip_samples(changed) == len(read_clip(changed)) == 17_778


def test_no_change_is_no_change(clip):
    still = Clip(clip.path, seconds=1.0, change=Change())
    assert np.array_equal(read_clip(still), read_clip(clip))
    assert np.array_equal(clip_features(still, 80, 3000), log_mel(read_clip(clip), 80, 3000))


def test_the_shortest_clip_takes_every_change(tmp_path):
    soundfile.write(tmp_path / "a.flac", tone(seconds=0.1), RATE)
    short = Clip(str(tmp_path / "a.flac"), seconds=0.1, change=EVERYTHING)
    assert np.isfinite(clip_features(short, 80, 3000)).all() and clip_samples(short) // HOP == 11
