"""Metrics of multi-label, single-label (one label per track) and regression tasks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from maest.helpers.reports.ranking import checked, rank, ranked_figures

# The figure that ranks models; higher is better
MONITOR = {"multi-label": "ap", "single-label": "accuracy", "regression": "r2"}
# The two figures that a report shows
SHOWN = {
    "multi-label": ("ap", "roc_auc"),
    "single-label": ("accuracy", "macro_f1"),
    "regression": ("r2", "mse"),
}
# The least and greatest values of a figure
BOUNDS = {
    **dict.fromkeys(("ap", "roc_auc", "accuracy", "macro_f1"), (0.0, 1.0)),
    "r2": (-math.inf, 1.0),
    "mse": (0.0, math.inf),
}
# A report's names of :func:`baseline`
BASELINES = {
    "multi-label": "label_frequencies",
    "single-label": "most_frequent_class",
    "regression": "training_mean",
}
# Names of figures for people
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
    """Scores of outputs against targets."""

    # Multi-label: ap, roc_auc; single-label: accuracy, macro_f1; regression: r2, mse; and
    # classes_left_out, of a regression targets_left_out. All but accuracy are means over the labels
    # that can be scored; NaN if none can.
    figures: dict[str, float]
    # float64 [C] of ap, roc_auc; precision, recall, f1; or r2, mse. NaN: nothing to score
    per_label: dict[str, np.ndarray]

    @property
    def left_out(self) -> int:
        """Number of labels or targets that the means leave out."""
        return int(next(v for name, v in self.figures.items() if name.endswith("_left_out")))


def evaluate(task: str, targets: np.ndarray, outputs: np.ndarray) -> Evaluation:
    """Score the outputs [N, C] for N tracks with targets [N, C].

    Outputs are regression values, or activations, of which only the order counts (within a label,
    or within a track of a single-label task). The means leave out, and count: labels without a
    positive or a negative (multi-label); classes neither a target nor predicted (F1, single-label);
    constant targets (R², regression). ValueError: another task, other shapes, non-finite outputs.
    """
    targets, outputs = checked(targets, outputs)
    if task == "multi-label":
        ap, roc_auc = ranked_figures(rank(targets, outputs))
        per_label = {"ap": ap, "roc_auc": roc_auc}
        figures, scored = {name: mean_of_scored(v) for name, v in per_label.items()}, "ap"
    elif task == "single-label":
        from sklearn.metrics import precision_recall_fscore_support  # takes a second to import

        true, predicted = targets.argmax(axis=1), outputs.argmax(axis=1)
        classes = np.arange(targets.shape[1])
        of_classes = precision_recall_fscore_support(
            true, predicted, labels=classes, average=None, zero_division=np.nan
        )
        per_label = dict(zip(("precision", "recall", "f1"), of_classes[:3], strict=True))
        figures = {"accuracy": float((true == predicted).mean())}
        figures["macro_f1"], scored = mean_of_scored(per_label["f1"]), "f1"
    elif task == "regression":
        from sklearn.metrics import r2_score

        targets, outputs = targets.astype(np.float64), outputs.astype(np.float64)
        r2, varies = np.full(targets.shape[1], np.nan), (targets != targets[:1]).any(axis=0)
        if varies.any():
            r2[varies] = r2_score(targets[:, varies], outputs[:, varies], multioutput="raw_values")
        per_label = {"r2": r2, "mse": ((targets - outputs) ** 2).mean(axis=0)}
        figures, scored = {name: mean_of_scored(v) for name, v in per_label.items()}, "r2"
    else:
        raise ValueError(f"task is {task!r}: expected one of {tuple(SHOWN)}")
    left_out = "targets_left_out" if task == "regression" else "classes_left_out"
    figures[left_out] = float(np.isnan(per_label[scored]).sum())
    return Evaluation(figures, per_label)


def mean_of_scored(values: np.ndarray) -> float:
    """Return the mean of the values that are not NaN; NaN if all are."""
    return math.nan if np.isnan(values).all() else float(np.nanmean(values))


def baseline(task: str, train_targets: np.ndarray, targets: np.ndarray) -> Evaluation:
    """Score the constant answer that fits training targets [M, C] best, on targets [N, C].

    It is the labels' frequencies, the most frequent class, or the means of regression targets.
    """
    answer = np.asarray(train_targets).mean(axis=0, dtype=np.float64)
    return evaluate(task, targets, np.broadcast_to(answer, np.shape(targets)))


def chance_scores(targets: np.ndarray, seed: int = 0, draws: int = 20) -> tuple[float, float]:
    """Return macro AP and macro ROC-AUC of random scores, as means over ``draws``."""
    rng = np.random.default_rng(seed)
    runs = [evaluate("multi-label", targets, rng.random(np.shape(targets))) for _ in range(draws)]
    ap, roc_auc = ([run.figures[name] for run in runs] for name in ("ap", "roc_auc"))
    return float(np.mean(ap)), float(np.mean(roc_auc))
