"""A teacher's logits, one file per track, as ``ex_maest.py extract_logits`` writes them."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from maest.helpers.audio.patches import pooled_file
from maest.helpers.errors import InputError
from maest.helpers.files.arrays import load_array
from maest.helpers.names import first_few

_SUFFIX = ".logits.npy"  # added to a key
_HINT = (
    "Make the logits with `python ex_maest.py extract_logits with maest.checkpoint=<the teacher>`, "
    "a model of the same labels, on the training tracks; that makes damaged files again."
)


def check_teacher_files(folder: str | Path, keys: Sequence[str]) -> None:
    """Raise InputError unless every key has a file; opens none of them."""
    # Text, not paths: there may be millions of tracks.
    missing = [key for key in keys if not os.path.exists(f"{folder}/{key}{_SUFFIX}")]
    if missing:
        some = first_few((f"{key}{_SUFFIX}" for key in missing), 3)
        what = f"{len(missing)} of {len(keys)} training tracks have no logits here ({some})"
        setting = "datamodule.teacher_dir"
        raise InputError(what, kind="missing", path=folder, setting=setting, hint=_HINT)


def read_teacher_logits(folder: str | Path, key: str, n_classes: int) -> np.ndarray:
    """Read a track's logits, float32 [C]; [patches, C] become their mean, weighted as extraction.

    Raises InputError if the file is missing, corrupt, not finite, or of another shape or dtype.
    """
    path = Path(folder) / f"{key}{_SUFFIX}"
    logits = load_array(path, _HINT)
    floats = logits.dtype.kind == "f" and logits.ndim in (1, 2) and len(logits) > 0
    if not floats or logits.shape[-1] != n_classes or not np.isfinite(logits).all():
        what = f"holds {logits.dtype} {logits.shape}; expected finite numbers [{n_classes}] or "
        what += f"[patches, {n_classes}], the labels of the ground truth"
        raise InputError(what, kind="mismatch", path=path, hint=_HINT)
    return pooled_file(np.atleast_2d(logits), path)
