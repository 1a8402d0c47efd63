"""Cut tracks into patches: one rule, for waveforms in the network and for files on disk.

A change here changes the embeddings of every track that is longer than one patch.
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maest.helpers.audio.constants import HOP_LENGTH, SAMPLE_RATE
from maest.helpers.errors import InputError, Kind
from maest.helpers.files.atomic import write_rows
from maest.helpers.names import check_choice

FRAMES_PER_SECOND = SAMPLE_RATE / HOP_LENGTH  # 62.5
PATCH_SIZE = 16  # frames (and bands) under one patch embedding: no input can be shorter
SHORTEST_REMAINDER = math.ceil(FRAMES_PER_SECOND)  # frames: a second, rounded up
_TIMES = ("start", "centre", "end")


def cut(
    frames: int, longest: int, hop: int | None = None, tail: str = "keep"
) -> list[tuple[int, int]]:
    """Return ``(first frame, one past the last)`` of each patch of a track.

    Whole patches of ``longest`` frames start every ``hop`` frames (None: ``longest``). One shorter
    patch follows, a hop later, if it adds a second or more of new frames. A track shorter than one
    patch is one patch, however short. ``tail`` says whether to "keep" the shorter patch, "drop" it,
    or "pad" it with silence; a patch to be padded still ends here with the track. ValueError: a
    number below 1.
    """
    hop = longest if hop is None else hop
    if frames < 1 or longest < 1 or hop < 1:
        raise ValueError(f"cannot cut {frames} frames into patches of {longest}, every {hop}")
    patches = [(start, start + longest) for start in range(0, frames - longest + 1, hop)]
    start, covered = len(patches) * hop, patches[-1][1] if patches else 0
    new = frames - max(start, covered)
    if tail != "drop" and new >= (SHORTEST_REMAINDER if patches else 1):
        patches.append((start, frames))
    return patches


def spread(patches: Sequence[tuple[int, int]], most: int | None) -> list[tuple[int, int]]:
    """Return ``most`` of a track's patches, or all: the middle ones of so many equal parts."""
    number = len(patches)
    if most is None or most >= number:
        return list(patches)
    return [patches[(2 * part + 1) * number // (2 * most)] for part in range(most)]


def new_frames(patches: Sequence[tuple[int, int]]) -> list[int]:
    """Count the frames of each patch that no earlier patch has: its weight in a track's mean."""
    ends = [0, *(last for _, last in patches)]
    return [last - max(first, end) for (first, last), end in zip(patches, ends, strict=False)]


@dataclass(frozen=True)
class PatchPlan:
    """The arguments of :func:`cut`; ``length`` is its ``longest``. Lengths are in frames.

    ``most`` patches of a track are taken, spread evenly over it (:func:`spread`); None: all.
    """

    length: int
    hop: int | None = None
    tail: str = "keep"
    most: int | None = None

    def __post_init__(self) -> None:
        check_choice("tail", self.tail, ("keep", "drop", "pad"))

    def spans(self, frames: int) -> list[tuple[int, int]]:
        """Return the patches of a track of ``frames`` frames, as :func:`cut` does."""
        return spread(cut(frames, self.length, self.hop, self.tail), self.most)

    def patch_frames(self, span: tuple[int, int]) -> int:
        """Count the frames of a patch, padding included."""
        return self.length if self.tail == "pad" else max(span[1] - span[0], PATCH_SIZE)

    def take(self, mel: np.ndarray, span: tuple[int, int]) -> np.ndarray:
        """Return one patch of a track's log-mel [T, 96], padded with silence at its end."""
        return padded(mel[slice(*span)], self.patch_frames(span))


def padded(patch: np.ndarray, frames: int = PATCH_SIZE) -> np.ndarray:
    """Add silence at the end of a log-mel [T, 96], up to ``frames`` frames."""
    missing = max(0, frames - len(patch))
    return np.pad(patch, ((0, missing), (0, 0))) if missing else np.asarray(patch)


def seconds(frames: int) -> float:
    """Return the duration of ``frames`` frames."""
    return frames / FRAMES_PER_SECOND


def times(patches: Sequence[tuple[int, int]], frames: int) -> list[tuple[float, float, float]]:
    """Return start, centre and end of each patch, in seconds.

    The last frame is centred on the track's end or up to 16 ms later; no time exceeds that centre,
    ``(frames - 1) / 62.5``.
    """
    end = max(1, frames - 1)
    spans = ((first, min(last, end)) for first, last in patches)
    return [(seconds(first), seconds(first + last) / 2, seconds(last)) for first, last in spans]


# ---- the mean over a track's patches -------------------------------------------------------------


class WeightedMean:
    """The mean over a track's patches, weighted by :func:`new_frames`; summed in float64."""

    def __init__(self) -> None:
        self._sum: np.ndarray | float = 0.0
        self._weights = 0.0

    def add(self, value: np.ndarray, weight: float) -> None:
        self._sum = self._sum + weight * value.astype(np.float64)
        self._weights += weight

    def mean(self) -> np.ndarray:
        """Return the mean: float32, in the shape of a patch's values."""
        return np.asarray(self._sum / self._weights, np.float32)


def pooled(values: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    """Return the :class:`WeightedMean` of values [P, ...] with P weights: float32 [...]."""
    mean = WeightedMean()
    for value, weight in zip(values, weights, strict=True):
        mean.add(value, weight)
    return mean.mean()


def weights_of(times: np.ndarray) -> list[int]:
    """Return :func:`new_frames` of patches by their :func:`times` [P, 3]."""
    frames = np.rint(np.asarray(times)[:, [0, 2]] * FRAMES_PER_SECOND).astype(int)
    # A patch that ends with the track has an end one frame too early (see times). Every other
    # patch is as long as the first.
    lengths = frames[:, 1] - frames[:, 0]
    frames[-1, 1] += lengths[-1] != lengths[0]
    return new_frames(frames.tolist())


def write_times(path: str | Path, times: np.ndarray) -> None:
    """Write :func:`times` [P, 3] as CSV: ``patch`` (from 0), ``start``, ``centre``, ``end``."""
    rows = ((i, *(f"{t:.3f}" for t in row)) for i, row in enumerate(times.tolist()))
    write_rows(path, ("patch", *_TIMES), rows)


def read_times(path: Path) -> np.ndarray:
    """Read the file of :func:`write_times`: float64 [P, 3]. InputError: "missing" or "corrupt"."""
    try:
        rows = csv.DictReader(path.read_text("utf-8").splitlines())
        times = np.array([[float(row[name]) for name in _TIMES] for row in rows])
        if times.size and np.isfinite(times).all():
            return times
    except (OSError, ValueError, LookupError, TypeError, csv.Error):
        pass
    message = f"expected the times of a track's patches: {', '.join(_TIMES)}, in seconds"
    hint = "Delete it, and extract this track again."
    kind: Kind = "corrupt" if path.exists() else "missing"
    raise InputError(message, kind=kind, hint=hint, path=path)


def pooled_file(values: np.ndarray, path: Path) -> np.ndarray:
    """Return the mean over a file's patches, ``values`` float [P, ...]: float32 [...].

    InputError: ``<key>.times.csv`` beside it is missing, or has the times of other patches.
    """
    if len(values) == 1:
        return values[0].astype(np.float32)
    table = path.with_suffix("").with_suffix(".times.csv")
    weights = weights_of(read_times(table))
    if len(weights) != len(values):
        message = f"has the times of {len(weights)} patches, and {path.name} holds {len(values)}"
        hint = "Delete both, and extract this track again."
        raise InputError(message, kind="mismatch", hint=hint, path=table)
    return pooled(values, weights)
