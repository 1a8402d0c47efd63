"""Augmentation, against a statement of it: how much, where, whose, and from which draws."""

import numpy as np
import pytest
import torch

from maest.helpers.training.augment import mixup, roll, spec_augment, stripes


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def like_uniform(counts: np.ndarray) -> bool:
    """Whether these are counts of equally likely outcomes: within 5 standard deviations."""
    expected = counts.sum() / len(counts)
    return bool((np.abs(counts - expected) < 5 * np.sqrt(expected)).all())


@pytest.mark.parametrize(("size", "max_width"), [(96, 5), (24, 8), (20, 2), (6, 100)])
def test_a_mask_has_a_uniform_width_and_lies_anywhere_that_it_fits(size, max_width):
    hidden = stripes(100_000, size, 1, max_width, torch.device("cpu")).numpy()
    widths, starts = hidden.sum(1), hidden.argmax(1)
    at = np.arange(size)
    inside = (at >= starts[:, None]) & (at < (starts + widths)[:, None])
    np.testing.assert_array_equal(hidden, inside)  # in one piece
    counts = np.bincount(widths)
    assert len(counts) == min(max_width, size + 1)  # 0 to max_width - 1, or all of a short axis
    assert like_uniform(counts)
    for width in range(1, len(counts)):
        places = np.bincount(starts[widths == width])
        assert len(places) == size - width + 1  # the last one ends with the axis
        assert like_uniform(places)


def test_masks_of_a_clip_are_independent():
    size, masks, max_width = 312, 20, 8
    hidden = stripes(5_000, size, masks, max_width, torch.device("cpu")).float()
    # Away from the ends a mask of width w covers a place in w of size - w + 1 cases.
    covered = np.mean([w / (size - w + 1) for w in range(max_width)])
    assert hidden[:, 10:-10].mean() == pytest.approx(1 - (1 - covered) ** masks, abs=0.003)
    assert hidden.sum(1).max() <= masks * (max_width - 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_each_clip_of_a_batch_has_stripes_of_zeros_and_no_other_change(dtype):
    mel = (torch.randn(64, 96, 312) + 10).to(dtype)
    before = mel.clone()
    masked = spec_augment(mel, 20, 8, 8, 5)
    assert masked.dtype == dtype
    assert torch.equal(mel, before)
    hidden = masked == 0
    assert torch.equal(masked[~hidden], mel[~hidden])
    time, freq = hidden.all(1), hidden.all(2)
    assert torch.equal(hidden, time[:, None] | freq[:, :, None])
    assert len(time.unique(dim=0)) == len(freq.unique(dim=0)) == 64
    # and what one clip has says nothing of the next one's
    together = (freq[:-1] & freq[1:]).float().mean()
    assert together == pytest.approx(float(freq.float().mean()) ** 2, abs=0.02)


def test_masks_off():
    ones = torch.ones(16, 96, 100)
    time, freq = spec_augment(ones, 4, 8, 0, 5) == 0, spec_augment(ones, 0, 8, 4, 5) == 0
    assert time.any()
    assert torch.equal(time, time[:, :1].expand_as(time))
    assert freq.any()
    assert torch.equal(freq, freq[:, :, :1].expand_as(freq))
    assert spec_augment(ones, 4, 1, 4, 1) is ones  # widths below 1


def weights(clips: int, alpha: float) -> torch.Tensor:
    """[clips, clips]: how much of each clip (column) is in each mixed one (row)."""
    torch.manual_seed(7)
    return mixup(torch.zeros(clips, 1), torch.eye(clips), alpha)[1]


def test_draws_are_a_weight_each_and_then_a_permutation():
    """The order must not change: a seed reproduces older runs."""
    torch.manual_seed(7)
    share = torch.distributions.Beta(0.3, 0.3).sample((12,))
    partner = torch.randperm(12)
    after = torch.get_rng_state()
    share = torch.maximum(share, 1 - share)  # at least half of each clip stays
    expected = torch.diag(share) + torch.eye(12)[partner] * (1 - share)[:, None]
    assert torch.equal(weights(12, 0.3), expected)
    assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_mixed_clips_and_targets_are_the_same_mixtures(dtype):
    x, targets = torch.randn(40, 3, 5).to(dtype), torch.rand(40, 7)
    before, shares = x.clone(), weights(40, 0.3)
    torch.manual_seed(7)
    mixed, mixed_targets = mixup(x, targets, 0.3)
    assert torch.equal(x, before)
    assert mixed.dtype == dtype
    expected = torch.einsum("ij,jkl->ikl", shares.double(), x.double())
    # A weight is drawn in the clips' type.
    tolerance = {"atol": 1e-6 if dtype == torch.float64 else 0.03, "rtol": 0}
    torch.testing.assert_close(mixed.double(), expected, **tolerance)
    torch.testing.assert_close(mixed_targets, shares @ targets, **tolerance)


def test_a_large_alpha_mixes_halves_a_small_one_hardly_and_none_not_at_all():
    # A clip that is its own partner is unchanged.
    assert weights(500, 1e4).diagonal().sort().values[-10] < 0.6
    assert weights(500, 1e-3).diagonal().median() > 0.999
    x, y = torch.rand(2, 4, 3)
    state = torch.get_rng_state()
    assert mixup(x, y, 0) == (x, y)
    assert torch.equal(torch.get_rng_state(), state)


def test_each_clip_is_rolled_by_its_own_shift():
    mel = torch.randn(400, 3, 20)
    shifts = []
    for before, after in zip(mel, roll(mel, 2), strict=True):
        (shift,) = [s for s in range(-2, 3) if torch.equal(after, torch.roll(before, s, dims=1))]
        shifts.append(shift + 2)
    counts = np.bincount(shifts)
    assert len(counts) == 5
    assert like_uniform(counts)


def test_a_roll_of_none_and_one_longer_than_the_clip():
    mel, state = torch.arange(5.0).expand(50, 1, 5), torch.get_rng_state()
    assert roll(mel, 0) is mel
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(roll(mel, 12).sort(dim=2).values, mel)
