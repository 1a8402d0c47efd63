"""Lossy codecs in memory: alignment, length, loss by bit rate, repeats."""

import numpy as np
import pytest
from music import melody

from maest.helpers.audio.codecs import CODECS, round_trip

BIT_RATES = {"mp3": (32_000, 128_000), "aac": (24_000, 96_000), "opus": (12_000, 64_000)}


def lag(a: np.ndarray, b: np.ndarray) -> int:
    """Samples by which b is later than a: the peak of their cross-correlation."""
    size = 2 * len(a)
    products = np.fft.irfft(np.fft.rfft(a, size).conj() * np.fft.rfft(b, size))
    return int((products.argmax() + len(a)) % size - len(a))


def snr(sound: np.ndarray, back: np.ndarray) -> float:
    return float(10 * np.log10((sound**2).sum() / ((sound - back) ** 2).sum()))


@pytest.mark.parametrize("codec", CODECS)
def test_the_sound_comes_back_aligned_as_long_and_better_at_a_higher_bit_rate(codec):
    sound = melody(3.21, 0)
    low, high = (round_trip(sound, codec, rate) for rate in BIT_RATES[codec])
    for back in (low, high):
        assert back.dtype == np.float32
        assert back.shape == sound.shape
        assert lag(sound, back) == 0
    assert 3 < snr(sound, low) < snr(sound, high) < 60
    assert np.array_equal(round_trip(sound, codec, BIT_RATES[codec][0]), low)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("samples", [1, 100, 5_000])
def test_the_shortest_sounds_and_silence_come_back(codec, samples):
    assert round_trip(melody(1, 0)[:samples], codec, 64_000).shape == (samples,)
    silence = round_trip(np.zeros(samples, np.float32), codec, 64_000)
    assert silence.shape == (samples,)
    assert np.abs(silence).max() < 1e-3
