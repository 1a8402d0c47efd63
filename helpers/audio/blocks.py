"""Blocks of float32 waveforms: mixed to mono, resampled to 16 kHz, and their doubtful sound."""

from collections.abc import Iterable, Iterator

import numpy as np
import soxr

from maest.helpers.audio.constants import HOP_LENGTH, SAMPLE_RATE
from maest.helpers.errors import InputError

# Frames to resample at once, which stay in the processor's cache. Below 16 kHz fewer: as many as
# give this number of samples at 16 kHz.
_BLOCK = 65_536
_SILENCE = 2**-16  # RMS, full scale 1: half a step of 16-bit samples
_SILENT_MEL = 1e-5  # of log10(1 + 10000 x): white noise at that RMS
_CANCELLED = 0.01  # of the channels' mean energy
# What to do about a file with no audio that can be decoded, and about one with some
ANEW = "Get the file again, or leave it out."
DAMAGED = "Get the file again, or keep what can be decoded (ffmpeg -i FILE NEW.flac)."


class AudioError(InputError):
    """An audio file cannot be read; the message gives the reason without the file's name."""


def joined(blocks: Iterable[np.ndarray]) -> np.ndarray:
    """Concatenate blocks; none give an empty array."""
    return np.concatenate([np.zeros(0, np.float32), *blocks])


class Meter:
    """Mixes blocks of channels to mono, and sums the energy of both."""

    def __init__(self) -> None:
        self.channels = self.mono = 0.0  # sums of squares; of the channels their mean
        self.frames = 0  # mixed
        self.samples = 0  # of the result at 16 kHz, counted by its reader

    def mix(self, block: np.ndarray) -> np.ndarray:
        """Average the channels: [frames, channels] → [frames]. (`mean` is 20 times slower.)"""
        count = block.shape[1]
        with np.errstate(all="ignore"):  # inf and NaN are refused later
            mono = block[:, 0].copy()
            for channel in range(1, count):
                mono += block[:, channel]
            mono *= np.float32(1 / count)
            self.mono += float(np.dot(mono, mono))
            self.channels += float(np.vdot(block, block)) / count
        self.frames += len(mono)
        return mono

    def warnings(self) -> list[str]:
        """Return `sound_warnings` of all blocks so far."""
        silent = self.channels < self.frames * _SILENCE**2
        cancel = self.mono < _CANCELLED * self.channels
        return sound_warnings(self.samples / SAMPLE_RATE, silent, cancel)


def sound_warnings(seconds: float, silent: bool, cancel: bool = False) -> list[str]:
    """Return why results of a track may mean nothing: texts for the ``warnings`` beside them.

    They are any of "silent", "channels cancel" (in their mean) and, below one second, such as
    "0.1 s only", in this order.
    """
    warnings = ["silent"] if silent else ["channels cancel"] if cancel else []
    return [*warnings, f"{min(round(seconds, 2), 0.99):g} s only"] if seconds < 1 else warnings


def mel_warnings(frames: int, peak: float) -> list[str]:
    """Return `sound_warnings` of a log-mel file, from its frames and its largest value."""
    return sound_warnings((frames - 1) * HOP_LENGTH / SAMPLE_RATE, peak < _SILENT_MEL)


def resampled(blocks: Iterable[np.ndarray], rate: int) -> Iterator[np.ndarray]:
    """Resample mono float32 blocks of any lengths to 16 kHz; some may come out empty."""
    stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
    size, pending, length = min(_BLOCK, _BLOCK * rate // SAMPLE_RATE), [], 0
    for block in blocks:
        pending.append(block)
        length += len(block)
        if length >= size:
            yield stream.resample_chunk(joined(pending))
            pending, length = [], 0
    yield stream.resample_chunk(joined(pending), last=True)
