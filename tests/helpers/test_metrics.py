"""Metrics of each task beside scikit-learn's, what their means leave out, and baselines."""

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    mean_squared_error,
    r2_score,
    roc_auc_score,
)

from maest.helpers.reports.metrics import FIGURE_NAMES, MONITOR, baseline, chance_scores, evaluate
from maest.models.sizes import TASKS


def assert_approx(found: dict[str, float], expected: dict[str, float]) -> None:
    assert found == {name: pytest.approx(v, rel=1e-5, abs=1e-7) for name, v in expected.items()}


def test_multi_label_figures_equal_scikit_learn():
    rng = np.random.default_rng(0)
    targets, scores = rng.random((50, 6)) < 0.3, rng.random((50, 6))
    expected = {"ap": average_precision_score(targets, scores), "classes_left_out": 0}
    expected["roc_auc"] = roc_auc_score(targets, scores)
    assert_approx(evaluate("multi-label", targets, scores).figures, expected)


def test_single_label_figures_equal_scikit_learn():
    rng = np.random.default_rng(0)
    true, guess = rng.integers(0, 4, 60), rng.integers(0, 4, 60)
    scores = rng.random((60, 6)) * 0.5 + np.eye(6)[np.where(rng.random(60) < 0.5, true, guess)]
    predicted = scores.argmax(1)
    assert set(true) == set(predicted) == set(range(4))  # classes 4 and 5 are nowhere
    found = evaluate("single-label", np.eye(6)[true], scores)
    expected = {"accuracy": accuracy_score(true, predicted), "classes_left_out": 2}
    expected["macro_f1"] = f1_score(true, predicted, average="macro")
    assert_approx(found.figures, expected)
    assert found.left_out == 2
    np.testing.assert_allclose(found.per_label["f1"][:4], f1_score(true, predicted, average=None))
    assert np.isnan([values[4:] for values in found.per_label.values()]).all()


def test_regression_figures_equal_scikit_learn():
    rng = np.random.default_rng(0)
    targets = (rng.standard_normal((40, 3)) * [1, 20, 300] + [0, 5, 1000]).astype(np.float32)
    outputs = (targets + rng.standard_normal((40, 3)) * [0.5, 40, 100]).astype(np.float32)
    found = evaluate("regression", targets, outputs)
    expected = {"r2": r2_score(targets, outputs), "mse": mean_squared_error(targets, outputs)}
    assert_approx(found.figures, expected | {"targets_left_out": 0})
    assert found.per_label["r2"][1] < 0  # worse than the mean: no error, and no zero
    each = mean_squared_error(targets, outputs, multioutput="raw_values")
    np.testing.assert_allclose(found.per_label["mse"], each, rtol=1e-5)


def test_labels_that_cannot_be_scored_are_left_out_and_counted():
    targets = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 1]])
    found = evaluate("multi-label", targets, np.array([[0.9, 0.1, 0], [0.1, 0.2, 0], [0.8, 0, 0]]))
    assert found.figures == {"ap": 1, "roc_auc": 1, "classes_left_out": 2}
    assert np.isnan(found.per_label["ap"][1:]).all()
    assert np.isnan(evaluate("multi-label", np.zeros((3, 1)), np.zeros((3, 1))).figures["ap"])
    # class 0 is never predicted, class 2 is never a target; class 3 is neither
    found = evaluate("single-label", np.eye(4)[[0, 1, 1, 1]], np.eye(4)[[1, 1, 1, 2]])
    np.testing.assert_allclose(found.per_label["precision"], [np.nan, 2 / 3, 0, np.nan])
    np.testing.assert_allclose(found.per_label["recall"], [0, 2 / 3, np.nan, np.nan])
    np.testing.assert_allclose(found.per_label["f1"], [0, 2 / 3, 0, np.nan])
    assert_approx(found.figures, {"accuracy": 0.5, "macro_f1": 2 / 9, "classes_left_out": 1})
    targets = np.array([[1.0, 7.0], [2.0, 7.0], [3.0, 7.0]])
    found = evaluate("regression", targets, np.array([[1.0, 6.0], [2.0, 7.0], [3.0, 8.0]]))
    assert_approx(found.figures, {"r2": 1, "mse": 1 / 3, "targets_left_out": 1})
    np.testing.assert_array_equal(found.per_label["r2"], [1, np.nan])
    alone = evaluate("regression", targets[:1], targets[:1])
    assert (alone.left_out, np.isnan(alone.figures["r2"])) == (2, True)


def test_every_task_has_its_figures():
    assert set(MONITOR) == set(TASKS)
    one_hot = np.eye(3)[[0, 1, 2, 0]]
    for task in TASKS:
        found = evaluate(task, one_hot, one_hot)
        assert found.figures[MONITOR[task]] == 1
        assert set(found.figures) - {"classes_left_out", "targets_left_out"} <= set(FIGURE_NAMES)
        assert (found.left_out, {len(v) for v in found.per_label.values()}) == (0, {3})
        for outputs in (np.full((4, 3), np.inf), one_hot[:, :2]):
            with pytest.raises(ValueError, match=r"NaN or infinite|expected the same"):
                evaluate(task, one_hot, outputs)
    with pytest.raises(ValueError, match="'tagging'"):
        evaluate("tagging", one_hot, one_hot)


def test_baselines_of_each_task():
    rng = np.random.default_rng(0)
    train, targets = rng.random((500, 3)) < [0.1, 0.5, 0.3], rng.random((3000, 3)) < 0.4
    found = baseline("multi-label", train, targets).figures
    assert_approx(found, {"ap": targets.mean(), "roc_auc": 0.5, "classes_left_out": 0})
    chance = chance_scores(targets, seed=1)
    assert chance == (pytest.approx(0.4, abs=0.02), pytest.approx(0.5, abs=0.02))
    train, own = np.eye(3)[[0, 1, 1, 2, 1]].astype(np.uint8), np.eye(3)[[0, 1, 2, 1]]
    assert baseline("single-label", train, own).figures["accuracy"] == 0.5
    train, own = np.array([[1.0], [2.0], [6.0]]), np.array([[2.0], [4.0]])
    found = baseline("regression", train, own).figures
    assert_approx(found, {"r2": 0, "mse": 1, "targets_left_out": 0})
