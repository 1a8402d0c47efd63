"""Augmentation of batches of clips: roll, SpecAugment and mixup; 0 switches each off."""

from __future__ import annotations

import torch
from torch import Tensor


def roll(mel: Tensor, frames: int) -> Tensor:
    """Rotate each clip of [B, F, T] in time by -frames … frames, drawn per clip, as in PaSST."""
    if not frames:
        return mel
    batch, _, length = mel.shape
    shift = torch.randint(-frames, frames + 1, (batch, 1), device=mel.device)
    source = (torch.arange(length, device=mel.device) - shift) % length  # [B, T]
    return mel.gather(2, source[:, None].expand(mel.shape))


def spec_augment(
    mel: Tensor, time_masks: int, time_width: int, freq_masks: int, freq_width: int
) -> Tensor:
    """Mask normalised clips [B, F, T] by SpecAugment (D. Park et al., Interspeech 2019).

    Stripes of time and frequency, drawn per clip, become zero, the mean. Their widths are uniform
    below ``time_width`` frames and ``freq_width`` bands, as in torchaudio's ``TimeMasking``.
    """
    batch, bands, frames = mel.shape
    # Products with 0 and 1: several times as fast on a CPU as filling by a mask.
    if time_masks and time_width > 1:
        hidden = stripes(batch, frames, time_masks, time_width, mel.device)
        mel = mel * (~hidden)[:, None, :].to(mel.dtype)
    if freq_masks and freq_width > 1:
        hidden = stripes(batch, bands, freq_masks, freq_width, mel.device)
        mel = mel * (~hidden)[:, :, None].to(mel.dtype)
    return mel


def stripes(batch: int, size: int, masks: int, max_width: int, device: torch.device) -> Tensor:
    """Draw masks: bool [B, size], True inside; uniform widths of 0 … min(max_width - 1, size)."""
    widths = torch.randint(min(max_width, size + 1), (batch, masks, 1), device=device)
    room = size - widths + 1
    starts = (torch.rand(batch, masks, 1, device=device) * room).long().clamp(max=room - 1)
    at = torch.arange(size, device=device)
    return ((at >= starts) & (at < starts + widths)).any(dim=1)


def mixup(x: Tensor, targets: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Mix clips [B, ...] and targets [B, C] with a random permutation of the batch; new tensors.

    Each clip's weight is drawn from Beta(alpha, alpha), and at least 0.5. H. Zhang et al.,
    "mixup: Beyond Empirical Risk Minimization", ICLR 2018.
    """
    if not alpha:
        return x, targets
    # Apple's MPS cannot draw from a Beta distribution.
    device = torch.device("cpu") if x.device.type == "mps" else x.device
    alphas = torch.full((1,), float(alpha), device=device)
    # Validation would make the host wait for the device.
    beta = torch.distributions.Beta(alphas, alphas, validate_args=False)
    own = beta.sample((len(x),)).flatten().to(x)
    own = torch.maximum(own, 1 - own)
    partner = torch.randperm(len(x), device=x.device)

    def mix(values: Tensor) -> Tensor:
        weight = own.to(values.dtype).view(-1, *[1] * (values.ndim - 1))
        return values * weight + values[partner] * (1 - weight)

    return mix(x), mix(targets)
