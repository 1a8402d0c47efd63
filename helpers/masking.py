"""SpecAugment, D. Park et al., Interspeech 2019: stripes of the spectrogram are masked.

The whole batch is masked at once, every clip by masks of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor


def stripes(batch: int, size: int, masks: int, max_width: int, device: torch.device) -> Tensor:
    """Draw masks along one axis.

    Args:
        batch: number of clips B.
        size: length of the axis.
        masks: number of masks for each clip.
        max_width: widths are uniform in 0 … max_width - 1 (at most ``size``); a mask lies anywhere
            that it fits.

    Returns:
        bool [B, size]: True where at least one mask lies.
    """
    widths = torch.randint(min(max_width, size + 1), (batch, masks, 1), device=device)
    room = size - widths + 1
    starts = (torch.rand(batch, masks, 1, device=device) * room).long().clamp(max=room - 1)
    at = torch.arange(size, device=device)
    return ((at >= starts) & (at < starts + widths)).any(dim=1)


def spec_augment(
    mel: Tensor, time_masks: int, time_width: int, freq_masks: int, freq_width: int
) -> Tensor:
    """Set stripes of time and of frequency to zero, the mean of a normalised spectrogram.

    Args:
        mel: [B, F, T], normalised; it is not changed.
        time_masks, freq_masks: masks for each clip; 0 for none.
        time_width, freq_width: widths are uniform below this, in frames and bands (the parameter of
            torchaudio's ``TimeMasking`` and ``FrequencyMasking``).

    Returns:
        masked [B, F, T].
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
