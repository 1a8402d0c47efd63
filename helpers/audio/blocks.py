"""Blocks of float32 waveforms: mix to mono, resample to 16 kHz, cut out the central part."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
import soxr

from maest.helpers.audio.constants import HOP_LENGTH, SAMPLE_RATE
from maest.helpers.errors import InputError

# Frames of a block, which stays in the processor's cache. Below 16 kHz a block has fewer frames:
# as many as give this number of samples at 16 kHz.
_BLOCK = 65_536
_SILENCE = 2**-16  # RMS, full scale 1: half a step of 16-bit samples
_SILENT_MEL = 1e-5  # of log10(1 + 10000 x): white noise at that RMS
_CANCELLED = 0.01  # of the channels' mean energy
# Decoded on both sides of a part and dropped again: longer than a resampler's filter, and than
# the start that decoders of compressed formats get wrong.
SPARE = 0.25  # seconds
DAMAGED = "Get the file again, or keep what can be decoded: ffmpeg -i FILE NEW.flac"


class AudioError(InputError):
    """An audio file cannot be read; the message gives the reason without the file's name."""


def joined(blocks: Iterable[np.ndarray]) -> np.ndarray:
    """Concatenate blocks; none give an empty array."""
    pieces = list(blocks)
    return np.concatenate(pieces) if pieces else np.zeros(0, np.float32)


def central(frames: int, rate: int, seconds: float) -> tuple[int, int, slice]:
    """Locate the central part: first frame to decode, end frame (exclusive), slice at 16 kHz.

    The first frame coincides with a sample at 16 kHz, so that resampling the part gives the very
    samples that resampling the whole gives there.
    """
    divisor = math.gcd(rate, SAMPLE_RATE)
    step_in, step_out = rate // divisor, SAMPLE_RATE // divisor
    keep = round(seconds * SAMPLE_RATE)
    all_of_it = (2 * frames * SAMPLE_RATE + rate) // (2 * rate)  # soxr rounds to the nearest
    start = (all_of_it - keep) // 2
    margin = math.ceil(SPARE * rate)
    step = max(0, start // step_out - math.ceil(margin / step_in))
    first = step * step_in
    last = min(frames, math.ceil((start + keep) * rate / SAMPLE_RATE) + margin)
    skip = start - step * step_out
    return first, last, slice(skip, skip + keep)


def cut_central(samples: np.ndarray, seconds: float) -> np.ndarray:
    """Return the middle ``seconds`` of a waveform at 16 kHz, or all of a shorter one."""
    keep = round(seconds * SAMPLE_RATE)
    start = max(0, len(samples) - keep) // 2
    return samples[start : start + keep]


class Meter:
    """Mixes blocks of channels to mono, and sums the energy of both."""

    def __init__(self) -> None:
        self.channels = self.mono = 0.0  # sums of squares; of the channels their mean
        self.frames = 0

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

    def warnings(self, seconds: float) -> list[str]:
        """Return `sound_warnings` of all blocks so far."""
        silent = self.channels < self.frames * _SILENCE**2
        return sound_warnings(seconds, silent, self.mono < _CANCELLED * self.channels)


def sound_warnings(seconds: float, silent: bool, cancel: bool = False) -> list[str]:
    """Return why results of a track may mean nothing: texts for the ``warnings`` beside them.

    They are any of "silent", "channels cancel" (in their mean) and, below one second, such as
    "0.1 s only", in this order.
    """
    found = ["silent"] if silent else ["channels cancel"] if cancel else []
    return [*found, f"{min(round(seconds, 2), 0.99):g} s only"] if seconds < 1 else found


def mel_warnings(frames: int, peak: float) -> list[str]:
    """Return `sound_warnings` of a log-mel file, from its frames and its largest value."""
    return sound_warnings((frames - 1) * HOP_LENGTH / SAMPLE_RATE, peak < _SILENT_MEL)


def resampled(blocks: Iterable[np.ndarray], rate: int) -> Iterator[np.ndarray]:
    """Resample mono float32 blocks of any lengths to 16 kHz; some may come out empty."""
    blocks = regrouped(blocks, max(1, min(_BLOCK, _BLOCK * rate // SAMPLE_RATE)))
    if rate == SAMPLE_RATE:
        yield from blocks
        return
    stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
    for block in blocks:
        yield stream.resample_chunk(block)
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


def regrouped(blocks: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Yield the same samples in blocks of ``size``; the last may be shorter."""
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
