"""Mean and standard deviation of the store's values, which a network's input is normalised by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from maest.datasets.melspectrograms import MelFile, find_mel
from maest.helpers.errors import InputError
from maest.helpers.mel_constants import N_MELS
from maest.helpers.parallel import in_order


@dataclass
class Moments:
    """Number, mean and sum of squared deviations of a stream of values, in float64.

    Merging is the update of T. F. Chan, G. H. Golub and R. J. LeVeque, "Algorithms for computing
    the sample variance", The American Statistician 37 (1983): exact to rounding however long the
    stream, where a sum of squares would lose its digits.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, other: Moments) -> None:
        """Take in the values of ``other``."""
        total = self.count + other.count
        if not self.count:
            self.mean, self.squares = other.mean, other.squares
        elif other.count:
            delta = other.mean - self.mean
            self.squares += other.squares + delta**2 * self.count * other.count / total
            self.mean += delta * other.count / total
        self.count = total

    @property
    def std(self) -> float:
        """The standard deviation of the values, NaN of none."""
        return float(np.sqrt(self.squares / self.count)) if self.count else float("nan")


def file_moments(path: str | Path) -> Moments:
    """Of all values of a file, which is read in pieces of at most 320 s."""
    moments = Moments()
    with MelFile(path) as mel:
        for chunk in mel.chunks():
            values = chunk.astype(np.float64)
            mean = float(values.mean())
            values -= mean
            squares = float(np.square(values, out=values).sum())
            moments.add(Moments(values.size, mean, squares))
    return moments


@dataclass(frozen=True)
class NormStats:
    """Statistics of the log-mel values of many tracks."""

    mean: float  # over all values of all frames
    std: float  # of the values, not an estimate from a sample of them
    tracks: int  # that were read
    frames: int  # of them together
    failed: dict[str, str] = field(default_factory=dict)  # key → why it cannot be read


def norm_stats(
    base_dir: str | Path,
    keys: Sequence[str],
    num_workers: int | None = None,
    progress: bool = True,
) -> NormStats:
    """Mean and standard deviation over all values of all tracks, exact to float64's rounding.

    Memory does not grow with a track's length or with their number. Files are read by several
    threads (None for one a core) and merged in the order of ``keys``, so that the result is the
    same to the last bit whatever the number of threads.

    Raises:
        InputError: if not one of the tracks can be read, or all values are equal.
    """

    def of_key(key: str) -> Moments | str:
        try:
            return file_moments(find_mel(base_dir, key))
        except InputError as error:
            return error.reason

    total, failed, first = Moments(), dict[str, str](), ""
    results = in_order(of_key, keys, num_workers, "norm statistics" if progress else None)
    for key, result in zip(keys, results, strict=True):
        if isinstance(result, str):
            failed[key] = result
        else:
            first = first or key
            total.add(result)
    if not first:
        key, reason = next(iter(failed.items()), ("", "there are no tracks"))
        what = f"none of the {len(keys)} log-mel files can be read; the first, {key!r}: "
        hint = "Check datamodule.base_dir."
        raise InputError(what + reason.rstrip("."), kind="missing", path=base_dir, hint=hint)
    if not total.squares:
        what = f"all values of the log-mel files are equal, {total.mean:g}: nothing to normalise by"
        hint = "Check the audio that they were made from."
        raise InputError(what, path=Path(base_dir, first), hint=hint)
    tracks = len(keys) - len(failed)
    return NormStats(total.mean, total.std, tracks, total.count // N_MELS, failed)


def sampled_mean_and_std(
    base_dir: str | Path, keys: Sequence[str], tracks: int = 200
) -> tuple[float, float]:
    """Those of :func:`norm_stats`, of all tracks or of so many that are spread over ``keys``."""
    some = np.linspace(0, len(keys) - 1, min(tracks, len(keys))).astype(int)
    stats = norm_stats(base_dir, [keys[i] for i in some], progress=False)
    return stats.mean, stats.std
