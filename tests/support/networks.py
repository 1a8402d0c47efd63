"""A small network whose blocks do something."""

from __future__ import annotations

import torch

from maest.models.maest import Maest


def small(**options) -> Maest:
    """Three blocks of 128 channels, in eval mode; ``options`` of `Maest` take their place."""
    torch.manual_seed(0)
    sizes = {"n_classes": 3, "input_t": 312, "embed_dim": 128, "num_heads": 2, "depth": 3}
    net = Maest(**(sizes | options)).eval()
    with torch.no_grad():  # fresh weights are so small that a block changes next to nothing
        for block in net.blocks:
            for parameter in block.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return net
