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
import stat
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path

import av
import numpy as np

from maest.helpers.audio_blocks import AudioError, Meter, cut_central, joined
from maest.helpers.audio_headers import sound_pieces
from maest.helpers.decoding import ANEW, centre, undecodable, whole
from maest.helpers.errors import InputError
from maest.helpers.mel_constants import SAMPLE_RATE

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

_LOUDEST = 16.0  # full scale is 1; a float mix may be above it, but not by 24 dB


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
    return joined(stream_audio(path, seconds))


def stream_audio(path: str | Path, seconds: float | None = None) -> AudioStream:
    """Read an audio file block by block, as mono at 16 kHz; memory does not grow with its length.

    The file is opened when the first block is asked for, and closed after the last, at an error, or
    by ``close()``. With ``seconds``, the central part is one block.

    Returns:
        an iterator of float32 [samples], at least one sample and at most some 70,000 (4 s). Put
        together they are what ``read_audio(path)`` returns.

    Raises:
        AudioError: as `read_audio` does, from the iterator, as soon as it is known: bytes that are
            missing at the end before the first block, where the header says how many there are;
            damage, NaN or infinite samples when they are reached.
    """
    return AudioStream(Path(path), seconds)


class AudioStream:
    """What `stream_audio` returns.

    Attributes:
        warnings: why results of it may mean nothing (`helpers.audio_blocks.sound_warnings`):
            complete once the last block has been read.
    """

    def __init__(self, path: Path, seconds: float | None) -> None:
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
                what = f"too short: {few}" if meter.frames else "no audio in it (0 samples)"
                raise AudioError(what, kind="empty", hint=ANEW)
        except AudioError as error:
            error.path = path
            raise
        self.warnings += meter.warnings(done / SAMPLE_RATE)


def _refuse_values(block: np.ndarray, start: float) -> None:
    finite = np.isfinite(block)
    if not finite.all():
        second = start + int(finite.argmin()) / SAMPLE_RATE
        what, hint = f"NaN or infinite samples at about second {second:.1f}", "without them."
        raise AudioError(what, hint=f"Write the file again, {hint}")
    peak = max(block.max(initial=0), -block.min(initial=0))
    if peak > _LOUDEST:
        raise AudioError(
            f"samples of up to {peak:.3g}, where full scale is 1",
            hint="If these are floats on the scale of 16-bit integers, divide them by 32768 and "
            "write the file again.",
        )


def _decoded(path: Path, meter: Meter, seconds: float | None) -> Generator[np.ndarray]:
    """All of a file block by block, or its central part as one; their values are not checked."""
    try:
        _refuse_special(path)
        with path.open("rb") as raw:
            sounds = sound_pieces(raw)
            blocks = (block for sound in sounds for block in whole(sound, meter))
            if seconds is None:
                yield from blocks
                return
            part = None if len(sounds) > 1 else centre(sounds[0], meter, seconds)
            yield cut_central(joined(blocks), seconds) if part is None else part
    except av.FFmpegError as error:
        raise undecodable(error.strerror or str(error)) from None
    except OSError as error:
        gone = error.errno in (errno.ENOENT, errno.ELOOP)
        raise AudioError(
            "no such file, or a link that leads nowhere" if gone else str(error.strerror or error),
            kind="missing" if gone else "access",
            hint="Check the path." if gone else "Check the disk and the file's permissions.",
        ) from None


def _refuse_special(path: Path) -> None:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # to open a pipe is to wait until somebody writes to it
        is_folder = stat.S_ISDIR(status.st_mode)
        kind = "a folder" if is_folder else "a pipe, a socket or a device"
        raise AudioError(f"it is {kind}, not a file", hint="Name an audio file.")
    if not status.st_size:
        raise AudioError("the file is empty (0 bytes)", kind="empty", hint=ANEW)
