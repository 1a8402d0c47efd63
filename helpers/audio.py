"""Audio files: any format, rate and number of channels in; mono float32 at 16 kHz out.

PyAV (FFmpeg) decodes, channels are averaged, and soxr resamples ("HQ", what librosa uses too): up
to 7 kHz the log-mel bands are those of Essentia's loader to 2e-3.

A file goes through block by block: `stream_audio` hands these on, and holds as much of ten hours as
of ten minutes; `read_audio` puts them together, so that an hour is never in memory at its own rate.
Of its central part no more is decoded than that part, where the format allows.
"""

from __future__ import annotations

import errno
import math
import re
import stat
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import av
import numpy as np

from maest.helpers.audio_blocks import (
    MARGIN,
    AudioError,
    Meter,
    central,
    cut_central,
    frames_at_a_time,
    joined,
    regrouped,
    resampled,
)
from maest.helpers.audio_headers import as_pieces, chunk_bytes, mp3_seconds, ogg_streams
from maest.helpers.errors import InputError
from maest.helpers.mel_constants import SAMPLE_RATE
from maest.helpers.pieces import Pieces

# fmt: off
AUDIO_SUFFIXES = frozenset({
    ".wav", ".wave", ".bwf", ".w64", ".rf64", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".mp2",
    ".mp1", ".mpa", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".voc", ".sph", ".paf",
    ".8svx", ".m4a", ".m4b", ".m4r", ".m4v", ".mp4", ".mov", ".3gp", ".3g2", ".aac", ".wma", ".wmv",
    ".asf", ".ape", ".wv", ".mka", ".mkv", ".webm", ".weba", ".ac3", ".eac3", ".dts", ".thd",
    ".tta", ".tak", ".shn", ".mpc", ".dsf", ".dff", ".amr", ".awb", ".spx", ".ra", ".rm", ".oma",
    ".avi", ".flv", ".ogv", ".ogx", ".mpg", ".mpeg",
})
# fmt: on

# FFmpeg's names of formats whose headers tell the length; elsewhere it is an estimate.
_TELL_LENGTH = {"flac", "au", "caf", "tta", "wv", "nistsphere", "ogg", "mov,mp4,m4a,3gp,3g2,mj2"}
# Those in which a position can be found to the sample.
_SEEKABLE = {"wav", "w64", "aiff", "au", "flac", "mp3", "mov,mp4,m4a,3gp,3g2,mj2", "ogg", "caf"}
# Both may be missing: what encoders and taggers are at odds about.
_MISSING_SECONDS, _MISSING_SHARE = 0.5, 0.01
_LOUDEST = 16.0  # full scale is 1; a float mix may be above it, but not by 24 dB
_LOWEST_RATE = 2_000  # Hz
_TAG = re.compile(rb"ID3[\2-\4]\0|APETAGEX|LYRICSBEGIN")  # between files that were joined
_LARGEST_MP3_FRAME = 2_881  # bytes, with padding; what goes beyond was skipped
_ANEW = "Get the file again, or leave it out."
_DAMAGED = "Get the file again, or keep what can be decoded: ffmpeg -i FILE NEW.flac"


def read_audio(path: str | Path, seconds: float | None = None) -> np.ndarray:
    """Read an audio file as mono at 16 kHz.

    Args:
        path: the file.
        seconds: length of the central part to read; None, or more than there is, for all of it.

    Returns:
        float32 [samples], at least one, in the file's own scale (-1 to 1 for integer formats).
        A part is what the whole has at its centre.

    Raises:
        AudioError: no such file, no permission, a folder, no format that FFmpeg reads, audio that
            is missing in the middle or at the end, no audio, a sample rate below 2 kHz, too little
            for one sample at 16 kHz, NaN or infinite samples, or samples far above full scale.
    """
    return read_with_warnings(path, seconds)[0]


def read_with_warnings(
    path: str | Path, seconds: float | None = None
) -> tuple[np.ndarray, list[str]]:
    """What `read_audio` returns, and the ``warnings`` of `AudioStream` about it."""
    stream = stream_audio(path, seconds)
    return joined(stream), stream.warnings


class AudioStream:
    """An audio file as blocks of mono at 16 kHz: see `stream_audio`.

    Attributes:
        warnings: why results of it may mean nothing (`helpers.audio_blocks.sound_warnings`):
            complete once the last block has been read.
    """

    def __init__(self, path: Path, seconds: float | None = None) -> None:
        if seconds is not None and not 1 <= seconds * SAMPLE_RATE < math.inf:
            raise InputError(
                f"expected a positive length, found {seconds}",
                setting="seconds",
                hint="Give a number of seconds, or None for the whole file.",
            )
        self.warnings: list[str] = []
        self._blocks = self._read(path, seconds)

    def __iter__(self) -> Iterator[np.ndarray]:
        return self

    def __next__(self) -> np.ndarray:
        return next(self._blocks)

    def close(self) -> None:
        self._blocks.close()

    def _read(self, path: Path, seconds: float | None) -> Generator[np.ndarray]:
        meter, done = Meter(), 0
        try:
            # Closed here: the traceback of an error would keep a generator alive, its file open.
            with closing(_decoded(path, meter, seconds)) as blocks:
                for block in blocks:
                    _refuse_values(block, done / SAMPLE_RATE)
                    if len(block):
                        yield block
                        done += len(block)
            if not done:
                few = f"{meter.frames} samples are less than one at {SAMPLE_RATE} Hz"
                raise AudioError(
                    f"too short: {few}" if meter.frames else "no audio in it (0 samples)",
                    kind="empty",
                    hint=_ANEW,
                )
        except AudioError as error:
            error.path = path
            raise
        self.warnings += meter.warnings(done / SAMPLE_RATE)


def stream_audio(path: str | Path, seconds: float | None = None) -> AudioStream:
    """Read an audio file block by block, as mono at 16 kHz; memory does not grow with its length.

    The file is opened when the first block is asked for, and closed after the last, at an error, or
    by ``close()``.

    Args:
        path: the file.
        seconds: of the central part to read, which is one block; None for all.

    Returns:
        an iterator of float32 [samples], at least one sample and at most some 70,000 (4 s). Put
        together they are what ``read_audio(path)`` returns. After the last, its ``warnings`` say
        "silent", "channels cancel" or "0.1 s only" of a track that results can hardly mean much of.

    Raises:
        AudioError: as `read_audio` does, from the iterator, as soon as it is known: bytes that are
            missing at the end before the first block, where the header says how many there are;
            damage, NaN or infinite samples when they are reached.
    """
    return AudioStream(Path(path), seconds)


def _refuse_values(block: np.ndarray, start: float) -> None:
    finite = np.isfinite(block)
    if not finite.all():
        second = start + int(finite.argmin()) / SAMPLE_RATE
        raise AudioError(
            f"NaN or infinite samples at about second {second:.1f}",
            hint="Write the file again, without them.",
        )
    peak = max(block.max(initial=0), -block.min(initial=0))
    if peak > _LOUDEST:
        raise AudioError(
            f"samples of up to {peak:.3g}, where full scale is 1",
            hint="If these are floats on the scale of 16-bit integers, divide them by 32768 and "
            "write the file again.",
        )


# ---- decoding ------------------------------------------------------------------------------------


def _decoded(path: Path, meter: Meter, seconds: float | None) -> Generator[np.ndarray]:
    """All of a file block by block, or its central part as one; their values are not checked."""
    try:
        _refuse_special(path)
        with path.open("rb") as raw:
            streams, cut = ogg_streams(raw)
            if cut:
                raise AudioError(
                    "its end is missing: a page of the Ogg stream is cut off",
                    kind="corrupt",
                    hint=_DAMAGED,
                )
            files = [Pieces([(raw, *own) for own in ranges]) for ranges in streams]
            files = files or [as_pieces(raw)]
            blocks = (block for file in files for block in _whole(file, meter))
            if seconds is None:
                yield from blocks
                return
            part = None if len(files) > 1 else _centre(files[0], meter, seconds)
            yield cut_central(joined(blocks), seconds) if part is None else part
    except av.FFmpegError as error:
        raise _undecodable(error.strerror or str(error)) from None
    except OSError as error:
        gone = error.errno in (errno.ENOENT, errno.ELOOP)
        raise AudioError(
            "no such file, or a link that leads nowhere" if gone else str(error.strerror or error),
            kind="missing" if gone else "access",
            hint="Check the path." if gone else "Check the disk and the file's permissions.",
        ) from None


def _refuse_special(path: Path) -> None:
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):  # to open a pipe is to wait until somebody writes to it
        is_folder = stat.S_ISDIR(found.st_mode)
        kind = "a folder" if is_folder else "a pipe, a socket or a device"
        raise AudioError(f"it is {kind}, not a file", hint="Name an audio file.")
    if not found.st_size:
        raise AudioError("the file is empty (0 bytes)", kind="empty", hint=_ANEW)


def _undecodable(reason: str) -> AudioError:
    return AudioError(f"FFmpeg cannot decode it ({reason})", kind="corrupt", hint=_ANEW)


def _refuse_missing(found: float, promised: float, hole: float | None = None) -> None:
    """Raise AudioError if too much is missing; all in seconds, ``hole`` where it is."""
    missing = promised - found
    if missing > _MISSING_SECONDS and missing > _MISSING_SHARE * promised:
        where = "its end is missing" if hole is None else f"damaged at about second {hole:.1f}"
        what = f"{found:.1f} s of {promised:.1f} s could be decoded"
        raise AudioError(f"{where}: {what}", kind="corrupt", hint=_DAMAGED)


class _Sound:
    """The sound of an open file.

    Attributes:
        length: seconds, by the header or an estimate; 0 if neither tells.
        promised: seconds by the header; 0 if it does not tell.
        seconds: decoded so far.
        hole: seconds before the first piece that was not decoded; None as long as there is none.
        error: what FFmpeg said last.
    """

    def __init__(self, container: av.container.InputContainer, xing: float | None) -> None:
        streams = [stream for stream in container.streams.audio if stream.rate]
        if not streams:
            found = f"no audio in it (FFmpeg takes it for {container.format.name})"
            raise AudioError(found, kind="empty", hint=_ANEW)
        self.container, self.stream = container, streams[0]
        if self.stream.rate < _LOWEST_RATE:
            raise AudioError(
                f"a sample rate of {self.stream.rate} Hz",
                kind="unsupported",
                hint=f"Expected {_LOWEST_RATE} Hz or more: check the header.",
            )
        if self.stream.codec_context.name in ("flac", "wavpack", "tta"):  # better none than noise
            self.stream.codec_context.options = {"err_detect": "crccheck+explode"}
        self.tick = float(self.stream.time_base or 0)
        self.first = self.stream.start_time or 0
        self.length = (self.stream.duration or 0) * self.tick
        name, late = container.format.name, max(0, self.first) * self.tick
        self.promised = self.length if name in _TELL_LENGTH else 0.0
        if name == "mp3":
            self.promised = xing or 0.0
        elif name == "caf":  # of PCM, the length is that of what is there
            self.promised = max(self.length, self.stream.frames / self.stream.rate)
        elif name == "ogg":  # a recording may begin in the middle of a stream
            self.promised -= late
        elif name == "matroska,webm" and len(container.streams) == 1 and not self.length:
            self.promised = (container.duration or 0) / 1e6 - late  # with a length, an estimate
        self.seconds, self.error = 0.0, ""
        self.hole: float | None = None
        self._bytes = self._lost = 0
        self._largest = _LARGEST_MP3_FRAME if name == "mp3" else math.inf

    def frames(self) -> Iterator[av.AudioFrame]:
        """All that can be decoded from here to the end."""
        gap, damaged = b"", False  # bytes that no frame was made of
        last: av.Packet | None = None
        try:
            for packet in self.container.demux(self.stream):
                try:
                    frames = packet.decode()
                    damaged |= packet.size > self._largest
                except av.FFmpegError as error:
                    frames, damaged, self.error = [], True, error.strerror or str(error)
                if self.seconds and (damaged or not frames):
                    gap += (bytes(last)[-10:] if last else b"") + bytes(
                        packet
                    )  # a tag may begin in the one before
                for frame in frames:
                    lost = len(gap) if damaged and not _TAG.search(gap) else 0
                    jump = 0 if frame.pts is None else (frame.pts - self.first) * self.tick
                    if self.hole is None and (lost or jump - self.seconds > 0.2):
                        self.hole = self.seconds
                    self._lost += lost
                    gap, damaged = b"", False
                    yield frame
                    self.seconds += frame.samples / frame.sample_rate
                self._bytes += packet.size if frames else 0
                last = packet
        except av.FFmpegError as error:  # of the container, which goes no further
            self.error = error.strerror or str(error)
            if self.hole is None:
                self.hole = self.seconds

    def frames_from(self, second: float) -> Iterator[tuple[int, av.AudioFrame]]:
        """Frames from that second on, or from earlier; with each its position, in samples."""
        offset = self.first + int(max(0, second) / self.tick)
        self.container.seek(offset, stream=self.stream)
        for frame in self.frames():
            if frame.pts is None or frame.sample_rate != self.stream.rate:
                raise ValueError("no position")
            yield round((frame.pts - self.first) * self.tick * frame.sample_rate), frame

    def refuse_missing(self) -> None:
        """Raise AudioError if too much could not be decoded, in the middle or at the end."""
        if not self.seconds and self.error:
            raise _undecodable(self.error)
        whole = self.seconds * (1 + self._lost / max(1, self._bytes))
        _refuse_missing(self.seconds, max(self.promised, whole), self.hole)


@contextmanager
def _opened(file: Any) -> Iterator[_Sound]:
    """Open for FFmpeg; bytes that are missing at the end are refused where they are known."""
    xing, (there, missing) = mp3_seconds(file), chunk_bytes(file)
    file.seek(0)
    nothing_else = {"protocol_whitelist": "none"}  # no playlist opens other files or addresses
    with av.open(file, metadata_errors="replace", options=nothing_else) as container:
        sound = _Sound(container, xing)
        if missing and sound.stream.bit_rate:
            rate = sound.stream.bit_rate / 8
            _refuse_missing(there / rate, (there + missing) / rate)
        yield sound


def _whole(file: Any, meter: Meter) -> Iterator[np.ndarray]:
    with _opened(file) as sound:
        mono = ((frame.sample_rate, meter.mix(_channels(frame))) for frame in sound.frames())
        for rate, group in groupby(mono, itemgetter(0)):  # it may change midway
            blocks = regrouped((block for _, block in group), frames_at_a_time(rate))
            yield from resampled(blocks, rate)
        sound.refuse_missing()


def _centre(file: Any, meter: Meter, seconds: float) -> np.ndarray | None:
    """The central part; None if all has to be decoded to know where that is."""
    with _opened(file) as sound:
        rate = sound.stream.rate
        if sound.container.format.name not in _SEEKABLE or sound.length <= seconds:
            return None
        try:
            ((last, frame),) = deque(sound.frames_from(sound.length - 1), maxlen=1)
            frames = last + frame.samples
            _refuse_missing(frames / rate, sound.promised)
            part = central(frames, rate, seconds)
            blocks, end = [], None
            for position, frame in sound.frames_from(part.first / rate - MARGIN):
                if position != end and (end is not None or position > part.first):
                    return None
                block, end = _channels(frame), position + frame.samples
                block = block[max(0, part.first - position) : part.last - position]
                blocks.append(meter.mix(block))
                if end >= part.last:
                    break
        except (av.FFmpegError, ValueError):
            return None
        samples = joined(resampled(regrouped(blocks, frames_at_a_time(rate)), rate))
        kept = samples[part.skip : part.skip + part.keep]
        return kept if len(kept) == part.keep else None


def _channels(frame: av.AudioFrame) -> np.ndarray:
    """float32 [samples, channels]; integers become -1 to 1."""
    values = frame.to_ndarray()
    values = values.T if frame.format.is_planar else values.reshape(frame.samples, -1)
    if values.dtype == np.uint8:
        return (values.astype(np.float32) - 128) / 128
    if values.dtype.kind == "i":
        return values.astype(np.float32) * np.float32(2.0 ** (1 - 8 * values.itemsize))
    return values.astype(np.float32, copy=False)
