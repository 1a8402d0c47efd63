"""Confidence intervals: the figures of resampled tracks, paired between runs."""

import numpy as np
import pytest
from by_scikit_learn import figures

from maest.helpers.reports.bootstrap import interval, resampled_figures
from maest.helpers.reports.metrics import SHOWN

N, C, S = 60, 4, 2
TASKS = tuple(SHOWN)


def a_split(task: str, n_tracks: int = N) -> tuple[np.ndarray, np.ndarray]:
    """Targets [N, C], and outputs [S, N, C] that have something to do with them."""
    rng = np.random.default_rng(0)
    if task == "multi-label":
        targets = (rng.random((n_tracks, C)) < 0.4).astype(np.float32)
    elif task == "single-label":
        targets = np.eye(C, dtype=np.float32)[rng.integers(0, C, n_tracks)]
    else:
        targets = rng.normal(size=(n_tracks, C)).astype(np.float32)
    return targets, (targets + rng.normal(size=(S, n_tracks, C))).astype(np.float32)


@pytest.mark.parametrize("task", TASKS)
def test_a_plain_loop_over_resamples_gives_the_same(task):
    """Runs are paired: a run's resamples depend on nothing but the seed."""
    targets, outputs = a_split(task)
    found = resampled_figures(task, targets, outputs, resamples=6, seed=3)
    assert list(found) == list(SHOWN[task])
    rng = np.random.default_rng(3)
    for i in range(7):
        rows = rng.integers(0, N, N) if i else np.arange(N)
        each = [list(figures(task, targets[rows], o[rows]).values()) for o in outputs]
        wanted = np.mean(each, axis=0)
        np.testing.assert_allclose([found[m][i] for m in found], wanted, rtol=0, atol=1e-12)
    other = resampled_figures(task, targets, outputs, 6, seed=4)
    assert all((other[name] != found[name]).any() for name in found)


@pytest.mark.parametrize("task", TASKS)
def test_groups_are_drawn_as_a_whole(task):
    """Of tracks that are there twice, both or none: figures are those of one of each."""
    targets, outputs = a_split(task)
    groups = np.random.default_rng(1).permutation(np.repeat(np.arange(N), 2))
    found = resampled_figures(task, targets[groups], outputs[:, groups], 6, 3, groups)
    for name, values in resampled_figures(task, targets, outputs, 6, 3).items():
        np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-12)


def test_intervals_are_percentiles_turned_round_the_figure():
    samples = np.concatenate([[0.5], np.random.default_rng(0).permutation(101) / 100])
    assert interval(samples, 0.9) == pytest.approx({"value": 0.5, "low": 0.05, "high": 0.95})
    samples[0] = 0.3
    assert interval(samples, 0.5) == pytest.approx({"value": 0.3, "low": -0.15, "high": 0.35})
    assert interval(samples, 0.5, (0, 1))["low"] == 0


def test_intervals_hold_the_average_precision_of_unlimited_tracks():
    """Few positives, which resamples have twice: plain percentiles are far above it."""
    rng = np.random.default_rng(0)

    def weak_run(n_tracks: int) -> tuple[np.ndarray, np.ndarray]:
        targets = (rng.random((n_tracks, 10)) < 0.08).astype(np.float32)
        return targets, (0.5 * targets + rng.normal(size=(1, n_tracks, 10))).astype(np.float32)

    true = resampled_figures("multi-label", *weak_run(100_000), 0, 0)["ap"][0]
    held = by_percentiles = 0
    for _ in range(40):
        samples = resampled_figures("multi-label", *weak_run(100), 100, 0)["ap"]
        found = interval(samples, 0.95, (0, 1))
        held += found["low"] <= true <= found["high"]
        low, high = np.quantile(samples[1:], [0.025, 0.975])
        by_percentiles += low <= true <= high
    assert held >= 34
    assert by_percentiles < 20


def test_intervals_leave_out_resamples_without_a_figure():
    samples = np.array([0.5, np.nan, 0.2, 0.4, np.nan])
    assert interval(samples, 0.5) == pytest.approx({"value": 0.5, "low": 0.65, "high": 0.75})
    nothing = interval(samples[:2], 0.95)
    assert np.isnan([nothing["low"], nothing["high"]]).all()


def test_rare_labels_are_left_out_of_the_resamples_that_lack_them():
    targets, outputs = a_split("multi-label")
    targets[:, 0] = np.arange(N) == 5
    found = resampled_figures("multi-label", targets, outputs[:1], 12, 0)
    rng, lacking = np.random.default_rng(0), 0
    for i in range(1, 13):
        rows = rng.integers(0, N, N)
        here = [c for c in range(C) if targets[rows, c].any()]
        lacking += len(here) < C
        wanted = figures("multi-label", targets[rows][:, here], outputs[0, rows][:, here])
        assert {m: found[m][i] for m in found} == pytest.approx(wanted, rel=0, abs=1e-12)
    assert 0 < lacking < 12
    nothing = resampled_figures("multi-label", np.zeros((N, C)), outputs, 3, 0)
    assert all(np.isnan(values).all() for values in nothing.values())
