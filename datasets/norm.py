"""Mean and standard deviation of a store of log-mels, to normalise the input of a network."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from maest.datasets.melspectrograms import MelFile
from maest.helpers.audio.constants import N_MELS
from maest.helpers.errors import InputError
from maest.helpers.work.parallel import thread_map

_EQUAL = 1e-9  # of the squared mean: a variance that is rounding only


@dataclass(frozen=True)
class NormStats:
    mean: float  # over all values of all frames
    std: float  # divides by the number of values, not by that number minus 1
    tracks: int  # read without error
    frames: int  # in these tracks
    failed: dict[str, str] = field(default_factory=dict)  # key → why it cannot be read


def norm_stats(
    base_dir: str | Path,
    keys: Sequence[str],
    num_workers: int | None = None,
    progress: bool = True,
    tracks: int | None = None,
) -> NormStats:
    """Compute mean and standard deviation over all values in float64, for any number of threads.

    ``tracks`` reads at most so many, evenly spread over ``keys``. Raises InputError if no track can
    be read, or if all values are equal.
    """
    if tracks is not None and tracks < len(keys):
        keys = [keys[i] for i in np.linspace(0, len(keys) - 1, tracks).astype(int)]

    def sums(key: str) -> np.ndarray | str:
        """Frames, sum and sum of squares of a track; or why it cannot be read."""
        total = np.zeros(3)
        try:
            with MelFile.of_key(base_dir, key) as mel:
                for chunk in mel.chunks():
                    values = chunk.astype(np.float64)
                    total += len(values), values.sum(), np.square(values, out=values).sum()
        except InputError as error:
            return error.reason
        return total

    total, failed, first = np.zeros(3), dict[str, str](), ""
    results = thread_map(sums, keys, num_workers, "norm statistics" if progress else None)
    for key, result in zip(keys, results, strict=True):
        if isinstance(result, str):
            failed[key] = result
        else:
            first = first or key
            total += result
    if not first:
        key, reason = next(iter(failed.items()), ("", "there are no tracks"))
        what = f"none of the {len(keys)} log-mel files can be read; the first, {key!r}: "
        hint = "Check datamodule.base_dir."
        raise InputError(what + reason.rstrip("."), kind="missing", path=base_dir, hint=hint)
    mean, square = total[1:] / (total[0] * N_MELS)
    variance = square - mean**2
    if variance <= _EQUAL * square:
        what = f"all values of the log-mel files are equal, {mean:g}: nothing to normalise by"
        hint = "Check the audio that they were made from."
        raise InputError(what, path=Path(base_dir, first), hint=hint)
    read = len(keys) - len(failed)
    return NormStats(float(mean), float(np.sqrt(variance)), read, int(total[0]), failed)
