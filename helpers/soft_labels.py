"""Multi-label targets: 0 or 1; in between, soft; NaN where nobody knows.

The loss takes a soft target's value; counts and metrics take it as positive from 0.5 on.
"""

import numpy as np


def known(targets: np.ndarray) -> np.ndarray:
    """Bool, of the targets' shape: False where they are NaN."""
    return ~np.isnan(targets)


def positive(targets: np.ndarray) -> np.ndarray:
    """Bool, of the targets' shape: 0.5 or more; unknown targets are not."""
    return targets >= 0.5


def negative(targets: np.ndarray) -> np.ndarray:
    """Bool, of the targets' shape: below 0.5; unknown targets are not."""
    return targets < 0.5


def highest(targets: np.ndarray, axis: int) -> np.ndarray:
    """The highest of the known targets along an axis; 0 if there are none."""
    return np.fmax.reduce(targets, axis=axis, initial=0)


def lowest(targets: np.ndarray, axis: int) -> np.ndarray:
    """The lowest of the known targets along an axis; 1 if there are none."""
    return np.fmin.reduce(targets, axis=axis, initial=1)


def means(targets: np.ndarray) -> np.ndarray:
    """Mean of each label's known targets [N, C]: float64 [C]; 0 for one that nobody knows."""
    if targets.dtype.kind != "f":
        return targets.mean(axis=0, dtype=np.float64)
    are_known = known(targets)
    sums = np.where(are_known, targets, 0).sum(axis=0, dtype=np.float64)
    return sums / np.maximum(are_known.sum(axis=0), 1)


def unsure(targets: np.ndarray) -> tuple[int, int]:
    """Count the targets that are unknown, and those that are soft."""
    return int((~known(targets)).sum()), int(((targets > 0) & (targets < 1)).sum())


def counted(targets: np.ndarray) -> str:
    """Say how many targets are unknown and how many soft; "" for complete 0/1 targets."""
    unknown, soft = unsure(targets)
    parts = [f"{unknown} ({unknown / targets.size:.1%}) unknown"] if unknown else []
    parts += [f"{soft} soft (between 0 and 1)"] if soft else []
    return f"of {targets.size} targets {' and '.join(parts)}" if parts else ""
