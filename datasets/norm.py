"""Mean and standard deviation of a store of log-mels, to normalise the input of a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from maest.datasets.melspectrograms import MelFile
from maest.helpers.audio.constants import N_MELS
from maest.helpers.errors import InputError
from maest.helpers.work.parallel import thread_map

Moments = tuple[int, float, float]  # number, mean and sum of squared deviations of values


def combined(a: Moments, b: Moments) -> Moments:
    """Merge the moments of two sets; a plain sum of squares would lose precision.

    T. F. Chan, G. H. Golub and R. J. LeVeque, "Algorithms for computing the sample variance", The
    American Statistician 37 (1983).
    """
    count, delta = a[0] + b[0], b[1] - a[1]
    share = b[0] / max(count, 1)
    return count, a[1] + delta * share, a[2] + b[2] + delta**2 * a[0] * share


@dataclass(frozen=True)
class NormStats:
    mean: float  # over all values of all frames
    std: float  # divides by the number of values, not by that number minus 1
    tracks: int  # read without error
    frames: int  # in these tracks
    failed: dict[str, str] = field(default_factory=dict)  # key → why it cannot be read


def norm_stats(
    base_dir: str | Path, keys: Sequence[str], num_workers: int | None = None, progress: bool = True
) -> NormStats:
    """Compute mean and standard deviation over all values in float64, for any number of threads.

    Raises InputError if no track can be read, or if all values are equal.
    """

    def of_key(key: str) -> Moments | str:
        own: Moments = (0, 0.0, 0.0)
        try:
            with MelFile.of_key(base_dir, key) as mel:
                for chunk in mel.chunks():
                    values = chunk.astype(np.float64)
                    mean = float(values.mean())
                    values -= mean
                    squares = float(np.square(values, out=values).sum())
                    own = combined(own, (values.size, mean, squares))
        except InputError as error:
            return error.reason
        return own

    total: Moments = (0, 0.0, 0.0)
    failed, first = dict[str, str](), ""
    results = thread_map(of_key, keys, num_workers, "norm statistics" if progress else None)
    for key, result in zip(keys, results, strict=True):
        if isinstance(result, str):
            failed[key] = result
        else:
            first = first or key
            total = combined(total, result)
    if not first:
        key, reason = next(iter(failed.items()), ("", "there are no tracks"))
        what = f"none of the {len(keys)} log-mel files can be read; the first, {key!r}: "
        hint = "Check datamodule.base_dir."
        raise InputError(what + reason.rstrip("."), kind="missing", path=base_dir, hint=hint)
    count, mean, squares = total
    if not squares:
        what = f"all values of the log-mel files are equal, {mean:g}: nothing to normalise by"
        hint = "Check the audio that they were made from."
        raise InputError(what, path=Path(base_dir, first), hint=hint)
    deviation = float(np.sqrt(squares / count))
    return NormStats(mean, deviation, len(keys) - len(failed), count // N_MELS, failed)


def sampled_mean_and_std(
    base_dir: str | Path, keys: Sequence[str], tracks: int = 200
) -> tuple[float, float]:
    """Mean and standard deviation over at most ``tracks`` tracks, evenly spread over ``keys``."""
    some = np.linspace(0, len(keys) - 1, min(tracks, len(keys))).astype(int)
    stats = norm_stats(base_dir, [keys[i] for i in some], progress=False)
    return stats.mean, stats.std
