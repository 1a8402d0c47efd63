"""Average precision and ROC-AUC of many labels at once are scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from maest.helpers.reports.ranking import rank, ranked_figures


def drawn(ties: int | None, n_tracks: int = 90, n_labels: int = 7, seed: int = 0):
    """Targets and scores; of ``ties`` different values, if given."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((n_tracks, n_labels)) < 0.3).astype(np.float32)
    scores = rng.normal(size=(n_tracks, n_labels)) + targets
    if ties is not None:
        scores = np.floor(ties * rng.random((n_tracks, n_labels)))
    return targets, scores


def expected(targets, scores, weights=None):
    """Label by label, as scikit-learn has it."""
    pairs = list(zip(targets.T, scores.T, strict=True))
    return (
        [average_precision_score(t, s, sample_weight=weights) for t, s in pairs],
        [roc_auc_score(t, s, sample_weight=weights) for t, s in pairs],
    )


def assert_same(found, wanted):
    for own, other in zip(found, wanted, strict=True):
        assert own.dtype == np.float64
        np.testing.assert_allclose(own, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("ties", [None, 1, 2, 5, 40])
def test_as_scikit_learn(ties):
    targets, scores = drawn(ties)
    assert_same(ranked_figures(rank(targets, scores)), expected(targets, scores))


@pytest.mark.parametrize("ties", [None, 1, 3, 40])
@pytest.mark.parametrize("kind", ["counts", "fractions"])
def test_weights_as_scikit_learn(ties, kind):
    targets, scores = drawn(ties)
    rng = np.random.default_rng(1)
    weights = rng.integers(0, 4, len(targets)) if kind == "counts" else rng.random(len(targets))
    found = ranked_figures(rank(targets, scores), weights)
    assert_same(found, expected(targets, scores, weights))


def test_weights_count_tracks_as_often_as_copies_of_them():
    targets, scores = drawn(10)
    weights = np.random.default_rng(2).integers(0, 4, len(targets))
    rows = np.repeat(np.arange(len(targets)), weights)
    weighted = ranked_figures(rank(targets, scores), weights)
    assert_same(weighted, ranked_figures(rank(targets[rows], scores[rows])))
    ones = np.ones(len(targets))
    assert_same(ranked_figures(rank(targets, scores), ones), expected(targets, scores))


def test_the_best_tracks_may_count_for_nothing():
    """Nothing is divided by: no tracks so far are no precision."""
    targets, scores = np.array([[1, 0, 1, 0.0]]).T, np.array([[4, 3, 2, 1.0]]).T
    ap, roc_auc = ranked_figures(rank(targets, scores), np.array([0, 0, 1, 1]))
    assert (ap.tolist(), roc_auc.tolist()) == ([1.0], [1.0])


@pytest.mark.parametrize("weights", [None, np.ones(90), np.full(90, 0.1)])
def test_labels_without_a_positive_or_a_negative_are_nan(weights):
    targets, scores = drawn(None)
    targets[:, 2], targets[:, 5] = 0, 1
    ap, roc_auc = ranked_figures(rank(targets, scores), weights)
    nan = [False, False, True, False, False, True, False]
    assert np.isnan(ap).tolist() == np.isnan(roc_auc).tolist() == nan


def test_labels_that_lose_their_positives_in_a_resample_are_nan():
    targets, scores = np.eye(4), np.random.default_rng(0).random((4, 4))
    ap, roc_auc = ranked_figures(rank(targets, scores), np.array([0, 1, 3, 0]))
    assert np.isnan(ap).tolist() == np.isnan(roc_auc).tolist() == [True, False, False, True]
    ap, _ = ranked_figures(rank(np.zeros((4, 2)), scores[:, :2]))
    assert np.isnan(ap).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.uint8, np.int64, bool])
def test_any_type_of_scores(dtype):
    targets, scores = drawn(3)
    scores = scores.astype(dtype)
    assert_same(ranked_figures(rank(targets, scores)), expected(targets, scores.astype(float)))


def test_both_zeros_are_a_tie():
    targets, scores = np.array([[1.0], [0.0]]), np.array([[-0.0], [0.0]])
    assert_same(ranked_figures(rank(targets, scores)), ([0.5], [0.5]))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_refused(value):
    targets, scores = drawn(None)
    scores[3, 1] = value
    with pytest.raises(ValueError, match="NaN"):
        rank(targets, scores)


@pytest.mark.parametrize("shape", [(89, 7), (90, 6), (90,), (0, 7)])
def test_other_shapes_are_refused(shape):
    targets, _ = drawn(None)
    with pytest.raises(ValueError, match=r"\("):
        rank(targets if shape[0] else np.zeros(shape), np.zeros(shape))
