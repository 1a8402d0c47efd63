"""Soft and unknown labels in counts, baselines, and metrics: each label over its known tracks."""

import numpy as np
import pytest
from by_scikit_learn import ranked

from maest.helpers.reports.bootstrap import resampled_figures
from maest.helpers.reports.metrics import baseline, chance_scores, evaluate
from maest.helpers.reports.ranking import ap_and_roc_auc, rank
from maest.helpers.soft_labels import counted, known, means, negative, positive

NAN = np.nan
TARGETS = np.array([[1, 0.5, NAN], [0, 0.49, NAN], [NAN, 0.9, NAN], [1, 0, NAN]], np.float32)


def test_positive_negative_or_unknown():
    assert positive(TARGETS).sum(axis=0).tolist() == [2, 2, 0]
    assert negative(TARGETS).sum(axis=0).tolist() == [1, 2, 0]
    assert (positive(TARGETS) | negative(TARGETS)).tolist() == known(TARGETS).tolist()
    np.testing.assert_allclose(means(TARGETS), [2 / 3, 1.89 / 4, 0], rtol=1e-6)
    assert counted(np.eye(3, dtype=np.uint8)) == ""
    assert "12" in counted(TARGETS)


@pytest.mark.parametrize("share", [0.1, 0.6, 0.95])
def test_each_label_is_scored_over_its_known_tracks(share):
    rng = np.random.default_rng(0)
    targets = rng.random((80, 9)).round(1).astype(np.float32)
    targets[rng.random(targets.shape) < share] = NAN
    scores = rng.random(targets.shape).round(1)  # with ties
    expected = ranked(targets, scores)
    found = evaluate("multi-label", targets, scores)
    np.testing.assert_allclose(list(found.per_label.values()), expected, atol=1e-9)
    assert found.figures["ap"] == pytest.approx(np.nanmean(expected[0]))
    assert found.left_out == np.isnan(expected[0]).sum()
    for weights in (rng.integers(0, 3, 80).astype(float), rng.random(80)):
        found = ap_and_roc_auc(rank(targets, scores), weights)
        np.testing.assert_allclose(found, ranked(targets, scores, weights), atol=1e-9)


def test_baselines_of_labels_that_are_not_all_known():
    """A constant answer ranks nothing: AP is the share of positives among the known targets."""
    found = baseline("multi-label", TARGETS[:, ::-1], TARGETS)
    np.testing.assert_allclose(found.per_label["ap"], [2 / 3, 1 / 2, NAN])
    np.testing.assert_allclose(found.per_label["roc_auc"], [0.5, 0.5, NAN])
    rng = np.random.default_rng(0)
    targets = np.where(rng.random((2000, 4)) < 0.5, NAN, rng.random((2000, 4)) < 0.3)
    assert chance_scores(targets) == pytest.approx((0.3, 0.5), abs=0.03)


def test_resamples_leave_out_unknown_targets():
    rng = np.random.default_rng(0)
    targets = np.where(rng.random((40, 3)) < 0.4, NAN, rng.random((40, 3)).round(1))
    outputs = rng.random((2, 40, 3))
    found = resampled_figures("multi-label", targets, outputs, 5, 0)
    drawn = [np.arange(40)]
    draw = np.random.default_rng(0)
    drawn += [draw.integers(0, 40, 40) for _ in range(5)]
    for i, rows in enumerate(drawn):
        ap = [np.nanmean(ranked(targets[rows], z[rows])[0]) for z in outputs]
        assert found["ap"][i] == pytest.approx(np.mean(ap))
