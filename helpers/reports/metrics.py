"""Metrics of multi-label, single-label (one label per track) and regression tasks."""

import math
from dataclasses import dataclass

import numpy as np

from maest.helpers import soft_labels
from maest.helpers.reports.ranking import ap_and_roc_auc, checked, rank

# The two figures that a report shows. The first one ranks models; higher is better.
SHOWN = {
    "multi-label": ("ap", "roc_auc"),
    "single-label": ("accuracy", "macro_f1"),
    "regression": ("r2", "mse"),
}
MONITOR = {task: first for task, (first, _) in SHOWN.items()}
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

    # Those of SHOWN, and classes_left_out, of a regression targets_left_out. All but accuracy are
    # means over the labels that can be scored; NaN if none can.
    figures: dict[str, float]
    # float64 [C] of ap, roc_auc; precision, recall, f1; or r2, mse. NaN: nothing to score
    per_label: dict[str, np.ndarray]
    left_out: int = 0  # number of labels or targets that the means leave out


def evaluate(task: str, targets: np.ndarray, outputs: np.ndarray) -> Evaluation:
    """Score the outputs [N, C] for N tracks with targets [N, C].

    Outputs are regression values, or activations, of which only the order counts (within a label,
    or within a track of a single-label task). The means leave out, and count: labels without a
    positive or a negative (multi-label); classes neither a target nor predicted (F1, single-label);
    constant targets (R², regression). Multi-label targets may be soft or NaN: see
    :func:`ranking.rank`. ValueError: another task, other shapes, non-finite outputs.
    """
    targets, outputs = checked(targets, outputs)
    figures: dict[str, float] = {}
    if task == "multi-label":
        ap, roc_auc = ap_and_roc_auc(rank(targets, outputs))
        per_label, scored = {"ap": ap, "roc_auc": roc_auc}, ap
    elif task == "single-label":
        from sklearn.metrics import precision_recall_fscore_support  # takes a second to import

        true, predicted = targets.argmax(axis=1), outputs.argmax(axis=1)
        precision, recall, scored, _ = precision_recall_fscore_support(
            true, predicted, labels=np.arange(targets.shape[1]), zero_division=np.nan
        )
        figures["accuracy"] = float((true == predicted).mean())
        per_label = {"precision": precision, "recall": recall, "f1": scored}
    elif task == "regression":
        targets, outputs = targets.astype(np.float64), outputs.astype(np.float64)
        mse, varies = ((targets - outputs) ** 2).mean(axis=0), (targets != targets[0]).any(axis=0)
        scored = np.full(len(mse), np.nan)
        scored[varies] = 1 - mse[varies] / targets[:, varies].var(axis=0)
        per_label = {"r2": scored, "mse": mse}
    else:
        raise ValueError(f"task is {task!r}: expected one of {tuple(SHOWN)}")
    for name in SHOWN[task]:
        if name != "accuracy":
            figures[name] = mean_of_scored(per_label[name.removeprefix("macro_")])
    left_out = int(np.isnan(scored).sum())
    figures[f"{'targets' if task == 'regression' else 'classes'}_left_out"] = float(left_out)
    return Evaluation(figures, per_label, left_out)


def mean_of_scored(values: np.ndarray) -> float:
    """Return the mean of the values that are not NaN; NaN if all are."""
    return math.nan if np.isnan(values).all() else float(np.nanmean(values))


def baseline(task: str, train_targets: np.ndarray, targets: np.ndarray) -> Evaluation:
    """Score the constant answer that fits training targets [M, C] best, on targets [N, C].

    It is the labels' frequencies, the most frequent class, or the means of regression targets.
    """
    answer = soft_labels.means(np.asarray(train_targets))
    return evaluate(task, targets, np.broadcast_to(answer, np.shape(targets)))


def chance_scores(targets: np.ndarray, seed: int = 0, draws: int = 20) -> tuple[float, float]:
    """Return macro AP and macro ROC-AUC of random scores, as means over ``draws``."""
    rng = np.random.default_rng(seed)
    runs = [evaluate("multi-label", targets, rng.random(np.shape(targets))) for _ in range(draws)]
    ap, roc_auc = ([run.figures[name] for run in runs] for name in ("ap", "roc_auc"))
    return float(np.mean(ap)), float(np.mean(roc_auc))
