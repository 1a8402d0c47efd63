"""Blocks of a waveform: mixed to mono, resampled to 16 kHz, and a part cut out of the whole.

What `helpers.audio` does with what a library has decoded. Waveforms are float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
import soxr

from maest.helpers.errors import InputError
from maest.helpers.mel_constants import HOP_LENGTH, SAMPLE_RATE

# Frames decoded at a time, so that they stay in the processor's cache; where the rate is below
# 16 kHz, fewer: as many as make so many samples at 16 kHz.
_BLOCK = 65_536
_SILENCE = 2**-16  # RMS, full scale 1: half a step of 16-bit samples
_SILENT_MEL = 1e-5  # of log10(1 + 10000 x): white noise at that RMS
_CANCELLED = 0.01  # of the channels' mean energy
# Decoded on both sides of a part and dropped again: more than a resampler's filter is long, and
# than what a decoder of a compressed format needs to get into its stride.
MARGIN = 0.25  # seconds
DAMAGED = "Get the file again, or keep what can be decoded: ffmpeg -i FILE NEW.flac"


class AudioError(InputError):
    """An audio file that cannot be read; the message is the reason, without the file's name."""


def joined(blocks: Iterable[np.ndarray]) -> np.ndarray:
    """All blocks as one; of none, no samples."""
    pieces = list(blocks)
    return np.concatenate(pieces) if pieces else np.zeros(0, np.float32)


def central(frames: int, rate: int, seconds: float) -> tuple[int, int, slice]:
    """The central part of a file: the first frame to decode, the one behind the last, and what to
    keep of them at 16 kHz.

    It starts where both rates have a sample at the same moment, so that resampling the part gives
    the very samples that resampling the whole gives there.
    """
    divisor = math.gcd(rate, SAMPLE_RATE)
    step_in, step_out = rate // divisor, SAMPLE_RATE // divisor
    keep = round(seconds * SAMPLE_RATE)
    all_of_it = (2 * frames * SAMPLE_RATE + rate) // (2 * rate)  # soxr rounds to the nearest
    start = (all_of_it - keep) // 2
    margin = math.ceil(MARGIN * rate)
    step = max(0, start // step_out - math.ceil(margin / step_in))
    first = step * step_in
    last = min(frames, math.ceil((start + keep) * rate / SAMPLE_RATE) + margin)
    skip = start - step * step_out
    return first, last, slice(skip, skip + keep)


def cut_central(samples: np.ndarray, seconds: float) -> np.ndarray:
    """So many seconds from the middle of a waveform at 16 kHz; all of it, if that is less."""
    keep = round(seconds * SAMPLE_RATE)
    start = max(0, len(samples) - keep) // 2
    return samples[start : start + keep]


class Meter:
    """Mixes blocks of channels to mono, and adds up the energy of both."""

    def __init__(self) -> None:
        self.channels = self.mono = 0.0  # sums of squares; of the channels their mean
        self.frames = 0

    def mix(self, block: np.ndarray) -> np.ndarray:
        """[frames, channels] → [frames], the mean of the channels. (`mean` is 20 times slower.)"""
        count = block.shape[1]
        with np.errstate(all="ignore"):  # inf and NaN are refused later, in words
            mono = block[:, 0].copy()
            for channel in range(1, count):
                mono += block[:, channel]
            mono *= np.float32(1 / count)
            self.mono += float(np.dot(mono, mono))
            self.channels += float(np.vdot(block, block)) / count
        self.frames += len(mono)
        return mono

    def warnings(self, seconds: float) -> list[str]:
        """What `sound_warnings` says of all blocks so far."""
        silent = self.channels < self.frames * _SILENCE**2
        return sound_warnings(seconds, silent, self.mono < _CANCELLED * self.channels)


def sound_warnings(seconds: float, silent: bool, cancel: bool = False) -> list[str]:
    """Why results of a track may mean nothing: texts for the ``warnings`` beside them.

    Args:
        seconds: length of the track.
        silent: whether there is no sound in it.
        cancel: whether its channels cancel each other when they are averaged.

    Returns:
        any of "silent", "channels cancel", "0.1 s only" (of less than a second), in this order.
    """
    found = ["silent"] if silent else ["channels cancel"] if cancel else []
    return [*found, f"{min(round(seconds, 2), 0.99):g} s only"] if seconds < 1 else found


def mel_warnings(frames: int, peak: float) -> list[str]:
    """`sound_warnings` of a log-mel file: its number of frames, and its largest value."""
    return sound_warnings((frames - 1) * HOP_LENGTH / SAMPLE_RATE, peak < _SILENT_MEL)


def resampled(blocks: Iterable[np.ndarray], rate: int) -> Iterator[np.ndarray]:
    """Mono float32 blocks of any lengths at some rate → the same at 16 kHz; some may be empty."""
    blocks = regrouped(blocks, max(1, min(_BLOCK, _BLOCK * rate // SAMPLE_RATE)))
    if rate == SAMPLE_RATE:
        yield from blocks
        return
    stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
    for block in blocks:
        yield stream.resample_chunk(block)
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


def regrouped(blocks: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The same samples in blocks of ``size``; the last may be shorter."""
    held, length = [], 0
    for block in blocks:
        held.append(block)
        length += len(block)
        if length >= size:
            piece = np.concatenate(held)
            end = length - length % size
            yield from np.split(piece[:end], range(size, end, size))
            held, length = [piece[end:]], length - end
    if length:
        yield np.concatenate(held)
