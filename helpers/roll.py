"""Roll augmentation, as in PaSST: a clip is turned round in time."""

from __future__ import annotations

import torch
from torch import Tensor


def roll(mel: Tensor, frames: int) -> Tensor:
    """Shift each clip in time by a random number of frames; what leaves one end enters the other.

    Args:
        mel: [B, F, T]; it is not changed.
        frames: shifts are uniform in -frames … frames, drawn per clip; 0 switches it off.

    Returns:
        shifted [B, F, T].
    """
    if not frames:
        return mel
    batch, _, length = mel.shape
    shift = torch.randint(-frames, frames + 1, (batch, 1), device=mel.device)
    source = (torch.arange(length, device=mel.device) - shift) % length  # [B, T]
    return mel.gather(2, source[:, None].expand(mel.shape))
