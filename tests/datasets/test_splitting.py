"""Splits by group: whole groups, shares close to those asked for, every label everywhere."""

import numpy as np
import pytest

from maest.datasets.splitting import SPLITS, split_by_group


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_whole_and_shares_are_close(seed):
    """Groups of 1 to 12 tracks; labels from common to rare, alike within a group."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(200), rng.integers(1, 13, 200))
    styles = rng.random((200, 30)) < np.geomspace(0.4, 0.05, 30)
    marks = styles[groups] & (rng.random((len(groups), 30)) < 0.8)
    splits = np.array(split_by_group(groups.tolist(), marks, (0.8, 0.1, 0.1), seed))
    assert all(len(set(splits[groups == group])) == 1 for group in range(200))
    for split, fraction in zip(SPLITS, (0.8, 0.1, 0.1), strict=True):
        assert abs((splits == split).mean() - fraction) < 0.015
        shares = marks[splits == split].sum(axis=0) / marks.sum(axis=0)
        assert abs(np.median(shares) - fraction) < 0.03
        assert np.abs(shares - fraction).mean() < 0.05
        assert (shares > 0).all()


def test_a_seed_gives_one_split():
    """Also from one version to the next."""
    groups, marks = np.arange(60) // 3, np.arange(60)[:, None] % [4, 5, 7] == 0
    splits = [split_by_group(groups.tolist(), marks, (0.6, 0.2, 0.2), seed) for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]
    assert "".join(split[1] for split in splits[0][::3]) == "rerraerrarrerraaerrr"


@pytest.mark.parametrize("fractions", [(0.8, 0.1, 0.1), (0.98, 0.01, 0.01), (0.01, 0.01, 0.98)])
def test_three_groups_or_more_leave_no_split_empty(fractions):
    rng = np.random.default_rng(0)
    for trial in range(150):
        n_groups, n_labels = int(rng.integers(3, 8)), int(rng.integers(1, 6))
        groups = np.repeat(range(n_groups), rng.integers(1, (2, 12, 200)[trial % 3], n_groups))
        marks = rng.random((len(groups), n_labels)) < rng.random(n_labels)
        splits = np.array(split_by_group(groups.tolist(), marks, fractions, trial))
        assert set(splits) == set(SPLITS)
        assert all(len(set(splits[groups == group])) == 1 for group in range(n_groups))


@pytest.mark.parametrize(
    "holders",
    [
        [range(3), range(3, 6), range(6, 12)],
        # Greedily, the last label's three groups may have gone with the others' first.
        [[0, 3, 4], [1, 5, 6], [2, 7, 8], [0, 1, 2]],
    ],
)
def test_a_label_in_three_groups_is_in_every_split(holders):
    marks = np.zeros((12 if len(holders) == 3 else 9, len(holders)), bool)
    for label, own in enumerate(holders):
        marks[list(own), label] = True
    for seed in range(20):
        splits = np.array(split_by_group(range(len(marks)), marks, (0.8, 0.1, 0.1), seed))
        assert all(set(splits[own]) == set(SPLITS) for own in marks.T)
