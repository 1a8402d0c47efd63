"""Metrics of each task, as scikit-learn computes them.

:func:`evaluate` is the one door for all tasks: "multi-label" (any number of labels to a track),
"single-label" (exactly one) and "regression" (real values).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import (
    accuracy_score,
    precision_recall_fscore_support,
    r2_score,
)

from maest.helpers.ranking import rank, ranked_figures

# The figure that says which of two models is the better one; more is better.
MONITOR = {"multi-label": "ap", "single-label": "accuracy", "regression": "r2"}
# The two figures that a report shows
SHOWN = {
    "multi-label": ("ap", "roc_auc"),
    "single-label": ("accuracy", "macro_f1"),
    "regression": ("r2", "mse"),
}
# The least and the most that a figure can be
BOUNDS = {
    **dict.fromkeys(("ap", "roc_auc", "accuracy", "macro_f1"), (0.0, 1.0)),
    "r2": (-math.inf, 1.0),
    "mse": (0.0, math.inf),
}
# What a report calls the one answer for every input (:func:`baseline`)
BASELINES = {
    "multi-label": "label_frequencies",
    "single-label": "most_frequent_class",
    "regression": "training_mean",
}
# How a figure is called where people read it.
FIGURE_NAMES = {
    "loss": "loss",
    "ap": "AP",
    "roc_auc": "ROC-AUC",
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "f1": "F1",
    "r2": "R²",
    "mse": "MSE",
}


@dataclass(frozen=True)
class Evaluation:
    """How well outputs fit targets.

    Attributes:
        figures: of the whole. Multi-label: ``ap``, ``roc_auc`` (means over the labels),
            ``classes_left_out``; single-label: ``accuracy``, ``macro_f1``, ``classes_left_out``;
            regression: ``r2``, ``mse`` (means over the targets), ``targets_left_out``. A mean is
            over the labels or targets that count; NaN if none does.
        per_label: float64 [C] each, NaN where there is nothing to score. Multi-label: ``ap``,
            ``roc_auc``; single-label: ``precision``, ``recall``, ``f1``; regression: ``r2``,
            ``mse``.
    """

    figures: dict[str, float]
    per_label: dict[str, np.ndarray]

    @property
    def left_out(self) -> int:
        """Labels or targets that the means leave out."""
        return int(next(v for name, v in self.figures.items() if name.endswith("_left_out")))


def evaluate(task: str, targets: np.ndarray, outputs: np.ndarray) -> Evaluation:
    """Score the outputs for N tracks.

    Left out of the means, and counted, are: labels without a positive or without a negative
    (multi-label); classes that are neither a target nor predicted (F1 of single-label); targets
    that are the same for all tracks (R² of regression).

    Args:
        task: "multi-label", "single-label" or "regression".
        targets: [N, C]: any number of ones, exactly one, or real values.
        outputs: [N, C]: activations, or the values themselves. Only their order within a label
            (multi-label) or within a track (single-label) matters.

    Raises:
        ValueError: for another task, shapes that differ, or outputs that are not finite.
    """
    if task not in _EVALUATE:
        raise ValueError(f"task is {task!r}: expected one of {tuple(_EVALUATE)}")
    return _EVALUATE[task](*_checked(targets, outputs))


def baseline(task: str, train_targets: np.ndarray, targets: np.ndarray) -> Evaluation:
    """What one answer for every input gets: the best one that the training targets tell.

    Multi-label: the labels' frequencies; single-label: the most frequent class; regression: the
    means.

    Args:
        task: as :func:`evaluate`.
        train_targets: [M, C] that the answer is made from.
        targets: [N, C] that it is scored on.
    """
    answer = np.asarray(train_targets).mean(axis=0, dtype=np.float64)
    return evaluate(task, targets, np.broadcast_to(answer, np.shape(targets)))


def _checked(targets: np.ndarray, outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    targets, outputs = np.asarray(targets), np.asarray(outputs)
    if targets.shape != outputs.shape or targets.ndim != 2:
        raise ValueError(f"targets {targets.shape} and scores {outputs.shape}: expected the same")
    if not np.isfinite(outputs).all():
        raise ValueError("scores have NaN or infinite values")
    return targets, outputs


def _evaluate_multi_label(targets: np.ndarray, outputs: np.ndarray) -> Evaluation:
    ap, roc_auc = ranked_figures(rank(targets, outputs))
    figures = {
        "ap": _mean(ap),
        "roc_auc": _mean(roc_auc),
        "classes_left_out": float(np.isnan(ap).sum()),
    }
    return Evaluation(figures, {"ap": ap, "roc_auc": roc_auc})


def _evaluate_single_label(targets: np.ndarray, outputs: np.ndarray) -> Evaluation:
    true, predicted = targets.argmax(axis=1), outputs.argmax(axis=1)
    precision, recall, f1, _ = precision_recall_fscore_support(
        true, predicted, labels=np.arange(targets.shape[1]), average=None, zero_division=np.nan
    )
    figures = {
        "accuracy": float(accuracy_score(true, predicted)),
        "macro_f1": _mean(f1),
        "classes_left_out": float(np.isnan(f1).sum()),
    }
    return Evaluation(figures, {"precision": precision, "recall": recall, "f1": f1})


def _evaluate_regression(targets: np.ndarray, outputs: np.ndarray) -> Evaluation:
    targets, outputs = targets.astype(np.float64), outputs.astype(np.float64)
    mse = ((targets - outputs) ** 2).mean(axis=0)
    r2 = np.full(targets.shape[1], np.nan)
    varies = (targets != targets[:1]).any(axis=0)
    if varies.any():
        r2[varies] = r2_score(targets[:, varies], outputs[:, varies], multioutput="raw_values")
    figures = {
        "r2": _mean(r2),
        "mse": float(mse.mean()),
        "targets_left_out": float(np.isnan(r2).sum()),
    }
    return Evaluation(figures, {"r2": r2, "mse": mse})


_EVALUATE = {
    "multi-label": _evaluate_multi_label,
    "single-label": _evaluate_single_label,
    "regression": _evaluate_regression,
}


def _mean(values: np.ndarray) -> float:
    """Of what can be scored; NaN if nothing can."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def chance_scores(targets: np.ndarray, seed: int = 0, draws: int = 20) -> tuple[float, float]:
    """What random scores get on these targets: mean (macro AP, macro ROC-AUC) over ``draws``."""
    rng = np.random.default_rng(seed)
    runs = [evaluate("multi-label", targets, rng.random(np.shape(targets))) for _ in range(draws)]
    ap, roc_auc = ([run.figures[name] for run in runs] for name in ("ap", "roc_auc"))
    return float(np.mean(ap)), float(np.mean(roc_auc))
