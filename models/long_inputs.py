"""Inputs longer than a patch: cut, and encoded some patches at a time.

The mean over a track's patches is `helpers.patches.pooled`, weighted by the frames that each of
them adds (`helpers.patches.new_frames`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from maest.helpers.patches import cut

if TYPE_CHECKING:
    from maest.models.maest import Maest

# So many tokens go through the network at a time, however long an input is: about 0.6 GB of
# activations in the base model; 9 patches of 30 s, 58 of 5 s, or 1489 of 16 frames.
TOKENS_PER_PASS = 16_384


class Outputs(NamedTuple):
    """What one pass computes of [B, F, T].

    Attributes:
        logits: [B, C], or None where they were not asked for. In training mode, of a network with
            two heads, [2, B, C]: the cls token's and the dist token's.
        embeddings: by block, [B, 3, D]: cls token, dist token, mean of all others; and of -1, after
            the final norm, [B, D].
    """

    logits: Tensor | None
    embeddings: dict[int, Tensor]


def encode_long(net: Maest, mel: Tensor, blocks: Sequence[int], logits: bool) -> Outputs:
    """The outputs of the patches of one input, normalised log-mel [F, T] of any length."""
    spans = cut(mel.shape[-1], net.input_t)
    return encode_patches(net, [mel[:, first:last] for first, last in spans], blocks, logits)


def encode_patches(
    net: Maest, patches: Sequence[Tensor], blocks: Sequence[int], logits: bool
) -> Outputs:
    """The outputs of patches [F, T], of any lengths up to the network's, in their order.

    Patches of one length go through the network together.
    """
    by_length = sorted(range(len(patches)), key=lambda i: -patches[i].shape[-1])
    passes = []
    for length, group in groupby(by_length, key=lambda i: patches[i].shape[-1]):
        numbers = list(group)
        together = max(1, TOKENS_PER_PASS // net.n_tokens(length, training=False))
        for first in range(0, len(numbers), together):
            mel = torch.stack([patches[i] for i in numbers[first : first + together]])
            passes.append(net.encode(mel, blocks, logits))
    places = torch.tensor(by_length).argsort().to(patches[0].device)

    def joined(parts: list[Tensor], dim: int = 0) -> Tensor:
        return torch.cat(parts, dim).index_select(dim, places)

    return Outputs(
        joined([p.logits for p in passes if p.logits is not None], -2) if logits else None,
        {block: joined([p.embeddings[block] for p in passes]) for block in passes[0].embeddings},
    )
