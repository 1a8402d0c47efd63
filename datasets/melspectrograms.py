"""The store of log-mel spectrograms.

On disk a track is one headerless, C-order float16 array of frames x 96 bands, not normalised,
with the suffix ``.mmap``. A ``.npy`` file of the same shape is read too. A reader never loads more
frames than it was asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from helpers import patches
from helpers.errors import InputError
from helpers.files import atomic_path
from helpers.melspectrogram import N_MELS

DTYPE = np.dtype(np.float16)
_FRAME_BYTES = N_MELS * DTYPE.itemsize
_PREPROCESS = "write it again with the data set's preprocess.py"


class MelFileError(InputError):
    """A mel-spectrogram file that is missing, empty, or not what its format says."""


def write_mel(path: str | Path, mel: np.ndarray) -> None:
    """Write a log-mel spectrogram as ``.mmap``, atomically.

    Args:
        path: the file to write.
        mel: float array [frames, 96], not normalised; it is stored as float16.

    Raises:
        ValueError: if the shape is another, there is no frame, or a value does not fit.
    """
    mel = np.asarray(mel)
    if mel.ndim != 2 or mel.shape[1] != N_MELS or not len(mel):
        raise ValueError(f"{path}: expected an array [frames, {N_MELS}], got {mel.shape}")
    stored = np.ascontiguousarray(mel, dtype=DTYPE)
    if not np.isfinite(stored).all():
        raise ValueError(f"{path}: the log-mel spectrogram has NaN or infinite values")
    with atomic_path(path) as temporary:
        stored.tofile(temporary)


def mel_path(base_dir: str | Path, key: str) -> Path:
    """The file of a ground-truth key: ``base_dir/key``, or that name with .mmap or .npy added.

    Where there is none of them, ``base_dir/key``.
    """
    path = Path(base_dir) / key
    added = (path.with_name(f"{path.name}{suffix}") for suffix in ("", ".mmap", ".npy"))
    return next((candidate for candidate in added if candidate.is_file()), path)


def find_mel(base_dir: str | Path, key: str) -> Path:
    """The same, if it is there.

    Raises:
        MelFileError: if there is no such file.
    """
    path = mel_path(base_dir, key)
    if not path.is_file():
        kind = "is a folder, not a file" if path.is_dir() else "no such file"
        raise MelFileError(
            f"{path}: {kind} (nor with .mmap or .npy added). Check datamodule.base_dir, "
            "or make the file with the data set's preprocess.py"
        )
    return path


def open_mel(path: str | Path) -> np.ndarray:
    """Map a log-mel file into memory, read-only: a float array [frames, 96]; no data is read yet.

    Raises:
        MelFileError: if the file is missing, empty, no whole number of frames, or of another shape.
    """
    path = Path(path)
    try:
        if path.suffix == ".npy":
            mel = np.load(path, mmap_mode="r", allow_pickle=False)
            if mel.ndim != 2 or mel.shape[1] != N_MELS or not np.issubdtype(mel.dtype, np.floating):
                raise MelFileError(
                    f"{path}: holds {mel.dtype} {mel.shape}; expected floats [frames, {N_MELS}]"
                )
            if not len(mel):
                raise MelFileError(f"{path}: has no frames; {_PREPROCESS}")
            return mel
        if path.is_dir():
            raise MelFileError(f"{path}: is a folder, not a file")
        size = path.stat().st_size
        if size == 0:
            raise MelFileError(f"{path}: the file is empty; {_PREPROCESS}")
        if size % _FRAME_BYTES:
            raise MelFileError(
                f"{path}: {size} bytes are no whole number of frames ({_FRAME_BYTES} bytes each, "
                f"{N_MELS} bands of {DTYPE}): the file is truncated, or not a .mmap; {_PREPROCESS}"
            )
        return np.memmap(path, DTYPE, mode="r", shape=(size // _FRAME_BYTES, N_MELS))
    except MelFileError:
        raise
    except FileNotFoundError:
        raise MelFileError(
            f"{path}: no such file; make it with the data set's preprocess.py"
        ) from None
    except (OSError, ValueError, EOFError) as error:
        raise MelFileError(f"{path}: cannot be read ({error}); {_PREPROCESS}") from error


def mean_and_std(paths: Iterable[str | Path]) -> tuple[float, float]:
    """Mean and standard deviation over all values of some files, read one after the other.

    Files that cannot be read are left out: whoever uses them will be told.

    Raises:
        MelFileError: if not one of them can be read.
    """
    count, mean, squares = 0, 0.0, 0.0  # squares: sum of squared deviations from the mean
    error = MelFileError("no log-mel files to take the mean of")
    for path in paths:
        try:
            values = np.asarray(open_mel(path), dtype=np.float64)
        except MelFileError as reason:
            error = reason
            continue
        if not np.isfinite(values).all():
            error = MelFileError(f"{path}: NaN or infinite values; {_PREPROCESS}")
            continue
        # Chan, Golub and LeVeque's update: exact however long the stream.
        delta, total = values.mean() - mean, count + values.size
        squares += values.var() * values.size + delta**2 * count * values.size / total
        mean += delta * values.size / total
        count = total
    if not count:
        raise error
    return float(mean), float(np.sqrt(squares / count))


def _read(mel: np.ndarray, path: str | Path, first: int, last: int) -> np.ndarray:
    """Copy frames first to last; a NaN is found here, where the file's name is still known."""
    frames = np.array(mel[first:last])
    if not np.isfinite(frames).all():
        raise MelFileError(
            f"{path}: NaN or infinite values in frames {first}-{last}; {_PREPROCESS}"
        )
    return frames


def read_crop(path: str | Path, frames: int, rng: np.random.Generator) -> np.ndarray:
    """Read a random crop of exactly ``frames`` frames, for training.

    Args:
        path: a ``.mmap`` or ``.npy`` file.
        frames: length of the crop.
        rng: draws the crop's start, uniformly.

    Returns:
        float array [frames, 96] in the file's own type. A shorter track stands in the middle of
        zeros (silence on this scale).

    Raises:
        MelFileError: as :func:`open_mel`, or for NaN or infinite values.
    """
    mel = open_mel(path)
    if len(mel) >= frames:
        start = int(rng.integers(len(mel) - frames + 1))
        return _read(mel, path, start, start + frames)
    crop = np.zeros((frames, N_MELS), mel.dtype)
    start = (frames - len(mel)) // 2
    crop[start : start + len(mel)] = _read(mel, path, 0, len(mel))
    return crop


def read_patches(path: str | Path, longest: int) -> list[np.ndarray]:
    """Read a whole track as patches, for evaluation and extraction.

    They are cut by :func:`helpers.patches.cut`, as the network cuts a waveform by itself, so that
    a track gives the same result from audio and from its file.

    Returns:
        arrays [frames, 96]; all have ``longest`` frames but for the last, which may be shorter.
        A track shorter than 16 frames is padded to that with zeros (silence), at the end.

    Raises:
        MelFileError: as :func:`read_crop`.
    """
    mel = open_mel(path)
    cuts = patches.cut(len(mel), longest)
    pieces = [_read(mel, path, first, last) for first, last in cuts]
    if len(pieces[0]) < patches.PATCH_SIZE:
        pieces[0] = np.pad(pieces[0], ((0, patches.PATCH_SIZE - len(pieces[0])), (0, 0)))
    return pieces
