"""Thresholds that make tags of scores: for each label, the best F1 on tracks with known targets."""

import numpy as np

from maest.helpers.reports.ranking import checked
from maest.helpers.soft_labels import known, positive

FEWEST = 10  # positives of a label, to choose a threshold by


def best_thresholds(targets: np.ndarray, scores: np.ndarray) -> list[float | None] | None:
    """Return the threshold of each label [C]: a track at or above it has the label.

    Of the targets of N tracks [N, C], soft ones are positive from 0.5 on, and unknown ones (NaN)
    take no part. None stands for a label with fewer than 10 positives, and for the list if all
    labels have so few. Of thresholds with equal F1 the highest is taken. It lies halfway between
    two scores, so that rounding does not matter. ValueError: see :func:`ranking.checked`.
    """
    targets, scores = checked(targets, scores)
    each = []
    for own, values in zip(targets.T, scores.T, strict=True):
        rows = known(own)
        each.append(_best(positive(own[rows]), values[rows]))
    return None if all(threshold is None for threshold in each) else each


def _best(positives: np.ndarray, scores: np.ndarray) -> float | None:
    if positives.sum() < FEWEST:
        return None
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order].astype(np.float64)
    hits = np.cumsum(positives[order])
    # Tracks of equal scores are tagged together: a threshold comes after the last of them.
    lasts = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    f1 = 2 * hits[lasts] / (lasts + 1 + hits[-1])
    last = lasts[f1.argmax()]
    return float(ranked[last : last + 2].mean())
