"""The thresholds of labels, beside every threshold there could be."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from maest.helpers.reports.thresholds import FEWEST, best_thresholds


def brute_force(positives: np.ndarray, scores: np.ndarray) -> float:
    """The best F1 of any threshold."""
    positives, above = positives >= 0.5, scores >= scores[:, None]  # [thresholds, tracks]
    return (2 * (above & positives).sum(1) / (above.sum(1) + positives.sum())).max()


@pytest.mark.parametrize("digits", [1, 2, 9])  # with one digit, nearly all scores are ties
def test_no_threshold_has_a_better_f1(digits):
    rng = np.random.default_rng(digits)
    targets = (rng.random((200, 6)) < np.linspace(0.1, 0.9, 6)).astype(np.float32)
    scores = (targets * 0.3 + rng.random((200, 6)) * 0.7).round(digits).astype(np.float32)
    thresholds = best_thresholds(targets, scores)
    for threshold, y, x in zip(thresholds, targets.T, scores.T, strict=True):
        assert f1_score(y, x >= threshold) == pytest.approx(brute_force(y, x))
        assert threshold == x.min() or threshold not in x


def test_unknown_targets_take_no_part_and_soft_ones_are_positive_from_a_half_on():
    rng = np.random.default_rng(0)
    values = rng.choice([0, 0.25, 0.5, 0.75, 1, np.nan], (300, 2)).astype(np.float32)
    scores = rng.random((300, 2)).astype(np.float32)
    for threshold, y, x in zip(best_thresholds(values, scores), values.T, scores.T, strict=True):
        x, y = x[~np.isnan(y)], y[~np.isnan(y)] >= 0.5
        assert f1_score(y, x >= threshold) == pytest.approx(brute_force(y, x))


def test_a_separable_label_gets_the_middle_of_the_gap():
    targets = np.repeat([[1], [0]], 20, axis=0)
    assert best_thresholds(targets, np.where(targets, 0.75, 0.25)) == [0.5]


def test_labels_with_few_positives_have_none():
    targets = np.zeros((40, 4), np.float32)
    targets[:FEWEST, 0] = targets[: FEWEST - 1, 1] = targets[:, 3] = 1
    targets[FEWEST - 1 :, 1] = np.nan
    scores = np.linspace(1, 0.25, 40)[:, None].repeat(4, axis=1)
    first, *few, everywhere = best_thresholds(targets, scores)
    assert scores[FEWEST - 1, 0] > first > scores[FEWEST, 0]
    assert few == [None, None]
    assert everywhere == 0.25  # of a label that all tracks have, the lowest score
    assert best_thresholds(targets[:, 1:3], scores[:, 1:3]) is None


def test_of_equal_ones_the_highest():
    """10 of 10 with the first ten; with all thirty, precision and recall change places."""
    targets = np.repeat([1, 0, 1], 10)[:, None]
    scores = np.repeat([0.9, 0.6, 0.3], 10)[:, None]
    # F1 of the first ten: 2 · 10 / (10 + 20) = 2/3; of all: 2 · 20 / (30 + 20) = 4/5
    assert best_thresholds(targets, scores) == [0.3]
    targets = np.repeat([1, 0, 1], [10, 20, 10])[:, None]
    scores = np.repeat([0.9, 0.6, 0.3], [10, 20, 10])[:, None]
    # 2 · 10 / (10 + 20) = 2/3, and 2 · 20 / (40 + 20) = 2/3
    assert best_thresholds(targets, scores) == [pytest.approx(0.75)]
