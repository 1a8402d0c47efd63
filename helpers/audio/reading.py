"""Audio files of any format, rate and number of channels, read as mono float32 at 16 kHz.

PyAV (FFmpeg) decodes block by block, channels are averaged and soxr resamples ("HQ", as in
librosa). Up to 7 kHz the log-mel bands match those of Essentia's loader to 2e-3.
"""

import errno
import math
import stat
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np

from maest.helpers.audio.blocks import ANEW, AudioError, Meter, joined
from maest.helpers.audio.constants import SAMPLE_RATE
from maest.helpers.audio.decoding import decoded, decoded_parts, undecodable
from maest.helpers.errors import InputError, Kind

_SUFFIXES = (
    ".wav .wave .bwf .w64 .rf64 .flac .ogg .oga .opus .mp3 .mp2 .mp1 .mpa .aif .aiff .aifc .au "
    ".snd .caf .voc .sph .paf .8svx .m4a .m4b .m4r .m4v .mp4 .mov .3gp .3g2 .aac .wma .wmv .asf "
    ".ape .wv .mka .mkv .webm .weba .ac3 .eac3 .dts .thd .tta .tak .shn .mpc .dsf .dff .amr .awb "
    ".spx .ra .rm .oma .avi .flv .ogv .ogx .mpg .mpeg"
)
AUDIO_SUFFIXES = frozenset(_SUFFIXES.split())
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


def stream_audio(
    path: str | Path, seconds: float | None = None, meter: Meter | None = None
) -> Generator[np.ndarray]:
    """Stream an audio file as mono 16 kHz blocks; memory does not grow with its length.

    Yields float32 [samples], usually 4 s or less; joined, they are what `read_audio` returns. With
    ``seconds``, the central part is one block. The file opens at the first block, and closes after
    the last, at an error, or by ``close()``. Raises AudioError as `read_audio` does: before the
    first block if the header shows that the end is missing, else at the fault. After the last
    block, ``meter.warnings()`` names silence and the like.
    """
    if seconds is not None and not 1 <= seconds * SAMPLE_RATE < math.inf:
        hint = "Give a number of seconds, or None for the whole file."
        message = f"expected a positive length, found {seconds}"
        raise InputError(message, setting="seconds", hint=hint)
    path, meter = Path(path), meter or Meter()
    # An error's traceback would keep the inner generator alive.
    with _opened(path) as file, closing(decoded(file, meter, seconds)) as blocks:
        for block in blocks:
            _refuse_values(block, meter.samples)
            meter.samples += len(block)
            if len(block):
                yield block
        if not meter.samples:
            few = f"too short: {meter.frames} samples are less than one at {SAMPLE_RATE} Hz"
            what = few if meter.frames else "no audio in it (0 samples)"
            raise AudioError(what, kind="empty", hint=ANEW)


def read_parts(
    path: str | Path,
    seconds: float,
    choose: Callable[[int], list[tuple[int, int]]],
    meter: Meter,
) -> tuple[int, list[np.ndarray]] | None:
    """Read parts of a file that is longer than ``seconds``, as `decoding.decoded_parts` says.

    Raises AudioError as `read_audio` does, but for faults outside the parts.
    """
    with _opened(Path(path)) as file:
        found = decoded_parts(file, meter, seconds, choose)
        for part in () if found is None else found[1]:
            _refuse_values(part, meter.samples)
            meter.samples += len(part)
        return found


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open an audio file; errors become an AudioError with its path."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe waits for a writer
            what = "a folder, a pipe, a socket or a device, not a file"
            raise AudioError(what, hint="Name an audio file.")
        if not status.st_size:
            raise AudioError("the file is empty (0 bytes)", kind="empty", hint=ANEW)
        with path.open("rb") as file:
            yield file
    except AudioError as error:
        error.path = path
        raise
    except av.FFmpegError as error:
        raise undecodable(error, path) from None
    except OSError as error:
        kind: Kind = "missing" if error.errno in (errno.ENOENT, errno.ELOOP) else "access"
        hint = "Check the path, the file's permissions and the disk."
        what = error.strerror or str(error)
        if kind == "missing" and path.is_symlink():
            what = f"a link that leads nowhere: {what}"
        raise AudioError(what, kind=kind, hint=hint, path=path) from None


def _refuse_values(block: np.ndarray, before: int) -> None:
    """Raise AudioError for NaN, infinity, or floats on the scale of integers."""
    fits = np.abs(block) <= _LOUDEST
    if not fits.all():
        at = int(fits.argmin())
        second = (before + at) / SAMPLE_RATE
        what = f"a sample of {block[at]:.3g} at about second {second:.1f}, where full scale is 1"
        hint = "Write the file again, with finite samples from -1 to 1."
        raise AudioError(what, hint=hint)
