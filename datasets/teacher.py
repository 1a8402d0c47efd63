"""A teacher's logits, one file a track, as ``ex_maest.py extract_logits`` writes them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from helpers.arrays import load_array
from helpers.errors import InputError

_SUFFIX = ".logits.npy"  # added to a key
_EXTRACT = (
    "make them with `python ex_maest.py extract_logits with maest.checkpoint=<the teacher>`, a "
    "model of the same labels, on the training tracks"
)


class TeacherFileError(InputError):
    """A file of logits that is missing, or does not fit the ground truth."""


def check_teacher_files(folder: str | Path, keys: Sequence[str]) -> None:
    """See that every key has its file, without opening any.

    Raises:
        TeacherFileError: with the count of those that are missing, and the first few.
    """
    # Text, not paths: there may be millions of tracks.
    missing = [key for key in keys if not os.path.exists(f"{folder}/{key}{_SUFFIX}")]
    if missing:
        some = ", ".join(f"{key}{_SUFFIX}" for key in missing[:3])
        raise TeacherFileError(
            f"{folder}: {len(missing)} of {len(keys)} training tracks have no logits of the "
            f"teacher ({some}{', ...' * (len(missing) > 3)}). Check datamodule.teacher_dir, or "
            f"{_EXTRACT}"
        )


def read_teacher_logits(folder: str | Path, key: str, n_classes: int) -> np.ndarray:
    """Read the teacher's logits for a track.

    Args:
        folder: of the files.
        key: the ground truth's.
        n_classes: C.

    Returns:
        float32 [C]; of a file of [patches, C], the mean over patches.

    Raises:
        TeacherFileError: there is no such file, it holds no floats of that shape, or a NaN.
    """
    path = Path(folder) / f"{key}{_SUFFIX}"
    try:
        logits = load_array(path)
    except FileNotFoundError:
        raise TeacherFileError(
            f"{path}: no such file. Check datamodule.teacher_dir, or {_EXTRACT}"
        ) from None
    except (OSError, ValueError, EOFError) as error:
        raise TeacherFileError(
            f"{path}: cannot be read ({' '.join(str(error).split())}); {_EXTRACT}"
        ) from None
    fits = logits.dtype.kind == "f" and logits.ndim in (1, 2) and len(logits) > 0
    if not fits or logits.shape[-1] != n_classes:
        found = f"{logits.dtype} {logits.shape}"
        raise TeacherFileError(
            f"{path}: holds {found}; expected floats [{n_classes}] or [patches, {n_classes}], the "
            f"labels of the ground truth; {_EXTRACT}"
        )
    if not np.isfinite(logits).all():
        raise TeacherFileError(f"{path}: NaN or infinite values; {_EXTRACT}")
    return np.atleast_2d(logits).mean(axis=0, dtype=np.float64).astype(np.float32)
