"""Average precision and ROC-AUC of many rankings at once, with a weight for each track.

They equal scikit-learn's ``average_precision_score`` and ``roc_auc_score``, ties included, from one
sort per label; all resamples of a bootstrap share that sort.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ranking:
    """Tracks per label, in the order of their scores, highest first.

    Tracks of equal score are a tie and count as one place. Both metrics are sums over the P pairs
    of a track and one of its labels, ordered by label, then by score.
    """

    order: np.ndarray  # [C, N] the tracks' numbers
    # [P] each:
    label: np.ndarray  # the label's number
    track: np.ndarray  # the track's number
    before: np.ndarray  # how many tracks have a higher score for that label
    through: np.ndarray  # how many have that score or a higher one
    pairs_before: np.ndarray  # the same in pairs, including all pairs of lower labels
    pairs_through: np.ndarray
    pairs_of_lower: np.ndarray  # how many pairs are of lower labels


def checked(targets: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both as arrays [N, C]. ValueError: shapes differ, no track, scores not finite."""
    targets, scores = np.asarray(targets), np.asarray(scores)
    if targets.shape != scores.shape or targets.ndim != 2 or not len(targets):
        raise ValueError(f"targets {targets.shape} and scores {scores.shape}: expected the same")
    if not np.isfinite(scores).all():
        raise ValueError("scores have NaN or infinite values")
    return targets, scores


def rank(targets: np.ndarray, scores: np.ndarray) -> Ranking:
    """Sort tracks by scores [N, C] per label; targets [N, C] are 0 or 1 (see :func:`checked`)."""
    targets, scores = checked(targets, scores)
    falling = np.negative(scores.T, dtype=np.result_type(scores, np.float32), order="C")
    order = np.argsort(falling, axis=1)
    ranked = np.take_along_axis(falling, order, axis=1)
    last = np.ones(ranked.shape, bool)  # whether the next track has another score
    np.not_equal(ranked[:, :-1], ranked[:, 1:], out=last[:, :-1])
    positive = np.take_along_axis((targets > 0.5).T, order, axis=1)

    # Places run on from label to label here; no tie crosses labels, as `last` ends each of them.
    n_tracks = len(targets)
    pairs, ties = np.flatnonzero(positive), np.flatnonzero(last)
    label = pairs // n_tracks
    tie = np.searchsorted(ties, pairs)
    through = ties[tie] + 1
    before = np.where(tie > 0, ties[tie - 1] + 1, 0)
    first = label * n_tracks
    return Ranking(
        order,
        label,
        order.reshape(-1)[pairs],
        before - first,
        through - first,
        np.searchsorted(pairs, before),
        np.searchsorted(pairs, through),
        np.searchsorted(pairs, first),
    )


def ranked_figures(
    ranking: Ranking, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return average precision and ROC-AUC of each label: float64 [C]; NaN without both classes.

    ``weights`` [N], 0 or more, say how often each track counts, as in a bootstrap's resample.
    """
    n_labels, n_tracks = ranking.order.shape
    weights = np.ones(n_tracks) if weights is None else np.asarray(weights, np.float64)
    weight, total = weights[ranking.track], weights.sum()
    counted = np.zeros((n_labels, n_tracks + 1))  # the weight of the first 0, 1, … N tracks
    np.cumsum(weights[ranking.order], axis=1, out=counted[:, 1:])
    before = counted[ranking.label, ranking.before]
    through = counted[ranking.label, ranking.through]
    hits = np.concatenate([[0.0], np.cumsum(weight)])
    hits_before = hits[ranking.pairs_before] - hits[ranking.pairs_of_lower]
    hits_through = hits[ranking.pairs_through] - hits[ranking.pairs_of_lower]
    misses_before, misses_through = before - hits_before, through - hits_through

    def summed(values: np.ndarray) -> np.ndarray:
        return np.bincount(ranking.label, weights=weight * values, minlength=n_labels)

    positives = summed(np.ones(len(weight)))
    negatives = total - positives
    # A tie is one step of the precision-recall curve, and a straight line of the ROC curve.
    precision = np.divide(hits_through, through, out=np.zeros(len(weight)), where=through > 0)
    ranked_above = negatives[ranking.label] - (misses_before + misses_through) / 2
    known = (positives > 0) & (negatives > 1e-12 * total)  # fractions do not add up exactly
    ap, roc_auc = np.full(n_labels, np.nan), np.full(n_labels, np.nan)
    np.divide(summed(precision), positives, out=ap, where=known)
    np.divide(summed(ranked_above), positives * negatives, out=roc_auc, where=known)
    return ap, roc_auc
