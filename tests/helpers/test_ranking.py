"""Average precision and ROC-AUC of many labels at once are scikit-learn's."""

import numpy as np
import pytest
from by_scikit_learn import ranked
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from maest.helpers.reports.ranking import ap_and_roc_auc, rank


def assert_as_scikit_learn(targets, scores, weights=None):
    found = ap_and_roc_auc(rank(targets, scores), weights)
    assert {own.dtype for own in found} == {np.dtype(np.float64)}
    np.testing.assert_allclose(found, ranked(targets, scores, weights), rtol=0, atol=1e-9)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_any_ties_and_weights(data):
    n, c = data.draw(st.integers(2, 25)), data.draw(st.integers(1, 4))
    targets = data.draw(arrays(np.uint8, (n, c), elements=st.integers(0, 1)))
    few, any_score = st.integers(-2, 2).map(float), st.floats(-1e6, 1e6, width=32)
    scores = data.draw(
        arrays(np.float32, (n, c), elements=data.draw(st.sampled_from([few, any_score])))
    )
    counts, fractions = st.integers(0, 3).map(float), st.floats(0.01, 1)
    weights = data.draw(
        st.none() | arrays(float, n, elements=counts) | arrays(float, n, elements=fractions)
    )
    if weights is None or weights.any():
        assert_as_scikit_learn(targets, scores, weights)


@pytest.mark.parametrize("ties", [None, 40])
def test_many_tracks(ties):
    rng = np.random.default_rng(0)
    targets = (rng.random((3000, 7)) < 0.3).astype(np.float32)
    scores = (
        rng.normal(size=targets.shape) + targets
        if ties is None
        else rng.integers(ties, size=targets.shape)
    )
    assert_as_scikit_learn(targets, scores)
    assert_as_scikit_learn(targets, scores, rng.random(3000))


def test_labels_that_lose_their_positives_in_a_resample_are_nan():
    targets, scores = np.eye(4), np.random.default_rng(0).random((4, 4))
    found = ap_and_roc_auc(rank(targets, scores), np.array([0, 1, 3, 0]))
    assert np.isnan(found).tolist() == [[True, False, False, True]] * 2
    assert np.isnan(ap_and_roc_auc(rank(np.zeros((4, 2)), scores[:, :2]))).all()
    ones = np.ones((90, 1))  # whose weights do not add up exactly
    assert np.isnan(ap_and_roc_auc(rank(ones, ones), np.full(90, 0.1))).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.uint8, np.int64, bool])
def test_any_type_of_scores(dtype):
    rng = np.random.default_rng(0)
    assert_as_scikit_learn(rng.random((90, 7)) < 0.3, rng.integers(3, size=(90, 7)).astype(dtype))


def test_both_zeros_are_a_tie():
    found = ap_and_roc_auc(rank(np.array([[1.0], [0.0]]), np.array([[-0.0], [0.0]])))
    assert np.array(found).tolist() == [[0.5], [0.5]]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_refused(value):
    with pytest.raises(ValueError, match="scores"):
        rank(np.zeros((3, 2)), np.full((3, 2), value))


@pytest.mark.parametrize("shape", [(2, 2), (3, 1), (3,), (0, 2)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="scores"):
        rank(np.zeros((3, 2) if shape[0] else shape), np.zeros(shape))
