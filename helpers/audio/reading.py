"""Audio files of any format, rate and number of channels, read as mono float32 at 16 kHz.

PyAV (FFmpeg) decodes block by block, channels are averaged and soxr resamples ("HQ", as in
librosa). Up to 7 kHz the log-mel bands match those of Essentia's loader to 2e-3.
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

from maest.helpers.audio.blocks import AudioError, Meter, cut_central, joined
from maest.helpers.audio.constants import SAMPLE_RATE
from maest.helpers.audio.decoding import ANEW, centre, undecodable, whole
from maest.helpers.audio.headers import sound_pieces
from maest.helpers.errors import InputError

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
    """Read an audio file as mono at 16 kHz: float32 [samples], at least one.

    Samples keep the file's scale (-1 to 1 for integer formats). ``seconds`` selects the central
    part (all of a shorter file), sample for sample as in the whole; where the format allows, only
    that part is decoded.

    Raises AudioError for a missing or unreadable file, a folder, a format that FFmpeg cannot read,
    no audio, audio missing in the middle or at the end, a rate below 2 kHz, less than one sample at
    16 kHz, NaN or infinite samples, or samples above 16 times full scale.
    """
    return joined(stream_audio(path, seconds))


def stream_audio(path: str | Path, seconds: float | None = None) -> AudioStream:
    """Stream an audio file as mono 16 kHz blocks; memory does not grow with its length.

    Yields float32 [samples], 1 to about 70,000 (4 s); joined, they are what `read_audio` returns.
    With ``seconds``, the central part is one block. The file opens at the first block, and closes
    after the last, at an error, or by ``close()``. The iterator raises AudioError as `read_audio`
    does: before the first block if the header shows that the end is missing, else at the fault.
    """
    return AudioStream(Path(path), seconds)


class AudioStream:
    """The iterator that `stream_audio` returns."""

    def __init__(self, path: Path, seconds: float | None) -> None:
        if seconds is not None and not 1 <= seconds * SAMPLE_RATE < math.inf:
            message = f"expected a positive length, found {seconds}"
            hint = "Give a number of seconds, or None for the whole file."
            raise InputError(message, setting="seconds", hint=hint)
        self.warnings: list[str] = []  # `sound_warnings`, complete after the last block
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
            # An error's traceback would keep the generator alive and its file open.
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
        what = f"NaN or infinite samples at about second {second:.1f}"
        raise AudioError(what, hint="Write the file again, without them.")
    peak = max(block.max(initial=0), -block.min(initial=0))
    if peak > _LOUDEST:
        hint = "If these are floats on the scale of 16-bit integers, divide them by 32768 and "
        hint += "write the file again."
        raise AudioError(f"samples of up to {peak:.3g}, where full scale is 1", hint=hint)


def _decoded(path: Path, meter: Meter, seconds: float | None) -> Generator[np.ndarray]:
    """Yield a file block by block, or its central part at once; sample values are unchecked."""
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
        if error.errno in (errno.ENOENT, errno.ELOOP):
            what = "no such file, or a link that leads nowhere"
            raise AudioError(what, kind="missing", hint="Check the path.") from None
        what, hint = str(error.strerror or error), "Check the disk and the file's permissions."
        raise AudioError(what, kind="access", hint=hint) from None


def _refuse_special(path: Path) -> None:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # opening a pipe waits for a writer
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, a socket or a device"
        raise AudioError(f"it is {kind}, not a file", hint="Name an audio file.")
    if not status.st_size:
        raise AudioError("the file is empty (0 bytes)", kind="empty", hint=ANEW)
