"""How a track is cut into patches: one rule, for waveforms in the network and for files on disk.

Whoever changes this changes the embeddings of every track that is longer than one patch.
"""

from __future__ import annotations

import math

from helpers.melspectrogram import HOP_LENGTH, SAMPLE_RATE

FRAMES_PER_SECOND = SAMPLE_RATE / HOP_LENGTH  # 62.5
PATCH_SIZE = 16  # frames (and bands) under one patch embedding: no input can be shorter
SHORTEST_REMAINDER = math.ceil(FRAMES_PER_SECOND)  # frames: a second, rounded up


def cut(frames: int, longest: int) -> list[tuple[int, int]]:
    """Cut a track into consecutive patches.

    Patches of ``longest`` frames one after the other; what remains is one more, shorter patch if
    it lasts a second or more, and is left out otherwise. A track shorter than one patch is one
    shorter patch, however short.

    Args:
        frames: length of the track, in frames, at least 1.
        longest: the model's input length, in frames.

    Returns:
        ``(first frame, one past the last frame)`` of each patch, in order.
    """
    if frames < 1 or longest < 1:
        raise ValueError(f"cannot cut {frames} frames into patches of {longest}")
    starts = range(0, frames, longest)
    patches = [(start, min(start + longest, frames)) for start in starts]
    if len(patches) > 1 and patches[-1][1] - patches[-1][0] < SHORTEST_REMAINDER:
        patches.pop()
    return patches


def seconds(frames: int) -> float:
    """The duration of ``frames`` frames."""
    return frames / FRAMES_PER_SECOND
