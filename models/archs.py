"""The named architectures: name → sizes."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass

from helpers.melspectrogram import HOP_LENGTH, SAMPLE_RATE


@dataclass(frozen=True)
class Arch:
    """Sizes of a network. All have 12 blocks, and heads of 64 channels."""

    embed_dim: int
    num_heads: int
    depth: int = 12
    clip_length: float = 10.0  # seconds, unless input_t says otherwise

    @property
    def input_t(self) -> int:
        return input_frames(self.clip_length)


ARCHS = {
    "maest_tiny": Arch(embed_dim=192, num_heads=3),  # 5.4 M parameters: learns on a laptop
    "maest_small": Arch(embed_dim=384, num_heads=6),  # 22 M
    "maest_base": Arch(embed_dim=768, num_heads=12),  # 85 M: the size of the released models
}


def input_frames(clip_length: float) -> int:
    """Frames of an input of ``clip_length`` seconds: 5 → 312, 10 → 625, 20 → 1250, 30 → 1875."""
    return int(clip_length * SAMPLE_RATE // HOP_LENGTH)


def find_arch(name: str) -> Arch:
    """Look up an architecture.

    Raises:
        ValueError: if there is none of that name; the message lists all, and the nearest.
    """
    if name in ARCHS:
        return ARCHS[name]
    near = difflib.get_close_matches(str(name), ARCHS, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown arch {name!r}: expected one of {', '.join(ARCHS)}.{hint}")


def clip_seconds(input_t: int) -> float:
    """Seconds of an input of ``input_t`` frames, the inverse of :func:`input_frames`: 312 → 5."""
    exact = input_t * HOP_LENGTH / SAMPLE_RATE
    for digits in range(3):  # the roundest number that makes as many frames
        rounded = math.ceil(exact * 10**digits) / 10**digits
        if input_frames(rounded) == input_t:
            return rounded
    return exact
