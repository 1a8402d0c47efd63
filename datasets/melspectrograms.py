"""Log-mel files: a headerless, C-order float16 array [frames, 96] as ``.mmap``, not normalised."""

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

import numpy as np

from maest.helpers.audio import patches
from maest.helpers.audio.constants import N_MELS
from maest.helpers.errors import InputError, Kind
from maest.helpers.files.atomic import atomic_path

DTYPE = np.dtype(np.float16)
FRAME_BYTES = N_MELS * DTYPE.itemsize
_CHUNK = 20_000  # frames of a chunk: 320 s, 3.8 MB
_INFINITY = 0x7C00  # the bits of float16's infinity: all of the exponent


def write_mel(path: str | Path, mel: np.ndarray) -> None:
    """Write a log-mel [frames, 96], not normalised, as float16 ``.mmap``.

    Raises ValueError for another shape, no frame, NaN, or a value that float16 cannot hold.
    """
    mel = np.asarray(mel)
    if mel.ndim != 2 or mel.shape[1] != N_MELS or not len(mel):
        raise ValueError(f"{path}: expected an array [frames, {N_MELS}], got {mel.shape}")
    stored = np.ascontiguousarray(mel, dtype=DTYPE)
    if not all_finite(stored):
        raise ValueError(f"{path}: the log-mel spectrogram has NaN or infinite values")
    with atomic_path(path) as temporary:  # `tofile` may not notice a full disk
        temporary.write_bytes(stored.data)


def mel_path(base_dir: str | Path, key: str) -> Path:
    """The file of a ground-truth key: ``base_dir/key``, or that with .mmap added."""
    path = Path(base_dir, key)
    added = Path(f"{path}.mmap")
    return added if added.is_file() and not path.is_file() else path


def track_bytes(base_dir: str | Path, keys: Iterable[str]) -> np.ndarray:
    """The size of each track's file, int64 [N]; 0 where there is none. Opens none of them."""

    def size(key: str) -> int:
        try:
            return os.stat(mel_path(base_dir, key)).st_size
        except OSError:  # reading it will say why
            return 0

    return np.fromiter(map(size, keys), np.int64)


def read_mel(path: str | Path) -> np.ndarray:
    """Read a whole log-mel file: float16 [frames, 96]."""
    with MelFile(path) as file:
        return file.read(0, len(file))


class MelFile:
    """An open log-mel file, for a ``with`` statement; its length is in frames.

    Raises InputError unless the file holds whole frames, one or more.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = os.fspath(path)
        try:
            # Reading by position takes one system call a crop, straight into the caller's array. A
            # file that shrinks is an error; a mapped one would end the process.
            self._descriptor = os.open(self.path, os.O_RDONLY)
        except (OSError, ValueError) as error:  # ValueError: no file can have that name
            raise self._unreadable(error) from error
        status = os.fstat(self._descriptor)
        self._frames, rest = divmod(status.st_size, FRAME_BYTES)
        if not is_whole(status):
            os.close(self._descriptor)
            what = f"{self._frames} frames and {rest} bytes: truncated, or no log-mel file"
            raise self._fault(what if status.st_size else "is empty")

    @classmethod
    def of_key(cls, base_dir: str | Path, key: str) -> Self:
        """The file of a ground-truth key, as :func:`mel_path` chooses it."""
        try:
            return cls(os.path.join(base_dir, key))  # first: looking for others takes time
        except InputError:
            path = mel_path(base_dir, key)
            if path.name != os.path.basename(key):
                return cls(path)
            if path.is_file():
                raise
        hint = "Check datamodule.base_dir, or make the file with the data set's preprocess.py."
        what = "no such file (nor with .mmap added)"
        raise InputError(what, kind="missing", hint=hint, path=path)

    def _fault(self, message: str, kind: Kind = "corrupt") -> InputError:
        hint = "Make it again with the data set's preprocess.py."
        return InputError(message, kind=kind, hint=hint, path=self.path)

    def _unreadable(self, error: Exception) -> InputError:
        kind: Kind = "missing" if isinstance(error, FileNotFoundError) else "corrupt"
        return self._fault(f"cannot be read ({getattr(error, 'strerror', None) or error})", kind)

    def __len__(self) -> int:
        return self._frames

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._descriptor)

    def read_into(self, out: np.ndarray, first: int) -> None:
        """Read frames from ``first`` on into a C-ordered float16 array [n, 96].

        Raises InputError if they cannot be read, or have NaN or infinite values.
        """
        buffer, offset = out.data.cast("B"), first * FRAME_BYTES
        try:
            while len(buffer):  # once, unless the file system returns short reads
                done = os.preadv(self._descriptor, [buffer], offset)
                if not done:
                    raise EOFError("it became shorter: another program writes it")
                buffer, offset = buffer[done:], offset + done
        except (OSError, EOFError) as error:
            raise self._unreadable(error) from error
        if not all_finite(out):
            frames = f"{first}-{first + len(out)}"
            raise self._fault(f"NaN or infinite values in frames {frames}", "invalid")

    def read(self, first: int, last: int) -> np.ndarray:
        """Read frames ``first`` to ``last`` (exclusive): [last - first, 96]."""
        frames = np.empty((last - first, N_MELS), DTYPE)
        self.read_into(frames, first)
        return frames

    def chunks(self) -> Iterator[np.ndarray]:
        """The whole file in pieces of at most 320 s, which bounds the memory."""
        for first in range(0, self._frames, _CHUNK):
            yield self.read(first, min(first + _CHUNK, self._frames))

    def content_hash(self) -> bytes | None:
        """A hash of all values; None if they are all the same, as in silence."""
        digest, first, constant = hashlib.blake2b(digest_size=16), None, True
        for chunk in self.chunks():
            digest.update(chunk.data.cast("B"))
            first = chunk[0, 0] if first is None else first
            constant = constant and bool((chunk[0] == first).all() and (chunk == first).all())
        return None if constant else digest.digest()


def is_whole(status: os.stat_result) -> bool:
    """Whether a ``.mmap`` file has whole frames, one or more."""
    size = status.st_size
    return stat.S_ISREG(status.st_mode) and size > 0 and size % FRAME_BYTES == 0


def all_finite(mel: np.ndarray) -> bool:
    """Whether a float16 array has no NaN or infinite value."""
    # NumPy's isfinite is slow for float16. Read as unsigned integers, finite values without a sign
    # come before infinity: for a log-mel, which has no sign, one pass is enough.
    bits = mel.view(np.uint16)
    return bool(bits.max(initial=0) < _INFINITY or (bits & _INFINITY).max() < _INFINITY)


# --- Reading for training and evaluation --------------------------------------------------------


def read_crop(mel: MelFile, frames: int, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """A uniform random crop [frames, 96], and its first frame in the track.

    A shorter track is centred in zeros (silence); the first frame is then below 0.
    """
    out = np.zeros((frames, N_MELS), DTYPE)
    if len(mel) >= frames:
        first = int(rng.integers(len(mel) - frames + 1))
        mel.read_into(out, first)
    else:
        first = -((frames - len(mel)) // 2)
        mel.read_into(out[-first : len(mel) - first], 0)
    return out, first


def read_patches(base_dir: str | Path, key: str, longest: int) -> list[np.ndarray]:
    """Read a whole track as patches [frames, 96] of ``longest`` frames; the last may be shorter.

    `patches.cut` cuts them as the network cuts a waveform, so that a track gives the
    same result from audio and from its file. Zeros (silence) pad a track to 16 frames at its end.
    """
    with MelFile.of_key(base_dir, key) as mel:
        pieces = (mel.read(first, last) for first, last in patches.cut(len(mel), longest))
        return [patches.padded(piece) for piece in pieces]
