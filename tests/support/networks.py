"""A small network whose blocks do something."""

import torch
from torch import Tensor, nn

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


def tiny(seed: int = 0, **options) -> Maest:
    """Two blocks of 64 channels whose every parameter does something."""
    torch.manual_seed(seed)
    sizes = {"n_classes": 3, "input_t": 312, "embed_dim": 64, "num_heads": 1, "depth": 2}
    return perturbed(Maest(**(sizes | options)), seed)


@torch.no_grad()
def perturbed(module: nn.Module, seed: int = 0) -> nn.Module:
    """No bias is zero and no norm does nothing; outputs are about 1, whatever the width."""
    for i, parameter in enumerate(module.parameters()):
        amount = 0.4 / max(parameter.shape) ** 0.5
        parameter.add_(amount * noise(*parameter.shape, seed=1000 * seed + i))
    return module.eval()


def same_weights(one: nn.Module | dict[str, Tensor], other: nn.Module | dict[str, Tensor]) -> bool:
    """Whether two networks or state dicts have the same names and values."""
    a, b = (m.state_dict() if isinstance(m, nn.Module) else m for m in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
