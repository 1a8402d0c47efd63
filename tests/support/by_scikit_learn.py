"""Metrics by scikit-learn: label by label where targets are unknown or tracks have weights."""

import numpy as np
from sklearn import metrics as sk


def ranked(targets: np.ndarray, scores: np.ndarray, weights=None) -> np.ndarray:
    """AP and ROC-AUC [2, C] over a label's known tracks; NaN without a positive or a negative."""
    weights = np.ones(len(targets)) if weights is None else np.asarray(weights, float)
    values = []
    for y, z in zip(targets.T.astype(float), scores.T.astype(float), strict=True):
        used = ~np.isnan(y) & (weights > 0)
        y, z, w = y[used] >= 0.5, z[used], weights[used]
        both = 0 < y.sum() < len(y)
        functions = sk.average_precision_score, sk.roc_auc_score
        values.append([f(y, z, sample_weight=w) if both else np.nan for f in functions])
    return np.array(values).T


def figures(task: str, y: np.ndarray, z: np.ndarray, label: int | None = None) -> dict[str, float]:
    """Metrics of targets and outputs [N, C], of all labels or of one; NaN is unknown."""
    if task == "single-label":
        y, z = y.argmax(1), z.argmax(1)
        if label is None:
            f1 = sk.f1_score(y, z, average="macro")
            return {"accuracy": sk.accuracy_score(y, z), "macro_f1": f1}
        scores = {"precision": sk.precision_score, "recall": sk.recall_score, "f1": sk.f1_score}
        return {k: score(y == label, z == label, zero_division=0) for k, score in scores.items()}
    y, z = y.astype(float), z.astype(float)
    if label is not None:
        y, z = y[:, [label]], z[:, [label]]
    if task == "multi-label":
        return dict(zip(("ap", "roc_auc"), ranked(y, z).mean(axis=1), strict=True))
    return {"r2": sk.r2_score(y, z), "mse": sk.mean_squared_error(y, z)}
