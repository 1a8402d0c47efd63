"""A teacher's logits, one file a track, as ``ex_maest.py extract_logits`` writes them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from maest.helpers.arrays import load_array
from maest.helpers.errors import InputError, Kind
from maest.helpers.patches import pooled_file

_SUFFIX = ".logits.npy"  # added to a key
_HINT = (
    "Make the logits with `python ex_maest.py extract_logits with maest.checkpoint=<the teacher>`, "
    "a model of the same labels, on the training tracks; that makes damaged files again."
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
            f"{len(missing)} of {len(keys)} training tracks have no logits of the teacher "
            f"({some}{', ...' * (len(missing) > 3)})",
            kind="missing",
            path=folder,
            setting="datamodule.teacher_dir",
            hint=_HINT,
        )


def read_teacher_logits(folder: str | Path, key: str, n_classes: int) -> np.ndarray:
    """Read the teacher's logits for a track.

    Args:
        folder: of the files.
        key: the ground truth's.
        n_classes: C.

    Returns:
        float32 [C]; of a file of [patches, C], the mean over patches, as extraction weights them.

    Raises:
        TeacherFileError: there is no such file, it holds no floats of that shape, or a NaN.
    """
    path = Path(folder) / f"{key}{_SUFFIX}"

    def error(kind: Kind, message: str) -> TeacherFileError:
        return TeacherFileError(message, kind=kind, path=path, hint=_HINT)

    try:
        logits = load_array(path)
    except FileNotFoundError:
        raise error("missing", "no such file") from None
    except (OSError, ValueError, EOFError) as fault:
        raise error("corrupt", f"cannot be read ({' '.join(str(fault).split())})") from None
    fits = logits.dtype.kind == "f" and logits.ndim in (1, 2) and len(logits) > 0
    if not fits or logits.shape[-1] != n_classes:
        raise error(
            "mismatch",
            f"holds {logits.dtype} {logits.shape}; expected floats [{n_classes}] or [patches, "
            f"{n_classes}], the labels of the ground truth",
        )
    if not np.isfinite(logits).all():
        raise error("invalid", "NaN or infinite values")
    try:
        return pooled_file(np.atleast_2d(logits), path)
    except InputError as fault:
        raise TeacherFileError(
            fault.message, kind=fault.kind, path=fault.path, hint=fault.hint
        ) from None
