"""The parts of the training recipe, each against an independent statement of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    mean_squared_error,
    r2_score,
    roc_auc_score,
)

from helpers.masking import spec_augment
from helpers.metrics import (
    FIGURE_NAMES,
    MONITOR,
    baseline,
    chance_scores,
    constant_scores,
    evaluate,
    tagging_scores,
)
from helpers.mixup import mixup
from helpers.schedules import warmup_ramp_factor
from models.maest import TASKS

PAPER = {"warmup_epochs": 5, "ramp_start": 50, "ramp_end": 100, "last_factor": 0.01}


@pytest.mark.parametrize(
    ("epoch", "factor"),
    [
        (0, math.exp(-5 * 0.9**2)),  # epochs count as at least 0.5
        (0.5, math.exp(-5 * 0.9**2)),
        (1, math.exp(-5 * 0.8**2)),
        (4, math.exp(-5 * 0.2**2)),
        (5, 1),
        (49, 1),
        (50, 1),
        (75, 0.505),
        (100, 0.01),
        (129, 0.01),
    ],
)
def test_schedule_of_the_paper(epoch, factor):
    assert warmup_ramp_factor(epoch, **PAPER) == pytest.approx(factor)


def test_schedule_without_warmup_or_ramp():
    flat = {"warmup_epochs": 0, "ramp_start": 10, "ramp_end": 10, "last_factor": 1}
    assert {warmup_ramp_factor(e, **flat) for e in range(30)} == {1}


def test_mixup_keeps_at_least_half_of_each_clip():
    torch.manual_seed(0)
    x = torch.eye(64).reshape(64, 8, 8)
    own_x, own_y = x.clone(), torch.eye(64)
    mixed, targets = mixup(x, own_y.clone(), alpha=0.3)
    torch.testing.assert_close(x, own_x)
    torch.testing.assert_close(mixed.reshape(64, 64), targets)  # one weight, one partner for both
    own = targets.diagonal()
    assert (own >= 0.5).all()
    torch.testing.assert_close(targets.sum(1), torch.ones(64))
    assert len(own.unique()) > 30  # a weight for each clip
    partners = targets - torch.diag(own)
    assert ((partners > 0).sum(1) <= 1).all()


def test_mixup_weights_follow_the_beta_distribution():
    torch.manual_seed(0)
    _, targets = mixup(torch.zeros(20_000, 1), torch.ones(20_000, 1), 0.3)
    torch.testing.assert_close(targets, torch.ones_like(targets))
    x = torch.zeros(20_000, 1)
    x[::2] = 1
    # Beta(0.3, 0.3) folded at a half: the mean of max(λ, 1 - λ) by simulation
    draws = np.random.default_rng(0).beta(0.3, 0.3, 200_000)
    expected = np.maximum(draws, 1 - draws).mean()
    mixed, _ = mixup(x, x, 0.3)
    # a clip of ones keeps λ, plus 1 - λ where its partner (every second time) is of ones too
    assert mixed[::2].mean() == pytest.approx(expected + (1 - expected) / 2, abs=0.01)


def test_mixup_off():
    x, y = torch.rand(4, 3), torch.rand(4, 2)
    assert mixup(x, y, 0) == (x, y)


def runs(hidden: np.ndarray) -> list[int]:
    """Lengths of the runs of True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], hidden.astype(int), [0]))))
    return (edges[1::2] - edges[::2]).tolist()


def test_one_mask_has_a_uniform_width_and_lies_anywhere():
    torch.manual_seed(0)
    masked = spec_augment(torch.ones(20_000, 4, 40), 1, 8, 0, 0)
    assert (masked == masked[:, :1]).all()  # a stripe of time covers all bands
    hidden = (masked[:, 0] == 0).numpy()
    widths = np.array([sum(runs(row)) for row in hidden])
    assert all(len(runs(row)) <= 1 for row in hidden[:500])
    counts = np.bincount(widths, minlength=8)
    assert len(counts) == 8  # 0 to 7
    assert np.abs(counts / len(hidden) - 1 / 8).max() < 0.01
    starts = np.bincount([row.argmax() for row in hidden[widths == 7]], minlength=34)
    assert len(starts) == 34
    assert (starts > 0).all()
    assert starts[0] == pytest.approx(starts.mean(), rel=0.4)


def test_masks_of_a_batch():
    torch.manual_seed(0)
    mel = torch.rand(32, 96, 312) + 1
    before = mel.clone()
    masked = spec_augment(mel, 20, 8, 8, 5)
    torch.testing.assert_close(mel, before)
    hidden = masked == 0
    torch.testing.assert_close(masked[~hidden], mel[~hidden])
    time, freq = hidden.all(1), hidden.all(2)
    assert (hidden == (time[:, None] | freq[:, :, None])).all()  # nothing but stripes
    assert len({tuple(row.tolist()) for row in time}) == 32  # each clip has its own
    assert (freq.sum(1) <= 8 * 4).all()
    # 20 masks of mean width 3.5 on 312 frames, overlapping at times
    assert time.float().mean() == pytest.approx(1 - (1 - 3.5 / 312) ** 20, abs=0.03)


def test_masks_off_and_wider_than_the_input():
    mel = torch.ones(2, 96, 20)
    assert spec_augment(mel, 0, 8, 0, 5) is mel
    assert spec_augment(torch.ones(500, 3, 4), 1, 100, 1, 100).shape == (500, 3, 4)


def test_metrics_equal_scikit_learn():
    rng = np.random.default_rng(0)
    targets, scores = rng.random((50, 6)) < 0.3, rng.random((50, 6))
    found = tagging_scores(targets, scores)
    assert found.macro_ap == pytest.approx(average_precision_score(targets, scores))
    assert found.macro_roc_auc == pytest.approx(roc_auc_score(targets, scores))
    assert found.left_out == 0


def test_classes_that_cannot_be_scored_are_left_out_and_counted():
    targets = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 1]])
    found = tagging_scores(targets, np.array([[0.9, 0.1, 0], [0.1, 0.2, 0], [0.8, 0, 0]]))
    assert found.left_out == 2
    assert (found.macro_ap, found.macro_roc_auc) == (1, 1)
    assert np.isnan(found.ap[1:]).all()
    assert np.isnan(tagging_scores(np.zeros((3, 1)), np.zeros((3, 1))).macro_ap)
    with pytest.raises(ValueError, match="NaN"):
        tagging_scores(targets, np.full((3, 3), np.nan))


def test_baselines():
    rng = np.random.default_rng(0)
    targets = rng.random((3000, 2)) < [0.1, 0.4]
    constant = constant_scores(targets, np.array([0.1, 0.4]))
    assert constant.macro_ap == pytest.approx(targets.mean())
    assert constant.macro_roc_auc == 0.5
    ap, roc_auc = chance_scores(targets, seed=1)
    assert (ap, roc_auc) == (pytest.approx(0.25, abs=0.02), pytest.approx(0.5, abs=0.02))


# --- Figures of any task ------------------------------------------------------------------------


def test_every_task_has_its_figures():
    assert set(MONITOR) == set(TASKS)
    one_hot = np.eye(3)[[0, 1, 2, 0]]
    for task in TASKS:
        found = evaluate(task, one_hot, one_hot)
        assert found.figures[MONITOR[task]] == 1
        assert set(found.figures) - {"classes_left_out", "targets_left_out"} <= set(FIGURE_NAMES)
        assert found.left_out == 0
        assert all(values.shape == (3,) for values in found.per_label.values())
        with pytest.raises(ValueError, match="NaN or infinite"):
            evaluate(task, one_hot, np.full((4, 3), np.inf))
        with pytest.raises(ValueError, match="expected the same"):
            evaluate(task, one_hot, one_hot[:, :2])
    with pytest.raises(ValueError, match="task is 'tagging'"):
        evaluate("tagging", one_hot, one_hot)


def test_multi_label_figures_are_the_tagging_scores():
    rng = np.random.default_rng(0)
    targets, scores = rng.random((50, 6)) < 0.3, rng.random((50, 6))
    targets[:, 2] = False
    found, expected = evaluate("multi-label", targets, scores), tagging_scores(targets, scores)
    ap, roc_auc = expected.macro_ap, expected.macro_roc_auc
    assert found.figures == {"ap": ap, "roc_auc": roc_auc, "classes_left_out": 1}
    np.testing.assert_array_equal(found.per_label["ap"], expected.ap)
    np.testing.assert_array_equal(found.per_label["roc_auc"], expected.roc_auc)


def test_single_label_figures_equal_scikit_learn():
    rng = np.random.default_rng(0)
    true, guess = rng.integers(0, 4, 60), rng.integers(0, 4, 60)
    scores = rng.random((60, 6)) * 0.5 + np.eye(6)[np.where(rng.random(60) < 0.5, true, guess)]
    predicted = scores.argmax(1)
    assert set(true) == set(predicted) == set(range(4))  # classes 4 and 5 are nowhere
    found = evaluate("single-label", np.eye(6)[true], scores)
    assert found.figures["accuracy"] == pytest.approx(accuracy_score(true, predicted))
    assert found.figures["macro_f1"] == pytest.approx(f1_score(true, predicted, average="macro"))
    assert found.left_out == found.figures["classes_left_out"] == 2
    np.testing.assert_allclose(found.per_label["f1"][:4], f1_score(true, predicted, average=None))
    assert np.isnan([values[4:] for values in found.per_label.values()]).all()


def test_single_label_figures_by_hand():
    # class 0 is never predicted, class 2 is never a target; class 3 is neither
    found = evaluate("single-label", np.eye(4)[[0, 1, 1, 1]], np.eye(4)[[1, 1, 1, 2]])
    np.testing.assert_allclose(found.per_label["precision"], [np.nan, 2 / 3, 0, np.nan])
    np.testing.assert_allclose(found.per_label["recall"], [0, 2 / 3, np.nan, np.nan])
    np.testing.assert_allclose(found.per_label["f1"], [0, 2 / 3, 0, np.nan])
    assert found.figures["accuracy"] == 0.5
    assert found.figures["macro_f1"] == pytest.approx(2 / 9)


def test_regression_figures_equal_scikit_learn():
    rng = np.random.default_rng(0)
    targets = (rng.standard_normal((40, 3)) * [1, 20, 300] + [0, 5, 1000]).astype(np.float32)
    outputs = (targets + rng.standard_normal((40, 3)) * [0.5, 40, 100]).astype(np.float32)
    found = evaluate("regression", targets, outputs)
    assert found.figures["r2"] == pytest.approx(r2_score(targets, outputs), rel=1e-5)
    assert found.figures["mse"] == pytest.approx(mean_squared_error(targets, outputs), rel=1e-5)
    assert found.per_label["r2"][1] < 0  # worse than the mean: no error, and no zero
    each = mean_squared_error(targets, outputs, multioutput="raw_values")
    np.testing.assert_allclose(found.per_label["mse"], each, rtol=1e-5)


def test_targets_that_do_not_vary_are_left_out_and_counted():
    targets = np.array([[1.0, 7.0], [2.0, 7.0], [3.0, 7.0]])
    found = evaluate("regression", targets, np.array([[1.0, 6.0], [2.0, 7.0], [3.0, 8.0]]))
    assert found.figures == {"r2": 1, "mse": pytest.approx(1 / 3), "targets_left_out": 1}
    np.testing.assert_array_equal(found.per_label["r2"], [1, np.nan])
    alone = evaluate("regression", targets[:1], targets[:1])
    assert alone.left_out == 2
    assert np.isnan(alone.figures["r2"])


def test_baselines_of_each_task():
    rng = np.random.default_rng(0)
    train, targets = rng.random((500, 3)) < [0.1, 0.5, 0.3], rng.random((400, 3)) < 0.4
    found = baseline("multi-label", train, targets)
    assert found.figures["ap"] == pytest.approx(targets.mean())
    assert found.figures["roc_auc"] == 0.5
    train, own = np.eye(3)[[0, 1, 1, 2, 1]].astype(np.uint8), np.eye(3)[[0, 1, 2, 1]]
    assert baseline("single-label", train, own).figures["accuracy"] == 0.5
    train, own = np.array([[1.0], [2.0], [6.0]]), np.array([[2.0], [4.0]])
    found = baseline("regression", train, own).figures
    assert found == {"r2": pytest.approx(0), "mse": pytest.approx(1), "targets_left_out": 0}
