"""What a task's metrics are, label by label, beside scikit-learn's; what their means leave out."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, mean_squared_error, r2_score

from maest.helpers.reports.metrics import evaluate

RNG = np.random.default_rng(3)
OUTPUTS = RNG.normal(size=(20, 4))


def test_regression_leaves_constant_targets_out():
    targets = RNG.normal(size=(20, 4))
    targets[:, 2] = 1.5
    result = evaluate("regression", targets, OUTPUTS)
    expected = r2_score(targets, OUTPUTS, multioutput="raw_values")
    expected[2] = np.nan
    mse = mean_squared_error(targets, OUTPUTS, multioutput="raw_values")
    np.testing.assert_allclose(result.per_label["r2"], expected, rtol=1e-12)
    np.testing.assert_allclose(result.per_label["mse"], mse, rtol=1e-12)
    assert result.figures == {
        "r2": pytest.approx(np.nanmean(expected)),
        "mse": pytest.approx(mse.mean()),
        "targets_left_out": 1.0,
    }
    assert result.left_out == 1


def test_labels_without_a_positive_are_left_out():
    targets = RNG.random((20, 4)) < 0.4
    targets[:, 1] = False
    result = evaluate("multi-label", targets, OUTPUTS)
    expected = [average_precision_score(targets[:, i], OUTPUTS[:, i]) for i in (0, 2, 3)]
    assert result.figures["ap"] == pytest.approx(np.mean(expected))
    assert (result.left_out, result.figures["classes_left_out"]) == (1, 1.0)


def test_one_label_a_track():
    true = RNG.integers(3, size=20)  # never class 3, which is predicted
    result = evaluate("single-label", np.eye(4)[true], OUTPUTS)
    predicted = OUTPUTS.argmax(axis=1)
    f1 = f1_score(true, predicted, average="macro", zero_division=0)
    assert result.figures == {
        "accuracy": (true == predicted).mean(),
        "macro_f1": pytest.approx(f1),
        "classes_left_out": 0.0,
    }
