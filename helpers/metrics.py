"""Figures of merit for multi-label tagging, as scikit-learn computes them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score


@dataclass(frozen=True)
class TaggingScores:
    """Average precision and ROC-AUC of each class; NaN for classes that were left out."""

    ap: np.ndarray  # [C]
    roc_auc: np.ndarray  # [C]

    @property
    def left_out(self) -> int:
        """Classes without a positive (or without a negative) among the targets."""
        return int(np.isnan(self.ap).sum())

    @property
    def macro_ap(self) -> float:
        """Mean over the classes that count; NaN if none does."""
        return _mean(self.ap)

    @property
    def macro_roc_auc(self) -> float:
        """Mean over the classes that count; NaN if none does."""
        return _mean(self.roc_auc)


def _mean(values: np.ndarray) -> float:
    counted = values[~np.isnan(values)]
    return float(counted.mean()) if len(counted) else float("nan")


def tagging_scores(targets: np.ndarray, scores: np.ndarray) -> TaggingScores:
    """Score predictions class by class.

    Args:
        targets: [N, C] of 0 and 1.
        scores: [N, C] floats; only their order within a class matters.

    Raises:
        ValueError: if the shapes differ, or a score is not finite.
    """
    targets, scores = np.asarray(targets), np.asarray(scores)
    if targets.shape != scores.shape or targets.ndim != 2:
        raise ValueError(f"targets {targets.shape} and scores {scores.shape}: expected the same")
    if not np.isfinite(scores).all():
        raise ValueError("scores have NaN or infinite values")
    targets = targets > 0.5
    positives = targets.sum(axis=0)
    counted = (positives > 0) & (positives < len(targets))
    ap = np.full(targets.shape[1], np.nan)
    roc_auc = ap.copy()
    for c in np.flatnonzero(counted):
        ap[c] = average_precision_score(targets[:, c], scores[:, c])
        roc_auc[c] = roc_auc_score(targets[:, c], scores[:, c])
    return TaggingScores(ap, roc_auc)


def chance_scores(targets: np.ndarray, seed: int = 0, draws: int = 20) -> tuple[float, float]:
    """What random scores get on these targets: mean (macro AP, macro ROC-AUC) over ``draws``."""
    rng = np.random.default_rng(seed)
    shape = np.shape(targets)
    runs = [tagging_scores(targets, rng.random(shape)) for _ in range(draws)]
    ap = np.mean([run.macro_ap for run in runs])
    return float(ap), float(np.mean([run.macro_roc_auc for run in runs]))


def constant_scores(targets: np.ndarray, frequencies: np.ndarray) -> TaggingScores:
    """What predicting each label's training frequency for every input gets on these targets."""
    return tagging_scores(targets, np.broadcast_to(frequencies, np.shape(targets)))
