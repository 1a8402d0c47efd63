"""Augmentation of batches of clips: roll, SpecAugment and mixup; 0 switches each off."""

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
    for axis, masks, width in ((2, time_masks, time_width), (1, freq_masks, freq_width)):
        if masks and width > 1:
            hidden = stripes(len(mel), mel.shape[axis], masks, width, mel.device)
            # A product with 0 and 1 is several times as fast on a CPU as filling by a mask.
            mel = mel * (~hidden).unsqueeze(3 - axis).to(mel.dtype)
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

    Each clip's weight is drawn from Beta(alpha, alpha), and at least 0.5. A target that is unknown
    (NaN) in either clip is unknown in their mixture. H. Zhang et al.,
    "mixup: Beyond Empirical Risk Minimization", ICLR 2018.
    """
    if not alpha:
        return x, targets
    # Apple's MPS cannot draw from a Beta distribution.
    device = torch.device("cpu") if x.device.type == "mps" else x.device
    alphas = torch.full((1,), float(alpha), device=device)
    # Validation would make the host wait for the device.
    beta = torch.distributions.Beta(alphas, alphas, validate_args=False)
    weight = beta.sample((len(x),)).flatten().to(x)
    weight = torch.maximum(weight, 1 - weight)
    partner = torch.randperm(len(x), device=x.device)

    def mix(values: Tensor) -> Tensor:
        share = weight.to(values.dtype).view(-1, *[1] * (values.ndim - 1))
        return values * share + values[partner] * (1 - share)

    return mix(x), mix(targets)
