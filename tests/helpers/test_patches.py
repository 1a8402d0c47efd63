"""How a track is cut: cases written from the rule's own words, and that no second disappears."""

import itertools
import random

import numpy as np
import pytest

from maest.helpers.audio.mel import n_frames
from maest.helpers.audio.patches import (
    cut,
    new_frames,
    pooled,
    read_times,
    seconds,
    times,
    weights_of,
    write_times,
)
from maest.helpers.errors import InputError

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


# ------------------------------------------------------------------ hops and tails


@pytest.mark.parametrize(
    ("frames", "hop", "tail", "expected"),
    [
        # patches of 200 frames; the last whole one leaves 50, 62 or 63 frames that are in none
        (450, 100, "keep", [(0, 200), (100, 300), (200, 400)]),
        (462, 100, "keep", [(0, 200), (100, 300), (200, 400)]),
        (463, 100, "keep", [(0, 200), (100, 300), (200, 400), (300, 463)]),
        (463, 100, "pad", [(0, 200), (100, 300), (200, 400), (300, 463)]),
        (463, 100, "drop", [(0, 200), (100, 300), (200, 400)]),
        # gaps: a remainder may begin in one
        (450, 300, "keep", [(0, 200), (300, 450)]),
        (350, 300, "keep", [(0, 200)]),
        (290, 300, "keep", [(0, 200)]),
        (450, 300, "drop", [(0, 200)]),
        # shorter than one patch
        (20, 100, "keep", [(0, 20)]),
        (20, None, "pad", [(0, 20)]),
        (199, 100, "drop", []),
        (200, 100, "drop", [(0, 200)]),
    ],
)
def test_hops_and_tails(frames, hop, tail, expected):
    assert cut(frames, 200, hop, tail) == expected


def test_no_hop_is_a_hop_of_a_patch():
    for frames in range(1, 900, 7):
        assert cut(frames, 200) == cut(frames, 200, 200)


@pytest.mark.parametrize("hop", [1, 30, 100, 200])
def test_what_is_fresh_adds_up_to_what_is_covered(hop):
    for frames in (1, 150, 200, 263, 500, 777):
        patches = cut(frames, 200, hop)
        assert sum(new_frames(patches)) == patches[-1][1]
        assert min(new_frames(patches)) >= 1
    assert new_frames(cut(463, 200, 100)) == [200, 100, 100, 63]


def test_across_a_gap_all_of_a_patch_is_fresh():
    assert new_frames(cut(900, 200, 300)) == [200, 200, 200]


def test_times_end_with_the_track():
    assert times([(0, 625), (625, 700)], 700) == [(0, 5.0, 10.0), (10.0, 10.592, 11.184)]
    assert times([(0, 1)], 1) == [(0, 0.008, 0.016)]


@pytest.mark.parametrize("arguments", [(0, 5), (5, 0), (5, 5, 0)])
def test_what_cannot_be_cut(arguments):
    with pytest.raises(ValueError, match="cannot cut"):
        cut(*arguments)


# ------------------------------------------------------------------ the mean over patches


@pytest.mark.parametrize("hop", [50, 100, 200, 300])
@pytest.mark.parametrize("tail", ["keep", "drop", "pad"])
def test_weights_are_known_from_the_times_on_disk(hop, tail, tmp_path):
    for frames in (*range(200, 1000, 61), 400, 401, 463, 600, 601, 799):
        patches = cut(frames, 200, hop, tail)
        write_times(tmp_path / "a.times.csv", np.array(times(patches, frames)))
        assert weights_of(read_times(tmp_path / "a.times.csv")) == new_frames(patches) or (
            len(patches) == 1
        )


def test_the_mean_counts_each_second_once():
    rows = np.array([[1, 10], [2, 20], [6, 60]], np.float32)
    mean = pooled(rows, new_frames([(0, 200), (100, 300), (300, 400)]))  # 200, 100, 100
    assert mean.dtype == np.float32
    np.testing.assert_allclose(mean, [2.5, 25])


@pytest.mark.parametrize(
    ("content", "kind"),
    [(None, "missing"), (b"", "corrupt"), (b"patch,start\n0,1\n", "corrupt"), (b"\xff", "corrupt")],
)
def test_times_that_cannot_be_read(tmp_path, content, kind):
    path = tmp_path / "a.times.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_times(path)
    assert (error.value.kind, error.value.path) == (kind, path)
