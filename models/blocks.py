"""A transformer block as `Maest` makes it: whether it still is."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

from maest.models.maest import Attention, Block, Mlp

_Module = TypeVar("_Module", bound=nn.Module)


def sharing_copy(net: _Module) -> _Module:
    """A copy of a network's modules that shares its parameters and buffers, and so their memory.

    The modules' mode, type and parts can be changed without a trace in the network.
    """
    shared = (*net.parameters(), *net.buffers())
    return copy.deepcopy(net, {id(tensor): tensor for tensor in shared})


def is_standard(block: nn.Module) -> bool:
    """Whether a block is as `Maest` makes it: no layer replaced or added, and none with hooks.

    Then it can be computed from its parameters, in eval mode.
    """
    if type(block) is not Block or type(block.attn) is not Attention or type(block.mlp) is not Mlp:
        return False
    layers = (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2)
    return (
        all(type(layer) is nn.Linear and layer.bias is not None for layer in layers)
        and all(isinstance(layer, nn.LayerNorm) for layer in (block.norm1, block.norm2))
        and not any("forward" in vars(m) for m in block.modules())
        and not any(m._forward_hooks or m._forward_pre_hooks for m in block.modules())
    )
