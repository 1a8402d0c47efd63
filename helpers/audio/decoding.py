"""Decoding of an open file with FFmpeg, and a check that nothing is missing."""

import math
import re
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np

from maest.helpers.audio.blocks import ANEW, DAMAGED, AudioError, Meter, joined, resampled
from maest.helpers.audio.constants import SAMPLE_RATE
from maest.helpers.audio.headers import chunk_bytes, mp3_seconds, sound_pieces

# FFmpeg's names of formats whose headers tell the length; elsewhere it is an estimate.
_TELL_LENGTH = {"flac", "au", "caf", "tta", "wv", "nistsphere", "ogg", "mov,mp4,m4a,3gp,3g2,mj2"}
# Formats in which FFmpeg finds a position to the sample.
_SEEKABLE = {"wav", "w64", "aiff", "au", "flac", "mp3", "mov,mp4,m4a,3gp,3g2,mj2", "ogg", "caf"}
# The larger of both may be missing: encoders and taggers disagree by as much.
_MISSING_SECONDS, _MISSING_SHARE = 0.5, 0.01
# Decoded on both sides of a part and dropped again: longer than a resampler's filter, and than
# the start that decoders of compressed formats get wrong.
_SPARE = 0.25  # seconds
_LOWEST_RATE = 2_000  # Hz
_TAG = re.compile(rb"ID3[\2-\4]\0|APETAGEX|LYRICSBEGIN")  # between files that were joined
_LARGEST_MP3_FRAME = 2_881  # bytes, with padding; a larger packet holds skipped ones
_JUMP = 0.2  # seconds; a larger step between the times of two frames is a hole


def undecodable(error: av.FFmpegError, path: Path | None = None) -> AudioError:
    what = f"FFmpeg cannot decode it ({error.strerror or error})"
    return AudioError(what, kind="corrupt", hint=ANEW, path=path)


def _refuse_missing(decoded: float, promised: float, hole: float | None = None) -> None:
    """Raise AudioError if too much is missing; all in seconds, ``hole`` the place of a gap."""
    if promised - decoded > max(_MISSING_SECONDS, _MISSING_SHARE * promised):
        where = "its end is missing" if hole is None else f"damaged at about second {hole:.1f}"
        what = f"{decoded:.1f} s of {promised:.1f} s could be decoded"
        raise AudioError(f"{where}: {what}", kind="corrupt", hint=DAMAGED)


class Sound:
    """The first audio stream of an open file."""

    def __init__(self, container: av.container.InputContainer, xing: float) -> None:
        name = container.format.name
        streams = [stream for stream in container.streams.audio if stream.rate]
        if not streams:
            what = f"no audio in it (FFmpeg reads it as {name})"
            raise AudioError(what, kind="empty", hint=ANEW)
        self.container, self.stream, self.name = container, streams[0], name
        self.rate = self.stream.rate
        if self.rate < _LOWEST_RATE:
            hint = f"Expected {_LOWEST_RATE} Hz or more: check the header."
            raise AudioError(f"a sample rate of {self.rate} Hz", kind="unsupported", hint=hint)
        if self.stream.codec_context.name in ("flac", "wavpack", "tta"):  # better none than noise
            self.stream.codec_context.options = {"err_detect": "crccheck+explode"}
        self.tick = float(self.stream.time_base or 0)
        self.first = self.stream.start_time or 0
        # Seconds by the header or an estimate, and by the header alone; 0 if unknown
        self.length = (self.stream.duration or 0) * self.tick
        late = max(0, self.first) * self.tick
        self.promised = self.length if name in _TELL_LENGTH else xing if name == "mp3" else 0.0
        if name == "caf":  # the length of PCM covers only the bytes present
            self.promised = max(self.length, self.stream.frames / self.rate)
        elif name == "ogg":  # a recording may begin in the middle of a stream
            self.promised -= late
        elif name == "matroska,webm" and len(container.streams) == 1 and not self.length:
            self.promised = (container.duration or 0) / 1e6 - late  # with a length, an estimate
        self.seconds = 0.0  # decoded so far
        self.hole: float | None = None  # seconds before the first piece that was not decoded
        self.error: AudioError | None = None  # the last one
        self._bytes = self._lost = 0
        self._largest = _LARGEST_MP3_FRAME if name == "mp3" else math.inf

    def frames(self) -> Iterator[av.AudioFrame]:
        """Yield all frames that can be decoded from here to the end."""
        gap, damaged, before = b"", False, b""  # gap: bytes that gave no frame
        try:
            for packet in self.container.demux(self.stream):
                try:
                    frames = packet.decode()
                    damaged |= packet.size > self._largest
                except av.FFmpegError as error:
                    frames, damaged, self.error = [], True, undecodable(error)
                if self.seconds and (damaged or not frames):
                    gap += before + bytes(packet)  # a tag may begin in the packet before
                for frame in frames:
                    lost = len(gap) if damaged and not _TAG.search(gap) else 0
                    time = 0.0 if frame.pts is None else (frame.pts - self.first) * self.tick
                    if self.hole is None and (lost or time - self.seconds > _JUMP):
                        self.hole = self.seconds
                    self._lost += lost
                    gap, damaged = b"", False
                    yield frame
                    self.seconds += frame.samples / frame.sample_rate
                self._bytes += packet.size if frames else 0
                before = bytes(packet)[-10:]
        except av.FFmpegError as error:  # of the container: demuxing ends
            self.error = undecodable(error)
            if self.hole is None:
                self.hole = self.seconds

    def frames_from(self, second: float) -> Iterator[tuple[int, av.AudioFrame]]:
        """Yield (position in samples, frame) from ``second`` or earlier; ValueError if unknown."""
        offset = self.first + int(max(0, second) / self.tick)
        self.container.seek(offset, stream=self.stream)
        for frame in self.frames():
            if frame.pts is None or frame.sample_rate != self.rate:
                raise ValueError("no position")
            yield round((frame.pts - self.first) * self.tick * self.rate), frame

    def refuse_missing(self) -> None:
        """Raise AudioError if too much could not be decoded, in the middle or at the end."""
        if not self.seconds and self.error:
            raise self.error
        expected = self.seconds * (1 + self._lost / max(1, self._bytes))
        _refuse_missing(self.seconds, max(self.promised, expected), self.hole)


@contextmanager
def _opened(file: Any) -> Iterator[Sound]:
    """Open a file for FFmpeg; raise AudioError if its header shows that bytes are missing."""
    xing, (present, missing) = mp3_seconds(file), chunk_bytes(file)
    file.seek(0)
    nothing_else = {"protocol_whitelist": "none"}  # no playlist opens other files or addresses
    with av.open(file, metadata_errors="replace", options=nothing_else) as container:
        sound = Sound(container, xing)
        if missing and sound.stream.bit_rate:
            rate = sound.stream.bit_rate / 8
            _refuse_missing(present / rate, (present + missing) / rate)
        yield sound


def decoded(file: BinaryIO, meter: Meter, seconds: float | None) -> Generator[np.ndarray]:
    """Yield the sound, mixed by ``meter``, in blocks at 16 kHz; or its central part in one block.

    Blocks may be empty. Raises AudioError or av.FFmpegError if the sound cannot be decoded, or too
    much of it is missing.
    """
    if seconds is not None:
        keep = round(seconds * SAMPLE_RATE)
        centre = decoded_parts(file, meter, seconds, lambda all: [_middle(all, keep)])
        if centre is not None:
            yield from centre[1]
            return
    blocks = (block for piece in sound_pieces(file) for block in _whole(piece, meter))
    if seconds is None:
        yield from blocks
    else:  # the middle, or all of a shorter one
        samples = joined(blocks)
        yield samples[slice(*_middle(len(samples), min(keep, len(samples))))]


def _whole(piece: Any, meter: Meter) -> Iterator[np.ndarray]:
    with _opened(piece) as sound:
        mono = ((frame.sample_rate, meter.mix(_channels(frame))) for frame in sound.frames())
        for rate, group in groupby(mono, itemgetter(0)):  # the rate may change midway
            yield from resampled((block for _, block in group), rate)
        sound.refuse_missing()


def decoded_parts(
    file: BinaryIO,
    meter: Meter,
    seconds: float,
    choose: Callable[[int], list[tuple[int, int]]],
) -> tuple[int, list[np.ndarray]] | None:
    """Decode parts of a sound that is longer than ``seconds``, and nothing between them.

    ``choose`` takes the number of samples at 16 kHz, and returns the first of each part and one
    past its last. Returns that number and the parts, sample for sample as in the whole; None where
    only decoding the whole file finds them, or what is wrong with it.
    """
    piece, *others = sound_pieces(file)
    if others:
        return None
    with _opened(piece) as sound:
        if sound.name not in _SEEKABLE or sound.length <= seconds:
            return None
        try:
            ((last, frame),) = deque(sound.frames_from(sound.length - 1), maxlen=1)
            frames = last + frame.samples
            _refuse_missing(frames / sound.rate, sound.promised)
            samples = (2 * frames * SAMPLE_RATE + sound.rate) // (2 * sound.rate)  # soxr rounds
            return samples, [_part(sound, meter, frames, *part) for part in choose(samples)]
        except (av.FFmpegError, ValueError):
            return None


def _part(sound: Sound, meter: Meter, frames: int, start: int, stop: int) -> np.ndarray:
    """Return samples from ``start`` to ``stop`` at 16 kHz; ValueError if they are not found."""
    first, behind, kept = _located(frames, sound.rate, start, stop)
    blocks, end = [], None
    for position, frame in sound.frames_from(first / sound.rate - _SPARE):
        if position != end and (end is not None or position > first):
            raise ValueError("a hole")
        end = position + frame.samples
        block = _channels(frame)[max(0, first - position) : behind - position]
        blocks.append(meter.mix(block))
        if end >= behind:
            break
    part = joined(resampled(blocks, sound.rate))[kept]
    if len(part) != stop - start:
        raise ValueError("an early end")
    return part


def _located(frames: int, rate: int, start: int, stop: int) -> tuple[int, int, slice]:
    """Locate a part: first frame to decode, end frame (exclusive), slice at 16 kHz.

    The first frame coincides with a sample at 16 kHz, so that resampling the part gives the very
    samples that resampling the whole gives there.
    """
    divisor = math.gcd(rate, SAMPLE_RATE)
    step_in, step_out = rate // divisor, SAMPLE_RATE // divisor
    margin = math.ceil(_SPARE * rate)
    step = max(0, start // step_out - math.ceil(margin / step_in))
    last = min(frames, math.ceil(stop * rate / SAMPLE_RATE) + margin)
    skip = start - step * step_out
    return step * step_in, last, slice(skip, skip + stop - start)


def _middle(samples: int, keep: int) -> tuple[int, int]:
    start = (samples - keep) // 2
    return start, start + keep


def _channels(frame: av.AudioFrame) -> np.ndarray:
    """Return float32 [samples, channels]; integers are scaled to -1 … 1."""
    values = frame.to_ndarray()
    values = values.T if frame.format.is_planar else values.reshape(frame.samples, -1)
    if values.dtype == np.uint8:
        return (values.astype(np.float32) - 128) / 128
    if values.dtype.kind == "i":
        return values.astype(np.float32) * np.float32(2.0 ** (1 - 8 * values.itemsize))
    return values.astype(np.float32, copy=False)
