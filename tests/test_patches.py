"""How a track is cut: cases written from the rule's own words, and that no second disappears."""

import itertools
import random

import pytest

from helpers.melspectrogram import n_frames
from helpers.patches import cut, seconds

MODELS = {5: 312, 10: 625, 20: 1250, 30: 1875}  # seconds → frames of the released models
RATE = 16_000


@pytest.mark.parametrize(
    ("frames", "longest", "expected"),
    [
        # a track shorter than one patch is one shorter patch, however short
        (1, 625, [(0, 1)]),
        (16, 625, [(0, 16)]),
        (62, 625, [(0, 62)]),
        (624, 625, [(0, 624)]),
        # patches of the maximum length, one after the other
        (625, 625, [(0, 625)]),
        (1250, 625, [(0, 625), (625, 1250)]),
        # less than a second at the end of a longer track is left out (62 frames are 0.992 s) …
        (626, 625, [(0, 625)]),
        (625 + 62, 625, [(0, 625)]),
        (1250 + 1, 625, [(0, 625), (625, 1250)]),
        # … a second or more is a last, shorter patch
        (625 + 63, 625, [(0, 625), (625, 688)]),
        (1249, 625, [(0, 625), (625, 1249)]),
        (312 + 312 + 63, 312, [(0, 312), (312, 624), (624, 687)]),
        (1875 + 1874, 1875, [(0, 1875), (1875, 3749)]),
        # a model of less than a second
        (20, 40, [(0, 20)]),
        (100, 40, [(0, 40), (40, 80)]),
    ],
)
def test_the_cases_of_the_rule(frames, longest, expected):
    assert cut(frames, longest) == expected


@pytest.mark.parametrize(("length", "longest"), MODELS.items())
def test_a_clip_as_long_as_the_model_costs_one_patch(length, longest):
    frames = n_frames(length * RATE)
    assert frames > longest, "one frame more than the model's input"
    assert cut(frames, longest) == [(0, longest)]


@pytest.mark.parametrize(("length", "longest"), MODELS.items())
@pytest.mark.parametrize("times", [2, 3, 6])
def test_a_clip_of_several_lengths_costs_as_many_patches(length, longest, times):
    assert len(cut(n_frames(times * length * RATE), longest)) == times


@pytest.mark.parametrize(("length", "longest"), MODELS.items())
@pytest.mark.parametrize("times", [1, 2, 7, 30, 200])
def test_a_remainder_of_one_second_is_kept(length, longest, times):
    frames = n_frames((times * length + 1) * RATE)
    patches = cut(frames, longest)
    assert patches[-1][1] == frames
    assert patches[-1][1] - patches[-1][0] >= 62.5


@pytest.mark.parametrize(("length", "longest"), MODELS.items())
def test_a_remainder_of_half_a_second_is_left_out(length, longest):
    assert cut(n_frames(length * RATE + RATE // 2), longest) == [(0, longest)]


def test_no_second_disappears_and_nothing_overlaps():
    chance = random.Random(0)
    for _ in range(3000):
        longest = chance.choice([*MODELS.values(), chance.randint(63, 3000)])
        frames = chance.choice([chance.randint(1, 2 * longest), chance.randint(1, 100_000)])
        patches = cut(frames, longest)
        where = f"{frames} frames, {longest} at a time"
        assert patches[0][0] == 0, where
        for (_, end), (start, _) in itertools.pairwise(patches):
            assert start == end, where
        lengths = [end - start for start, end in patches]
        assert all(length == longest for length in lengths[:-1]), where
        assert 0 < lengths[-1] <= longest, where
        left_out = frames - patches[-1][1]
        assert 0 <= left_out < 62.5, where
        if len(patches) > 1:
            assert lengths[-1] >= 62.5, where
        else:
            assert lengths[0] == min(frames, longest), where


@pytest.mark.parametrize(("frames", "longest"), [(0, 625), (-1, 625), (100, 0)])
def test_nothing_cannot_be_cut(frames, longest):
    with pytest.raises(ValueError, match="cannot cut"):
        cut(frames, longest)


def test_seconds_of_frames():
    assert seconds(625) == 10
    assert seconds(312) == pytest.approx(4.992)
