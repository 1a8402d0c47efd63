"""Mixup: whose part is how large, and what that makes of the targets."""

from __future__ import annotations

import pytest
import torch

from maest.helpers.training.augment import mixup


def weights(clips: int, alpha: float, seed: int = 0) -> torch.Tensor:
    """[clips, clips]: how much of each clip (column) is in each mixed one (row)."""
    torch.manual_seed(seed)
    return mixup(torch.zeros(clips, 1), torch.eye(clips), alpha)[1]


def test_each_clip_is_the_partner_of_exactly_one():
    """Of itself, perhaps."""
    torch.manual_seed(0)
    found = weights(200, 0.3)
    own = found.diagonal()
    foreign = found - torch.diag(own)
    assert ((foreign > 0).sum(1) <= 1).all()
    assert ((foreign > 0).sum(0) <= 1).all()
    # A row without a foreign part is its own partner, or has a weight that rounds to 1.
    assert (foreign.sum(1) + own - 1).abs().max() < 1e-6
    assert (own >= 0.5).all()


def test_mixed_clips_and_targets_are_the_same_mixtures():
    x, targets = torch.randn(40, 3, 5), torch.rand(40, 7)
    shares = weights(40, 0.3, seed=3)
    torch.manual_seed(3)
    mixed, mixed_targets = mixup(x, targets, 0.3)
    torch.testing.assert_close(mixed, torch.einsum("ij,jkl->ikl", shares, x))
    torch.testing.assert_close(mixed_targets, shares @ targets)


def test_draws_are_a_weight_each_and_then_a_permutation():
    """In this order, from torch's seed: so that a seed gives the run that it always gave."""
    torch.manual_seed(7)
    share = torch.distributions.Beta(0.3, 0.3).sample((12,))
    partner = torch.randperm(12)
    after = torch.get_rng_state()
    share = torch.maximum(share, 1 - share)
    expected = torch.diag(share) + torch.eye(12)[partner] * (1 - share)[:, None]
    assert torch.equal(weights(12, 0.3, seed=7), expected)
    assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types_stay(dtype):
    x, targets = mixup(torch.ones(4, 2, 3, dtype=dtype), torch.ones(4, 2), 0.3)
    assert x.dtype == dtype
    torch.testing.assert_close(targets, torch.ones(4, 2))


def test_a_large_alpha_mixes_halves_and_a_small_one_hardly_at_all():
    # Of a clip that is its own partner, all is there.
    assert weights(500, 1e4).diagonal().sort().values[-10] < 0.6
    assert weights(500, 1e-3).diagonal().median() > 0.999
