"""Mixup, H. Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def mixup(x: Tensor, targets: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Mix each clip of a batch with another one, inputs and targets alike.

    The weight λ of a clip's own part is drawn per clip from Beta(alpha, alpha) and is at least 0.5;
    partners are a random permutation of the batch.

    Args:
        x: [B, ...] inputs.
        targets: [B, C] targets.
        alpha: parameter of the Beta distribution; 0 switches mixup off.

    Returns:
        mixed ``(x, targets)``, new tensors.

    Raises:
        ValueError: for an alpha that is no distribution's: negative, or not finite.
    """
    if not alpha:
        return x, targets
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha is {alpha}: expected a number above 0, or 0 for no mixup")
    # Apple's MPS cannot draw from a Beta distribution.
    device = torch.device("cpu") if x.device.type == "mps" else x.device
    alphas = torch.full((1,), float(alpha), device=device)
    # Validation would have the host wait for the device.
    beta = torch.distributions.Beta(alphas, alphas, validate_args=False)
    own = beta.sample((len(x),)).flatten().to(x)
    own = torch.maximum(own, 1 - own)
    partner = torch.randperm(len(x), device=x.device)

    def mix(values: Tensor) -> Tensor:
        weight = own.to(values.dtype).view(-1, *[1] * (values.ndim - 1))
        return values * weight + values[partner] * (1 - weight)

    return mix(x), mix(targets)
