"""Roll augmentation."""

from __future__ import annotations

import torch

from maest.helpers.training.augment import roll


def test_each_clip_is_rolled_by_its_own_shift():
    torch.manual_seed(0)
    mel = torch.randn(400, 3, 20)
    rolled = roll(mel, 2)
    shifts = []
    for before, after in zip(mel, rolled, strict=True):
        (shift,) = [s for s in range(-2, 3) if torch.equal(after, torch.roll(before, s, dims=1))]
        shifts.append(shift)
    counts = [shifts.count(s) for s in range(-2, 3)]
    assert sum(counts) == 400
    assert min(counts) > 50  # of 80


def test_off_is_off_and_draws_nothing():
    mel = torch.randn(2, 3, 20)
    state = torch.get_rng_state()
    assert roll(mel, 0) is mel
    assert torch.equal(torch.get_rng_state(), state)


def test_shifts_longer_than_the_clip():
    torch.manual_seed(0)
    mel = torch.arange(5.0).expand(50, 1, 5)
    assert torch.equal(roll(mel, 12).sort(dim=2).values, mel)
