"""A transformer block as `Maest` makes it: whether it still is, and the cheap way to its end."""

from __future__ import annotations

import copy
from typing import TypeVar

from timm.layers import Attention, Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

_Module = TypeVar("_Module", bound=nn.Module)


def sharing_copy(net: _Module) -> _Module:
    """A copy of a network's modules that shares its parameters and buffers, and so their memory.

    The modules' mode, type and parts can be changed without a trace in the network.
    """
    shared = (*net.parameters(), *net.buffers())
    return copy.deepcopy(net, {id(tensor): tensor for tensor in shared})


def is_standard(block: nn.Module) -> bool:
    """Whether a block is as `Maest` makes it: no layer replaced or added, and none with hooks.

    Then it can be computed from its parameters, in eval mode. A subclass of timm's block counts
    where it says that it computes the same, by an attribute ``computes_as_block``.
    """
    kind = type(block)
    if kind is not Block and not (issubclass(kind, Block) and "computes_as_block" in vars(kind)):
        return False
    if type(block.attn) is not Attention:
        return False
    attn, mlp = block.attn, block.mlp
    if type(mlp) is not Mlp or type(mlp.act) is not nn.GELU or mlp.act.approximate != "none":
        return False
    absent = (block.ls1, block.ls2, attn.q_norm, attn.k_norm, attn.norm, mlp.norm)
    layers = (attn.qkv, attn.proj, mlp.fc1, mlp.fc2)
    return (
        all(type(layer) is nn.Linear and layer.bias is not None for layer in layers)
        and all(isinstance(layer, nn.LayerNorm) for layer in (block.norm1, block.norm2))
        and all(type(layer) is nn.Identity for layer in absent)
        and attn.gate is None
        and not any("forward" in vars(m) for m in block.modules())
        and not any(m._forward_hooks or m._forward_pre_hooks for m in block.modules())
    )


def two_tokens(block: Block, x: Tensor) -> Tensor:
    """A standard block's output for the cls and dist tokens alone: [B, N, D] → [B, 2, D].

    In eval mode. They look at all tokens, whose keys and values need not exist for it: a query q
    meets the key W·x as (Wᵀ·q) meets x, and values are averaged before they are projected. The
    keys' bias adds the same to all scores of a query, which the softmax takes away. That leaves a
    hundredth of the block's products.
    """
    attention, normed = block.attn, block.norm1(x)
    heads, width = attention.num_heads, attention.head_dim
    of_query, of_key, of_value = attention.qkv.weight.chunk(3)
    query_bias, _, value_bias = attention.qkv.bias.chunk(3)
    query = F.linear(normed[:, :2], of_query, query_bias).unflatten(-1, (heads, width))
    # [B, 2, H, d] and [H, d, D] → [B, 2·H, D]: queries that meet the tokens themselves.
    query = (query.unsqueeze(-2) @ of_key.unflatten(0, (heads, width))).flatten(1, 3)
    tokens = normed[:, None]
    mixed = F.scaled_dot_product_attention(query[:, None], tokens, tokens, scale=attention.scale)
    mixed = mixed.unflatten(2, (2, heads, 1))[:, 0]  # [B, 2, H, 1, D]
    value = mixed @ of_value.unflatten(0, (heads, width)).mT + value_bias.view(heads, 1, width)
    x = x[:, :2] + attention.proj(value.flatten(2))
    return x + block.mlp(block.norm2(x))
