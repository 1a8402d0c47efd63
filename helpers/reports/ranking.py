"""Average precision and ROC-AUC of many rankings at once, with a weight for each track.

They equal scikit-learn's ``average_precision_score`` and ``roc_auc_score``, ties included, from one
sort per label; all resamples of a bootstrap share that sort.
"""

from dataclasses import dataclass

import numpy as np

from maest.helpers.soft_labels import known, positive


@dataclass(frozen=True)
class Ranking:
    """Tracks per label, in the order of their scores, highest first.

    Tracks of equal score are a tie and count as one place. Places run on from label to label. Both
    metrics are sums over the P pairs of a track and one of its labels, in the order of places.
    """

    order: np.ndarray  # [C, N] the tracks' numbers
    label: np.ndarray  # [P] the label's number
    track: np.ndarray  # [P] the track's number
    # [3, P] the first place of the label, the first of the tie, and the first after the tie
    places: np.ndarray
    pairs: np.ndarray  # [3, P] how many pairs come before each of these places
    known: np.ndarray | None = None  # bool [C, N], as ``order``: the target is known; None: all are


def checked(targets: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both as arrays [N, C]. ValueError: shapes differ, no track, scores not finite."""
    targets, scores = np.asarray(targets), np.asarray(scores)
    if targets.shape != scores.shape or targets.ndim != 2 or not len(targets):
        raise ValueError(f"targets {targets.shape} and scores {scores.shape}: expected the same")
    if not np.isfinite(scores).all():
        raise ValueError("scores have NaN or infinite values")
    return targets, scores


def rank(targets: np.ndarray, scores: np.ndarray) -> Ranking:
    """Sort tracks by scores [N, C] per label (see :func:`checked`).

    Targets [N, C] are 0 or 1; soft ones are positive from 0.5 on. A track whose label is unknown
    (NaN) does not count for that label.
    """
    targets, scores = checked(targets, scores)
    falling = np.negative(scores.T, dtype=np.result_type(scores, np.float32), order="C")
    order = np.argsort(falling, axis=1)
    ranked = np.take_along_axis(falling, order, axis=1)
    last = np.ones(ranked.shape, bool)  # whether the next track has another score
    np.not_equal(ranked[:, :-1], ranked[:, 1:], out=last[:, :-1])
    # No tie crosses labels, as `last` ends each of them.
    after_ties = np.append(0, np.flatnonzero(last) + 1)
    pairs = np.flatnonzero(np.take_along_axis(positive(targets).T, order, axis=1))
    tie = np.searchsorted(after_ties, pairs, side="right")
    label = pairs // len(targets)
    places = np.stack([label * len(targets), after_ties[tie - 1], after_ties[tie]])
    track = order.reshape(-1)[pairs]
    are_known = known(targets)
    ranked_known = None if are_known.all() else np.take_along_axis(are_known.T, order, axis=1)
    return Ranking(order, label, track, places, np.searchsorted(pairs, places), ranked_known)


def ap_and_roc_auc(
    ranking: Ranking, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return average precision and ROC-AUC of each label: float64 [C]; NaN without both classes.

    ``weights`` [N], 0 or more, say how often each track counts, as in a bootstrap's resample.
    """
    n_labels, n_tracks = ranking.order.shape
    weights = np.ones(n_tracks) if weights is None else np.asarray(weights, np.float64)
    weight, total, ranked = weights[ranking.track], weights.sum(), weights[ranking.order]
    if ranking.known is not None:
        ranked *= ranking.known
        total = ranked.sum(axis=1)

    def summed(values: np.ndarray) -> np.ndarray:
        return np.bincount(ranking.label, weights=weight * values, minlength=n_labels)

    tracks_above, tracks = _sums(ranked, ranking.places)
    hits_above, hits = _sums(weight, ranking.pairs)
    positives = summed(np.ones(len(weight)))
    negatives = total - positives
    # A tie is one step of the precision-recall curve, and a straight line of the ROC curve.
    precision = np.divide(hits, tracks, out=np.zeros(len(weight)), where=tracks > 0)
    misses = (tracks_above - hits_above + tracks - hits) / 2
    scored = (positives > 0) & (negatives > 1e-12 * total)  # fractions do not add up exactly
    ap, roc_auc = np.full(n_labels, np.nan), np.full(n_labels, np.nan)
    np.divide(summed(precision), positives, out=ap, where=scored)
    ranked_above = summed(negatives[ranking.label] - misses)
    np.divide(ranked_above, positives * negatives, out=roc_auc, where=scored)
    return ap, roc_auc


def _sums(values: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Sum each pair's values from its label's first to its tie's first and last: [2, P]."""
    first, *others = np.append(0.0, np.cumsum(values))[ends]
    return np.array(others) - first
