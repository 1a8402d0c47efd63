"""How a track is cut: cases of the rule, and properties for any track."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import refuses

from maest.helpers.audio.mel import n_frames
from maest.helpers.audio.patches import (
    PatchPlan,
    cut,
    new_frames,
    pooled,
    pooled_file,
    read_times,
    seconds,
    spread,
    times,
    weights_of,
    write_times,
)

MODELS = {5: 312, 10: 625, 20: 1250, 30: 1875}  # seconds → frames of the released models
RATE = 16_000
many = settings(max_examples=300, deadline=None, derandomize=True)


@pytest.mark.parametrize(
    ("frames", "longest", "hop", "tail", "expected"),
    [
        # a track shorter than one patch is one shorter patch, however short
        (1, 625, None, "keep", [(0, 1)]),
        (624, 625, None, "keep", [(0, 624)]),
        (20, 200, 100, "keep", [(0, 20)]),
        (20, 200, None, "pad", [(0, 20)]),
        (199, 200, 100, "drop", []),
        # patches of the maximum length, one after the other
        (625, 625, None, "keep", [(0, 625)]),
        (1250, 625, None, "keep", [(0, 625), (625, 1250)]),
        # less than a second at the end of a longer track is left out (62 frames are 0.992 s) …
        (625 + 62, 625, None, "keep", [(0, 625)]),
        (1250 + 1, 625, None, "keep", [(0, 625), (625, 1250)]),
        # … a second or more is a last, shorter patch
        (625 + 63, 625, None, "keep", [(0, 625), (625, 688)]),
        (1875 + 1874, 1875, None, "keep", [(0, 1875), (1875, 3749)]),
        # a model of less than a second
        (100, 40, None, "keep", [(0, 40), (40, 80)]),
        # overlapping patches of 200 frames: 62 or 63 frames at the end are in none
        (462, 200, 100, "keep", [(0, 200), (100, 300), (200, 400)]),
        (463, 200, 100, "keep", [(0, 200), (100, 300), (200, 400), (300, 463)]),
        (463, 200, 100, "pad", [(0, 200), (100, 300), (200, 400), (300, 463)]),
        (463, 200, 100, "drop", [(0, 200), (100, 300), (200, 400)]),
        # gaps: a remainder may begin in one
        (450, 200, 300, "keep", [(0, 200), (300, 450)]),
        (350, 200, 300, "keep", [(0, 200)]),
        (290, 200, 300, "keep", [(0, 200)]),
        (450, 200, 300, "drop", [(0, 200)]),
    ],
)
def test_the_cases_of_the_rule(frames, longest, hop, tail, expected):
    assert cut(frames, longest, hop, tail) == expected


@pytest.mark.parametrize(("length", "longest"), MODELS.items())
@pytest.mark.parametrize("times", [1, 2, 6])
def test_a_clip_of_several_lengths_has_as_many_patches(length, longest, times):
    for more, patches in ((0, times), (RATE // 2, times), (RATE, times + 1)):
        frames = n_frames(times * length * RATE + more)
        assert frames > times * longest, "one frame more than the model's input"
        assert len(cut(frames, longest)) == patches
        assert more < RATE or cut(frames, longest)[-1][1] == frames


@pytest.mark.parametrize(
    ("most", "firsts"),
    [
        (1, [5]),
        (2, [2, 7]),
        (3, [1, 5, 8]),
        (9, [0, 1, 2, 3, 5, 6, 7, 8, 9]),
        (10, list(range(10))),
        (11, list(range(10))),
        (None, list(range(10))),
    ],
)
def test_a_few_patches_are_the_middle_ones_of_equal_parts(most, firsts):
    spans = PatchPlan(100, most=most).spans(1_062)
    assert [first // 100 for first, _ in spans] == firsts
    assert new_frames(spans) == [100] * len(spans)


@many
@given(st.integers(1, 60), st.integers(1, 60))
def test_a_few_patches_are_distinct_and_as_far_from_both_ends(number, most):
    patches = [(i, i + 1) for i in range(number)]
    chosen = [first for first, _ in spread(patches, most)]
    assert len(set(chosen)) == min(number, most)
    assert chosen == sorted(chosen)
    assert abs(chosen[0] - (number - 1 - chosen[-1])) <= 1


@pytest.mark.parametrize("arguments", [(0, 5), (-1, 5), (5, 0), (5, 5, 0)])
def test_what_cannot_be_cut(arguments):
    with pytest.raises(ValueError, match="cannot cut"):
        cut(*arguments)
    with refuses("unknown", setting="tail"):
        PatchPlan(5, tail="kept")


tracks = {
    "frames": st.integers(1, 5_000),
    "longest": st.integers(1, 700),
    "hop": st.none() | st.integers(1, 900),
}
tails = st.sampled_from(["keep", "drop", "pad"])


@many
@given(**tracks, tail=tails)
def test_every_frame_is_in_exactly_the_patches_that_it_should_be_in(frames, longest, hop, tail):
    """Stated by the starts of patches that cover a frame."""
    patches, hop = cut(frames, longest, hop, tail), hop or longest
    whole = [start for start in range(0, frames, hop) if start + longest <= frames]
    last = whole[-1] + hop if whole else 0
    behind = whole[-1] + longest if whole else 0  # first frame that is in no whole patch
    kept = tail != "drop" and frames - max(last, behind) >= (63 if whole else 1)
    for frame in {0, frames - 1, *range(0, frames, max(1, frames // 50))}:
        expected = [start for start in whole if start <= frame < start + longest]
        expected += [last] if kept and frame >= last else []
        assert [first for first, end in patches if first <= frame < end] == expected
    # Without gaps, all but less than a second is in a patch, and is new in one only.
    weights = new_frames(patches)
    assert all(weight >= 1 for weight in weights)
    if hop <= longest:
        assert sum(weights) == (patches[-1][1] if patches else 0)
        assert tail == "drop" or frames - patches[-1][1] < 63
    else:
        assert weights == [end - first for first, end in patches]


@many
@given(**tracks, tail=tails)
def test_a_patch_is_padded_with_silence(frames, longest, hop, tail):
    mel, plan = np.arange(1, frames + 1), PatchPlan(longest, hop, tail)
    for first, last in plan.spans(frames)[-2:]:
        patch = plan.take(mel[:, None], (first, last))[:, 0]
        assert len(patch) == (longest if tail == "pad" else max(last - first, 16))
        np.testing.assert_array_equal(patch[: last - first], mel[first:last])
        assert not patch[last - first :].any()


def test_times_end_with_the_track():
    assert seconds(625) == 10
    assert times([(0, 625), (625, 700)], 700) == [(0, 5.0, 10.0), (10.0, 10.592, 11.184)]
    assert times([(0, 1)], 1) == [(0, 0.008, 0.016)]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(frames=st.integers(200, 3_000), hop=st.integers(1, 400), tail=tails)
def test_weights_are_known_from_the_times_on_disk(tmp_path_factory, frames, hop, tail):
    path = tmp_path_factory.getbasetemp() / "a.times.csv"
    patches = cut(frames, 200, hop, tail)
    write_times(path, np.array(times(patches, frames)))
    # Of one patch, the weight is of no consequence.
    assert len(patches) == 1 or weights_of(read_times(path)) == new_frames(patches)


@many
@given(**tracks, level=st.floats(-100, 100, width=32))
def test_the_mean_of_constant_patches_is_that_of_their_frames(frames, longest, hop, level):
    """Each second counts once, however many patches it is in."""
    patches = cut(frames, longest, hop)
    weights = new_frames(patches)
    values = level + np.arange(len(patches), dtype=np.float32) % 7
    found = pooled(np.stack([values, -values], axis=1), weights)
    assert (found.dtype, found.shape) == (np.float32, (2,))
    expected = np.repeat(values.astype(np.float64), weights).mean()
    np.testing.assert_allclose(found, [expected, -expected], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (None, "missing"),
        *[(content, "corrupt") for content in (b"", b"patch,start\n0,1\n", b"\xff")],
        (b"patch,start,centre,end\n0,0,nan,1\n", "corrupt"),
        (b"patch,start,centre,end\n0,0,1,2\n", "mismatch"),
    ],
)
def test_times_that_cannot_be_used(tmp_path, content, kind):
    if content is not None:
        (tmp_path / "a.times.csv").write_bytes(content)
    with refuses(kind, "a.times.csv"):
        pooled_file(np.zeros((2, 3)), tmp_path / "a.embeddings.npy")


@pytest.mark.parametrize(
    ("tail", "span", "frames"),
    [("pad", (100, 130), 200), ("keep", (100, 130), 30), ("keep", (100, 104), 16)],
)
def test_a_last_patch_is_shorter_or_padded(tail, span, frames):
    plan = PatchPlan(200, 100, tail)
    mel = np.ones((span[1], 96), np.float16)
    patch = plan.take(mel, span)
    assert (plan.patch_frames(span), patch.shape) == (frames, (frames, 96))
    assert patch.sum() == (span[1] - span[0]) * 96
