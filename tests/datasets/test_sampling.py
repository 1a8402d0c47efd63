"""Which clips and tracks each process gets, in which order."""

import numpy as np
import pytest
from folders import peak_memory
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from made_up import refuses

from maest.datasets.sampling import ClipSampler, label_balanced_weights

LONG_TAIL = (np.random.default_rng(0).random((500, 6)) < [0.6, 0.3, 0.1, 0.05, 0.02, 0]).astype(
    np.uint8
)


def test_balanced_weights_by_hand():
    common, rare = 1000 / 103, 1000 / 101
    expected = np.array([common, common + rare, common, common])
    weights = label_balanced_weights(np.array([[1, 0], [1, 1], [0, 0], [1, 0]]))
    np.testing.assert_allclose(weights, expected / expected.sum())
    assert label_balanced_weights(np.zeros((4, 2), np.uint8)).tolist() == [0.25] * 4


def test_balanced_weights_of_soft_and_unknown_labels_by_hand():
    targets = np.array([[1, np.nan], [0.25, 0.5], [np.nan, np.nan], [0, np.nan]], np.float32)
    first, second = 1000 / 101.25, 1000 / 100.5
    expected = np.array([first, first / 4 + second / 2, 0, 0])
    expected[2:] = expected[:2].min()
    found = label_balanced_weights(targets)
    np.testing.assert_allclose(found, expected / expected.sum(), rtol=1e-6)
    assert np.isnan(targets).sum() == 4
    complete = LONG_TAIL.astype(np.float32)
    np.testing.assert_array_equal(
        label_balanced_weights(complete), label_balanced_weights(LONG_TAIL)
    )


def test_weights_of_many_clips_take_little_memory():
    targets = (np.random.default_rng(0).random((50_001, 40)) < 0.05).astype(np.uint8)
    found, peak = peak_memory(lambda: label_balanced_weights(targets))
    assert peak < 6e6  # all of them as float64 are 16 MB
    whole = targets @ (1000 / (targets.sum(axis=0) + 100))
    whole[whole == 0] = whole[whole > 0].min()
    np.testing.assert_allclose(found, whole / whole.sum(), rtol=1e-14)


@pytest.mark.parametrize("world_size", [1, 3])
def test_each_clip_comes_as_often_as_its_labels_say(world_size):
    expected, found = label_balanced_weights(LONG_TAIL), np.zeros(500)
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


@pytest.mark.parametrize("balanced", [False, True])
def test_a_track_comes_as_often_as_it_is_long(balanced):
    lengths = np.arange(500) % 5
    sampler = ClipSampler(LONG_TAIL, 90_000, balanced, 1, lengths=lengths)
    found = np.bincount([index for index, _ in sampler], minlength=500)
    expected = lengths * (label_balanced_weights(LONG_TAIL) if balanced else 1.0)
    expected *= 90_000 / expected.sum()
    assert not found[lengths == 0].any()
    statistic = ((found - expected) ** 2 / expected.clip(1e-9)).sum()  # mean 399, deviation 28
    assert 399 - 5 * 28 < statistic < 399 + 5 * 28


def test_long_tracks_come_again_in_a_short_epoch():
    lengths = np.where(np.arange(500) == 3, 1000, 1)
    drawn = [index for index, _ in ClipSampler(LONG_TAIL, 100, False, 0, lengths=lengths)]
    assert drawn.count(3) > 50


def test_the_draw_written_out():
    """It must not change: a resumed run goes on in the draw that it began with."""
    rng = np.random.default_rng((7, 2))
    weights = label_balanced_weights(LONG_TAIL)
    order = rng.choice(500, 100, replace=False, p=weights)
    expected = list(zip(order.tolist(), rng.integers(2**63, size=100).tolist(), strict=True))
    sampler = ClipSampler(LONG_TAIL, 100, balanced=True, seed=7)
    assert list(sampler) != expected  # of epoch 0
    sampler.set_epoch(2)
    assert list(sampler) == expected


@examples(max_examples=300, deadline=None, derandomize=True)
@given(
    tracks=st.integers(1, 60),
    clips=st.none() | st.integers(1, 200),
    balanced=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 10**6),
    world_size=st.integers(1, 6),
    done=st.integers(0, 201),
)
def test_ranks_share_one_draw_and_a_resumed_epoch_is_its_rest(
    tracks, clips, balanced, seed, epoch, world_size, done
):
    def sampler(rank: int, world_size: int) -> ClipSampler:
        made = ClipSampler(LONG_TAIL[:tracks], clips, balanced, seed, rank, world_size)
        made.set_epoch(epoch)
        return made

    total = clips or tracks
    if total < world_size:
        with refuses("conflict", setting="datamodule.clips_per_epoch"):
            sampler(0, world_size)
        return
    whole = list(sampler(0, 1))
    each = total // world_size  # a tail shorter than the ranks is left out
    for rank in range(world_size):
        part = sampler(rank, world_size)
        part.skip(done)
        assert len(part) == each
        expected = whole[rank : each * world_size : world_size]
        assert list(part) == expected[done:]
        assert list(part) == expected  # skipped one time only
    often = np.bincount([index for index, _ in whole], minlength=tracks)
    if not balanced:
        assert often.max() - often.min() <= 1
    elif total < tracks:
        assert often.max() == 1
    assert len(set(whole)) == total  # a clip that comes again is cropped elsewhere


@pytest.mark.parametrize(("rank", "clips", "said"), [(0, 6, 1), (0, 4, 0), (1, 6, 0)])
def test_repeated_tracks_of_a_balanced_epoch_are_logged_once(caplog, rank, clips, said):
    caplog.set_level("INFO")
    ClipSampler(np.eye(5, dtype=np.uint8), clips, True, seed=0, rank=rank, world_size=2)
    assert len(caplog.records) == said
