"""Write the files of each track's results (`helpers.results.outputs`), and ``warnings.csv``.

``warnings.csv`` lists tracks whose results may mean little; predictions hold their warnings
themselves. Each line precedes a track's last file, so that a killed run loses none.
"""

import csv
import io
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np

from maest.helpers.audio.patches import write_times
from maest.helpers.files.atomic import (
    NAMES_FILE_ONLY,
    atomic_path,
    encodable,
    read_failures,
    write_error,
    write_failures,
)
from maest.helpers.results.outputs import Output
from maest.helpers.results.predictions import (
    SEPARATOR,
    Thresholds,
    plot_predictions,
    write_predictions,
)
from maest.helpers.results.tracks import TrackResult

MAX_WAITING = 8  # pending results; `put` waits for room
WARNINGS = "warnings.csv"
_WARNINGS = "warnings"  # its second column


def tidy_warnings(path: Path, others: Sequence[Path] = ()) -> None:
    """Sort a ``warnings.csv`` and merge others into it; a track's last line counts."""
    warnings: dict[str, str] = {}
    for one in (*others, path):
        warnings |= read_failures(one, value=_WARNINGS)
    warnings = {key: why for key, why in warnings.items() if why}
    if warnings or path.is_file():
        write_failures(path, warnings, value=_WARNINGS)


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
    thresholds: Thresholds | None = None
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

    def __enter__(self) -> Self:
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
            how = result, self.labels, self.top, self.task, self.thresholds
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
