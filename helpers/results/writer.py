"""Write the results of each track, whole or not at all: a track is done once it has all files.

Files in the folder of each :class:`Output`, removed where they no longer fit the others:

- ``<key>.embeddings.npy``, ``<key>.logits.npy``: float32, as in `TrackResult`;
  but per-patch embeddings after the final norm are [P, 1, D], not to be mistaken for tokens.
- ``<key>.times.csv`` (`patches.write_times`), before them, where they have a row per patch.
- ``<key>.predictions.png``, ``.csv`` and ``.json`` (`helpers.results.predictions`), in this order.
- ``warnings.csv``: tracks whose results may mean little; predictions hold their warnings
  themselves. Each line precedes a track's last file, so that a killed run loses none.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from maest.helpers.audio.patches import read_times, write_times
from maest.helpers.blocks import FINAL
from maest.helpers.files.atomic import (
    NAMES_FILE_ONLY,
    atomic_path,
    encodable,
    read_failures,
    write_error,
    write_failures,
)
from maest.helpers.results.predictions import SEPARATOR, plot_predictions, write_predictions
from maest.helpers.results.tracks import TrackResult

MAX_WAITING = 8  # pending results; `put` waits for room
SUFFIXES = {".npy", ".csv", ".json", ".png"}  # of the files written here
WARNINGS = "warnings.csv"
_WARNINGS = "warnings"  # its second column
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
        found = result.logits if self.kind == "logits" else result.patch_activations
        assert found is not None, f"no {self.kind}"
        return found

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


def tidy_warnings(path: Path, others: Sequence[Path] = ()) -> None:
    """Sort a ``warnings.csv`` and merge others into it; a track's last line counts."""
    found: dict[str, str] = {}
    for one in (*others, path):
        found |= read_failures(one, value=_WARNINGS)
    found = {key: why for key, why in found.items() if why}
    if found or path.is_file():
        write_failures(path, found, value=_WARNINGS)


@dataclass
class ResultWriter:
    """Writes results to files, in a separate thread.

    A context manager: its end writes all pending results, also after an exception. It and
    :meth:`put` raise InputError if no result can be written any more, as on a full disk.
    """

    outputs: Sequence[Output]
    # For predictions: see `helpers.results.predictions.write_predictions`; and whether to draw them
    labels: Sequence[str] | None = None
    task: str = "multi-label"
    top: int = 10
    plot: bool = False
    warnings: str = WARNINGS  # the name of the list of tracks with warnings, in each folder

    def __post_init__(self) -> None:
        self.written = self.warned = 0  # tracks; those of them that have warnings
        self.failed: dict[str, str] = {}  # key → reason of those that cannot be written
        self._thread = ThreadPoolExecutor(1, "result writer")
        self._waiting: deque[Future[None]] = deque()

    def put(self, result: TrackResult) -> None:
        """Queue a result; wait while too many are pending."""
        if len(self._waiting) == MAX_WAITING:
            self._waiting[0].result()
            self._waiting.popleft()
        self._waiting.append(self._thread.submit(self._write, result))

    def __enter__(self) -> ResultWriter:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._thread.shutdown()
        try:
            for written in self._waiting:
                written.result()
        except Exception as other:
            if error is None:
                raise
            if other is not error:  # the error within the block is raised
                error.add_note(str(other))

    # ---- in the thread ----

    def _write(self, result: TrackResult) -> None:
        """Write all files of a track, or note why not. InputError: no file can be written."""
        if not all(np.isfinite(output.values(result)).all() for output in self.outputs):
            reason = "the network's output has NaN or infinite values (of fp16: try "
            reason += "trainer.precision=32-true)"
            with suppress(OSError, ValueError):
                if any(output.path(result.key).exists() for output in self.outputs):
                    reason += "; its files from before are kept"
            self.failed[result.key] = reason
            return
        files: list[Path] = []
        try:
            self._warn(result)
            for output in self.outputs:
                self._write_output(output, result, files)
            self.written += 1
            self.warned += bool(result.warnings)
            return
        except OSError as error:
            if error.errno not in NAMES_FILE_ONLY:
                place = files[-1] if files else self.outputs[0].folder
                raise write_error(place, error, "inference.out_dir") from error
            reason = f"its file cannot be written: {error.strerror}"
        except Exception as error:  # a strange name must not stop the other tracks
            reason = f"its files cannot be written: {type(error).__name__}: {error}"[:300]
        self.failed[result.key] = reason
        for path in files:
            with suppress(OSError, ValueError):
                path.unlink(missing_ok=True)

    def _write_output(self, output: Output, result: TrackResult, files: list[Path]) -> None:
        """Write an output's files, the one that marks it as done last; add them to ``files``."""
        path, values = output.path(result.key), output.values(result)
        beside, wanted = path.with_suffix(".png"), self.plot
        if output.kind != "predictions":
            beside, wanted = output.times(result.key), output.patches_in(values.shape) is not None
        files += beside, path.with_suffix(".csv"), path
        if not wanted and beside.is_file() and not beside.is_symlink():  # of other settings
            beside.unlink()
        if output.kind == "predictions":
            how = result, self.labels, self.top, self.task
            if wanted:
                plot_predictions(beside, *how)
            write_predictions(path, *how)
            return
        if wanted:
            write_times(beside, result.times)
        _write_array(path, values)

    @cached_property
    def _lists(self) -> dict[Path, set[str]]:
        """Lists of warnings, and the keys already in them."""
        paths = [o.folder / self.warnings for o in self.outputs if o.kind != "predictions"]
        return {path: set(read_failures(path, value=_WARNINGS)) for path in paths}

    def _warn(self, result: TrackResult) -> None:
        """Add a line for a track that has warnings, or had some before."""
        why = SEPARATOR.join(result.warnings)
        for path, keys in self._lists.items():
            if not why and result.key not in keys:
                continue
            if not path.exists():  # whole from its first instant
                write_failures(path, {result.key: why}, value=_WARNINGS)
                continue
            with path.open("a", newline="", encoding="utf-8", errors="surrogateescape") as file:
                csv.writer(file).writerow((encodable(result.key), why))


def _write_array(path: Path, values: np.ndarray) -> None:
    # NumPy's writing to a file does not notice that a full disk took all but the last 4 kB.
    content = io.BytesIO()
    np.save(content, np.ascontiguousarray(values, dtype=np.float32))
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.getbuffer())
