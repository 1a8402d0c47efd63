"""The files of a track's results: a track is done once all of them are there, and whole.

They are in the folder of each :class:`Output`, written in this order:

- ``<key>.times.csv`` (`patches.write_times`), where the next have a row per patch;
- ``<key>.embeddings.npy``, ``<key>.logits.npy``: float32, as in `TrackResult`; but per-patch
  embeddings after the final norm are [P, 1, D], not to be mistaken for tokens;
- ``<key>.predictions.png``, ``.csv`` and ``.json`` (`helpers.results.predictions`).
"""

import io
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from maest.helpers.audio.patches import read_times
from maest.helpers.blocks import FINAL
from maest.helpers.results.tracks import TrackResult

SUFFIXES = {".npy", ".csv", ".json", ".png"}
_HEADER = 128  # bytes of an .npy file before its values, of few dimensions
_ENDS = {"json": b"\n}\n", "csv": b"\r\n", "png": b"IEND\xaeB`\x82"}  # of whole files


@dataclass(frozen=True)
class Output:
    """A kind of result that is written for each track, and its folder."""

    kind: str  # "embeddings", "logits" or "predictions"
    block: int | None  # of embeddings; -1 for those after the final norm
    folder: Path

    def path(self, key: str) -> Path:
        """Return the file of a track that is written last."""
        suffix = "json" if self.kind == "predictions" else "npy"
        return self.folder / f"{key}.{self.kind}.{suffix}"

    def times(self, key: str) -> Path:
        return self.folder / f"{key}.times.csv"

    def patches_in(self, shape: Sequence[int]) -> int | None:
        """Return the number of patches in an array; None for an array of the whole track."""
        # [C] and [D], or [3, D], of a track; one dimension more for each patch.
        of_track = 2 if self.kind == "embeddings" and self.block != FINAL else 1
        return None if len(shape) == of_track else shape[0]

    def values(self, result: TrackResult) -> np.ndarray:
        """Return the array to write; for predictions, the activations of each patch."""
        if self.kind == "embeddings":
            values = result.embeddings[FINAL if self.block is None else self.block]
            return values[:, None] if self.block == FINAL and values.ndim == 2 else values
        array = result.logits if self.kind == "logits" else result.patch_activations
        assert array is not None, f"no {self.kind}"
        return array

    def written(self, key: str, plot: bool = False) -> int:
        """Return when the oldest file of a track was written, in ns.

        OSError or ValueError: a file is missing, truncated, or no file.
        """
        suffixes = ["npy"]
        if self.kind == "predictions":
            suffixes = ["json", "csv", *["png"] * plot]
        # Text, not paths: there may be millions of tracks.
        place = f"{self.folder}/{key}.{self.kind}"
        return min(self._check(key, place, suffix) for suffix in suffixes)

    def _check(self, key: str, place: str, suffix: str) -> int:
        handle = os.open(f"{place}.{suffix}", os.O_RDONLY | os.O_NONBLOCK)  # waits for no pipe
        try:
            size, stamp = (status := os.fstat(handle)).st_size, status.st_mtime_ns
            if end := _ENDS.get(suffix):  # folders and pipes raise OSError
                whole = os.pread(handle, len(end), max(0, size - len(end))) == end
            else:
                shape, whole_size = _header(os.pread(handle, _HEADER, 0))
                patches, whole = self.patches_in(shape), size == whole_size
                whole = whole and (patches is None or patches == len(read_times(self.times(key))))
        finally:
            os.close(handle)
        if not whole:
            raise ValueError(f"{place}.{suffix} is truncated")
        return stamp


@lru_cache(maxsize=256)
def _header(head: bytes) -> tuple[tuple[int, ...], int]:
    """Return the shape in an .npy file's first bytes, and the length of the whole file."""
    file = io.BytesIO(head)
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("another version")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    except Exception as error:  # a damaged header may raise any, such as the tokenizer's
        raise ValueError(f"no header of an array: {error}") from None
    return shape, file.tell() + dtype.itemsize * math.prod(shape)


def is_done(
    key: str, outputs: Sequence[Output], newer_than: Path | None = None, plot: bool = False
) -> bool:
    """Return whether all files (``plot``: with a picture) are whole, none older than its source."""
    try:
        oldest = min(output.written(key, plot) for output in outputs)
    except (OSError, ValueError):  # ValueError: also of no outputs, or of a name no file can have
        return False
    with suppress(OSError, ValueError):  # without its audio, a result cannot be outdated
        return newer_than is None or os.stat(newer_than).st_mtime_ns <= oldest
    return True
