"""What a teacher hears in each window of a track, written in the pass that makes the log-mel."""

import functools
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maest.datasets.windows import window_file
from maest.helpers.audio.codecs import coded
from maest.helpers.errors import InputError
from maest.helpers.files.arrays import load_array
from maest.helpers.files.atomic import write_changed, write_error
from maest.helpers.teacher import Teacher
from maest.helpers.work.parallel import one_torch_thread

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
    try:
        write_changed(path, content.getvalue())
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
