"""Which clips and tracks each process gets, in which order."""

from __future__ import annotations

import logging
import tracemalloc

import numpy as np
import pytest

from maest.datasets import sampling
from maest.datasets.sampling import ClipSampler, TrackSampler, label_balanced_weights
from maest.helpers.errors import InputError

LONG_TAIL = (np.random.default_rng(0).random((500, 6)) < [0.6, 0.3, 0.1, 0.05, 0.02, 0]).astype(
    np.uint8
)


def test_balanced_weights_by_hand():
    targets = np.array([[1, 0], [1, 1], [0, 0], [1, 0]])
    common, rare = 1000 / 103, 1000 / 101
    expected = np.array([common, common + rare, common, common])
    np.testing.assert_allclose(label_balanced_weights(targets), expected / expected.sum())


def test_balanced_sampler_on_a_skewed_set(caplog):
    targets = np.zeros((1000, 2), np.uint8)
    targets[:900, 0] = targets[900:, 1] = 1
    with caplog.at_level(logging.INFO):
        sampler = ClipSampler(targets, 20_000, balanced=True, seed=0)
    assert "with replacement" in caplog.text
    rare = np.mean([index >= 900 for index, _ in sampler])
    expected = 100 * (1000 / 200) / (100 * (1000 / 200) + 900 * (1000 / 1000))
    assert rare == pytest.approx(expected, abs=0.01)
    fewer = ClipSampler(targets, 300, balanced=True, seed=0)
    assert len({index for index, _ in fewer}) == 300  # without replacement


def test_weights_of_many_clips_take_little_memory(monkeypatch):
    monkeypatch.setattr(sampling, "_ROWS", 4096)
    targets = (np.random.default_rng(0).random((50_001, 40)) < 0.05).astype(np.uint8)
    tracemalloc.start()
    found = label_balanced_weights(targets)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6e6  # all of them as float64 are 16 MB
    whole = targets @ (1000 / (targets.sum(axis=0) + 100))
    whole[whole == 0] = whole[whole > 0].min()
    np.testing.assert_allclose(found, whole / whole.sum(), rtol=1e-14)


@pytest.mark.parametrize("world_size", [1, 3])
def test_each_clip_comes_as_often_as_its_labels_say(world_size):
    expected = np.zeros(500)
    for clip in range(500):  # the rule, written out
        for label in range(6):
            if LONG_TAIL[clip, label]:
                expected[clip] += 1000 / (LONG_TAIL[:, label].sum() + 100)
    expected[expected == 0] = expected[expected > 0].min()
    expected /= expected.sum()
    found = np.zeros(500)
    for rank in range(world_size):
        sampler = ClipSampler(LONG_TAIL, 60_000, True, 1, rank, world_size)
        for epoch in range(3):
            sampler.set_epoch(epoch)
            found += np.bincount([index for index, _ in sampler], minlength=500)
    draws = found.sum()
    assert draws == 180_000
    # Pearson's statistic: mean 499, deviation sqrt(2 * 499) = 32 if the weights are right
    statistic = ((found - draws * expected) ** 2 / (draws * expected)).sum()
    assert 499 - 5 * 32 < statistic < 499 + 5 * 32
    uniform = ((found - draws / 500) ** 2 / (draws / 500)).sum()
    assert uniform > 10_000  # what the statistic says of weights that are wrong


def test_sampler_draws_anew_each_epoch_and_the_same_for_a_seed():
    targets = np.ones((10, 1))
    sampler = ClipSampler(targets, None, balanced=False, seed=3)
    first = list(sampler)
    assert sorted(index for index, _ in first) == list(range(10))
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(ClipSampler(targets, None, balanced=False, seed=3)) == first
    assert list(ClipSampler(targets, None, balanced=False, seed=4)) != first
    longer = [index for index, _ in ClipSampler(targets, 25, balanced=False, seed=0)]
    assert sorted(np.bincount(longer)) == [2] * 5 + [3] * 5


def test_the_draw_written_out():
    """It must stay as it is: a run that is resumed goes on in the draw that it began with."""
    rng = np.random.default_rng((7, 2))
    weights = label_balanced_weights(LONG_TAIL)
    order = rng.choice(500, 100, replace=False, p=weights)
    expected = list(zip(order.tolist(), rng.integers(2**63, size=100).tolist(), strict=True))
    sampler = ClipSampler(LONG_TAIL, 100, balanced=True, seed=7)
    sampler.set_epoch(2)
    assert list(sampler) == expected


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize(
    ("clips", "world_size"), [(None, 1), (None, 4), (101, 4), (1207, 3), (5, 5)]
)
def test_ranks_share_one_draw(balanced, clips, world_size):
    alone = ClipSampler(LONG_TAIL, clips, balanced, seed=2)
    ranks = [
        ClipSampler(LONG_TAIL, clips, balanced, 2, rank, world_size) for rank in range(world_size)
    ]
    drawn = []
    for epoch in range(3):
        for sampler in (alone, *ranks):
            sampler.set_epoch(epoch)
        whole, parts = list(alone), [list(sampler) for sampler in ranks]
        size = (clips or 500) // world_size
        assert [len(part) for part in parts] == [len(sampler) for sampler in ranks]
        assert {len(part) for part in parts} == {size}
        # all positions once, in the order of the whole; a tail shorter than the ranks is left out
        together = [part[i] for i in range(size) for part in parts]
        assert together == whole[: size * world_size]
        assert len(set(together)) == len(together)
        drawn.append(together)
    assert drawn[0] != drawn[1] != drawn[2]


@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (2, 3)])
def test_a_resumed_epoch_goes_on_where_it_was(rank, world_size):
    def sampler() -> ClipSampler:
        made = ClipSampler(LONG_TAIL, 200, True, 0, rank, world_size)
        made.set_epoch(4)
        return made

    whole = list(sampler())
    for done in (0, 1, 17, len(whole)):
        resumed = sampler()
        resumed.skip(done)
        assert len(resumed) == len(whole)
        assert list(resumed) == whole[done:]
        assert list(resumed) == whole  # one time only
    unused = sampler()
    unused.skip(5)
    iter(unused)  # nothing was asked of it
    assert list(unused) == whole[5:]
    over = sampler()
    over.skip(len(whole) + 1)  # as the last batch of an epoch may be a smaller one
    assert list(over) == []


def test_fewer_clips_than_processes():
    with pytest.raises(InputError) as error:
        ClipSampler(LONG_TAIL, 3, False, 0, rank=1, world_size=4)
    assert (error.value.kind, error.value.setting) == ("conflict", "datamodule.clips_per_epoch")


@pytest.mark.parametrize(("size", "world_size"), [(10, 1), (10, 3), (9, 3), (2, 5), (1, 4)])
def test_tracks_of_all_ranks(size, world_size):
    parts = [list(TrackSampler(size, rank, world_size)) for rank in range(world_size)]
    assert len({len(part) for part in parts}) == 1  # collective operations would hang
    assert {track for part in parts for track in part} == set(range(size))
    assert sum(map(len, parts)) - size < world_size
    assert len(TrackSampler(size, 0, world_size)) == len(parts[0])
    in_turn = [part[i] for i in range(len(parts[0])) for part in parts]
    assert in_turn[:size] == list(range(size))
    assert list(TrackSampler(size)) == list(range(size))
