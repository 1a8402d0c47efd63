"""Targets of a crop, from what a teacher heard in each window of its track."""

import json
import os
from pathlib import Path

import numpy as np

from maest.datasets.groundtruth import GroundTruth, labels_beside
from maest.helpers.audio.constants import HOP_LENGTH, SAMPLE_RATE
from maest.helpers.errors import InputError, Kind
from maest.helpers.files.arrays import load_array
from maest.helpers.files.atomic import read_bytes

_SETTING = "datamodule.window_targets"
_HINT = "Give the folder windows/ of datasets/recordings/preprocess.py, of the same labels."


def window_file(folder: str | Path, key: str) -> str:
    """The file of a track's windows."""
    return f"{folder}/{key}.npy"


class WindowTargets:
    """The windows of tracks: float16 [N, C] in ``<key>.npy``, values 0 … 1, NaN unknown.

    ``recipe.json`` beside them says how many seconds each lasts; the first begins with the track.
    """

    def __init__(self, folder: str | Path, groundtruth: GroundTruth) -> None:
        """Look at the recipe and one file. Raises InputError if they do not fit ``groundtruth``."""
        self.folder, self.n_classes = str(folder), groundtruth.n_classes
        if groundtruth.task != "multi-label":
            raise self._fault("it is for maest.task=multi-label", "conflict", Path(folder))
        path = Path(folder) / "recipe.json"
        try:
            recipe = json.loads(read_bytes(path, _HINT))
            seconds, labels = float(recipe["window_seconds"]), recipe["labels"]
            if not seconds > 0:
                raise ValueError(f"window_seconds is {seconds}")
        except InputError as error:
            raise self._fault(error.message, error.kind, path) from None
        except (ValueError, KeyError, TypeError) as error:
            raise self._fault(f"cannot be read ({error})", "corrupt", path) from None
        self.frames = seconds * SAMPLE_RATE / HOP_LENGTH  # of a window
        names = labels_beside(groundtruth)
        if len(labels) != self.n_classes or (names is not None and labels != names):
            raise self._fault(f"names other labels than {groundtruth.path}", "mismatch", path)
        files = (window_file(folder, key) for key in groundtruth.keys)
        if (first := next(filter(os.path.exists, files), None)) is None:
            what = f"none of the {len(groundtruth)} training tracks has a file here"
            raise self._fault(what, "missing", Path(folder))
        windows = self._read(first)
        if np.isnan(windows).all() or ((windows < 0) | (windows > 1)).any():
            raise self._fault("expected values from 0 to 1, some of them known", "invalid", first)

    def of_crop(self, key: str, first: int, frames: int, target: np.ndarray) -> np.ndarray:
        """Targets [C] of ``frames`` frames from ``first`` on (below 0 where silence is before).

        They are the mean of each label's known windows, weighted by how long each is in the crop.
        Where none is known they are the track's ``target`` [C], as without a file. Raises
        InputError if the file is damaged or has other labels.
        """
        target = target.astype(np.float32)
        path = window_file(self.folder, key)
        if not os.path.exists(path):
            return target
        windows, last = self._read(path), first + frames
        begin = max(0, int(first // self.frames))
        values = windows[begin : int(np.ceil(last / self.frames))].astype(np.float32)
        starts = (begin + np.arange(len(values))) * self.frames
        shares = np.minimum(starts + self.frames, last) - np.maximum(starts, first)
        are_known = ~np.isnan(values)
        total = (shares[:, None] * are_known).sum(axis=0)
        mean = (shares[:, None] * np.where(are_known, values, 0)).sum(axis=0)
        return np.where(total > 0, mean / np.where(total > 0, total, 1), target).astype(np.float32)

    def _read(self, path: str) -> np.ndarray:
        windows = load_array(path, _HINT, _SETTING, mapped=True)
        if windows.ndim != 2 or windows.shape[1] != self.n_classes or windows.dtype.kind != "f":
            what = f"holds {windows.dtype} {windows.shape}, expected floats [N, {self.n_classes}]"
            raise self._fault(what, "mismatch", path)
        return windows

    def _fault(self, what: str, kind: Kind, path: str | Path) -> InputError:
        return InputError(what, kind=kind, path=path, setting=_SETTING, hint=_HINT)
