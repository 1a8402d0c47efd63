"""SpecAugment's masks, against a statement of them: how wide, where, and whose."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from maest.helpers.training.augment import spec_augment, stripes

CPU = torch.device("cpu")


def one_mask_each(clips: int, size: int, max_width: int) -> tuple[np.ndarray, np.ndarray]:
    """Widths [clips] of one mask each, and starts [clips]; -1 where there is none to see."""
    hidden = stripes(clips, size, 1, max_width, CPU).numpy()
    widths, starts = hidden.sum(1), np.where(hidden.any(1), hidden.argmax(1), -1)
    position = np.arange(size)
    inside = (position >= starts[:, None]) & (position < (starts + widths)[:, None])
    np.testing.assert_array_equal(hidden, inside & (widths[:, None] > 0))  # in one piece
    return widths, starts


def like_uniform(counts: np.ndarray) -> bool:
    """Whether these are counts of equally likely outcomes: within 5 standard deviations."""
    expected = counts.sum() / len(counts)
    return bool((np.abs(counts - expected) < 5 * np.sqrt(expected)).all())


@pytest.mark.parametrize(("size", "max_width"), [(96, 5), (312, 8), (20, 2), (6, 100)])
def test_widths_are_uniform_below_the_setting(size, max_width):
    torch.manual_seed(0)
    widths, _ = one_mask_each(20_000, size, max_width)
    possible = min(max_width, size + 1)
    counts = np.bincount(widths)
    assert len(counts) == possible  # 0 to max_width - 1, or all of a short axis
    assert like_uniform(counts)


@pytest.mark.parametrize("width", [1, 3, 7])
def test_a_mask_lies_anywhere_that_it_fits_the_ends_included(width):
    torch.manual_seed(1)
    size = 24
    widths, starts = one_mask_each(120_000, size, 8)
    counts = np.bincount(starts[widths == width])
    assert len(counts) == size - width + 1  # the last one ends with the axis
    assert like_uniform(counts)


def test_masks_of_a_clip_are_independent():
    torch.manual_seed(2)
    size, masks, max_width = 312, 20, 8
    hidden = stripes(5_000, size, masks, max_width, CPU).float()
    # Away from the ends a mask of width w covers a place in w of size - w + 1 cases.
    covered = np.mean([w / (size - w + 1) for w in range(max_width)])
    assert hidden[:, 10:-10].mean() == pytest.approx(1 - (1 - covered) ** masks, abs=0.003)
    assert hidden.sum(1).max() <= masks * (max_width - 1)


def test_every_clip_of_a_batch_has_masks_of_its_own():
    torch.manual_seed(3)
    hidden = spec_augment(torch.ones(64, 96, 312), 20, 8, 8, 5) == 0
    time, freq = hidden.all(1), hidden.all(2)
    assert len(time.unique(dim=0)) == 64
    assert len(freq.unique(dim=0)) == 64
    # and what one clip has says nothing of the next one's
    together = (freq[:-1] & freq[1:]).float().mean()
    assert together == pytest.approx(float(freq.float().mean()) ** 2, abs=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_not_masked_stays_as_it_is(dtype):
    torch.manual_seed(4)
    mel = (torch.randn(3, 96, 100) + 10).to(dtype)
    before = mel.clone()
    masked = spec_augment(mel, 5, 8, 3, 5)
    assert masked.dtype == dtype
    assert torch.equal(mel, before)
    hidden = masked == 0
    assert 0 < hidden.float().mean() < 0.6
    assert torch.equal(masked[~hidden], mel[~hidden])


def test_time_masks_and_frequency_masks_are_each_by_themselves():
    torch.manual_seed(5)
    ones = torch.ones(16, 96, 100)
    time = spec_augment(ones, 4, 8, 0, 5) == 0
    assert torch.equal(time, time[:, :1].expand_as(time))
    assert time.any()
    freq = spec_augment(ones, 0, 8, 4, 5) == 0
    assert torch.equal(freq, freq[:, :, :1].expand_as(freq))
    assert freq.any()
    assert spec_augment(ones, 4, 1, 4, 1) is ones  # widths below 1: there are none
