"""What a teacher hears in each window of a track, written in the pass that makes the log-mel."""

import functools
import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from maest.datasets.windows import window_file
from maest.helpers.audio.codecs import coded
from maest.helpers.differences import differences
from maest.helpers.errors import InputError
from maest.helpers.files.arrays import load_array
from maest.helpers.files.atomic import read_bytes, to_json, write_changed, write_error
from maest.helpers.teacher import Teacher
from maest.helpers.work.parallel import one_torch_thread, run_parallel

RECIPE_FILE = "recipe.json"  # what the files are made by
_KEYS = {"teacher", "version", "window_seconds", "labels"}

Load = Callable[[str], Teacher]  # importable, since worker processes load it


def loaded(load: Load, name: str) -> Teacher:
    """The teacher of this process, loaded once: sessions of onnxruntime do not survive a fork."""
    return _loaded(load, name, os.getpid())


@functools.lru_cache(1)
def _loaded(load: Load, name: str, process: int) -> Teacher:
    return load(name)


def write_windows(path: str, windows: np.ndarray) -> None:
    """Write [N, C] as float16. An equal file stays."""
    content = io.BytesIO()
    np.save(content, windows.astype(np.float16))
    _write(path, content.getvalue())


def _write(path: str | Path, content: bytes) -> None:
    try:
        write_changed(path, content)
    except OSError as error:
        raise write_error(path, error, "--out-dir") from None


def read_windows(path: str, n_classes: int) -> np.ndarray | None:
    """Read a teacher's windows, float16 [N, C]; None unless they are there and whole."""
    try:
        windows = load_array(path, "It is made again.")
    except InputError:
        return None
    fits = windows.ndim == 2 and windows.shape[1] == n_classes and len(windows) > 0
    return windows if fits and windows.dtype == np.float16 else None


def _describe(name: str, load: Load) -> dict[str, Any]:
    teacher = loaded(load, name)
    return {
        "teacher": name,
        "version": teacher.version,
        "window_seconds": float(teacher.window_seconds),
        "labels": list(teacher.labels),
    }


def open_recipe(
    folder: Path,
    load: Load,
    teacher: str,
    codec_share: float,
    seed: int,
    num_workers: int | None,
) -> dict[str, Any]:
    """Write how the teacher's files are made. Raises InputError if others were made otherwise."""
    # In a process of its own: forks of this one could not use sessions, nor a GPU, that it opened.
    ask = partial(_describe, load=load)
    (recipe,) = run_parallel(ask, [teacher], num_workers=num_workers, progress=False)
    recipe["codec_share"] = float(codec_share)
    if codec_share:
        recipe["codec_seed"] = seed
    path = folder / RECIPE_FILE
    if path.exists() and (differ := differences(read_recipe(folder), recipe)):
        what = f"the teacher's files were made otherwise: {'; '.join(differ)}"
        hint = "Give another --out-dir, or the same settings."
        raise InputError(what, kind="mismatch", path=path, hint=hint)
    _write(path, to_json(recipe).encode())
    return recipe


def read_recipe(folder: Path) -> dict[str, Any]:
    path = folder / RECIPE_FILE
    hint = "Run it without --labels-only first."
    try:
        recipe = json.loads(read_bytes(path, hint))
        if recipe.keys() >= _KEYS:
            return recipe
    except (ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
    what, hint = "expected what the teacher is, as JSON", "Give another --out-dir."
    raise InputError(what, kind="corrupt", path=path, hint=hint)


@dataclass(frozen=True)
class Teaching:
    """Writes a teacher's probabilities for the tracks of a source, and codes some tracks' audio."""

    teacher: str
    load: Load
    folder: Path
    n_classes: int
    codec_share: float = 0.0
    seed: int = 0

    def is_made(self, key: str) -> bool:
        return read_windows(window_file(self.folder, key), self.n_classes) is not None

    def make(self, key: str, audio: np.ndarray) -> np.ndarray:
        """Write what the teacher hears; return the audio, of a share of tracks after a codec.

        The teacher hears the audio as it is. Raises InputError if it cannot be loaded, or if the
        file cannot be written; ValueError unless its output is [N, C] probabilities.
        """
        with one_torch_thread():
            windows = np.asarray(loaded(self.load, self.teacher)(audio))
        if windows.ndim != 2 or windows.shape[1] != self.n_classes or not len(windows):
            raise ValueError(f"the teacher gives {windows.shape}, not [windows, {self.n_classes}]")
        if not ((windows >= 0) & (windows <= 1)).all():
            raise ValueError("the teacher gives values that are no probabilities")
        write_windows(window_file(self.folder, key), windows)
        return self._coded(key, audio)

    def _coded(self, key: str, audio: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng(
            [self.seed, *f"{self.folder.name}/{key}".encode("utf-8", "surrogateescape")]
        )
        return coded(audio, self.codec_share, rng)[0]
