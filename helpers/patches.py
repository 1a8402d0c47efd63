"""How a track is cut into patches: one rule, for waveforms in the network and for files on disk.

Whoever changes this changes the embeddings of every track that is longer than one patch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from helpers.melspectrogram import HOP_LENGTH, SAMPLE_RATE

FRAMES_PER_SECOND = SAMPLE_RATE / HOP_LENGTH  # 62.5
PATCH_SIZE = 16  # frames (and bands) under one patch embedding: no input can be shorter
SHORTEST_REMAINDER = math.ceil(FRAMES_PER_SECOND)  # frames: a second, rounded up
TAILS = ("keep", "drop", "pad")


def cut(
    frames: int, longest: int, hop: int | None = None, tail: str = "keep"
) -> list[tuple[int, int]]:
    """Cut a track into patches.

    Patches of ``longest`` frames, one every ``hop`` frames, as long as they are whole. What the
    last of them leaves is one more, shorter patch, which begins one hop later, if a second or more
    of it is in no patch before it; less is left out. A track shorter than one patch is one shorter
    patch, however short.

    Args:
        frames: length of the track, in frames, at least 1.
        longest: the model's input length, in frames.
        hop: from one patch to the next, in frames; ``longest`` if None. A smaller one makes patches
            overlap, a larger one leaves gaps.
        tail: what becomes of the shorter patch: "keep" it, "drop" it, or "pad" it with silence to
            ``longest``; its end, here, is that of the track all the same.

    Returns:
        ``(first frame, one past the last frame)`` of each patch, in order; with "drop", none of a
        track that is shorter than one.
    """
    hop = longest if hop is None else hop
    if frames < 1 or longest < 1 or hop < 1:
        raise ValueError(f"cannot cut {frames} frames into patches of {longest}, every {hop}")
    if tail not in TAILS:
        raise ValueError(f"tail is {tail!r}: expected one of {', '.join(TAILS)}")
    patches = [(start, start + longest) for start in range(0, frames - longest + 1, hop)]
    start, covered = len(patches) * hop, patches[-1][1] if patches else 0
    new = frames - max(start, covered)
    if tail != "drop" and new >= (SHORTEST_REMAINDER if patches else 1):
        patches.append((start, frames))
    return patches


def fresh(patches: Sequence[tuple[int, int]]) -> list[int]:
    """How many frames of each patch are in no patch before it: its weight in a track's mean."""
    covered, counts = 0, []
    for first, last in patches:
        counts.append(last - max(first, covered))
        covered = last
    return counts


def seconds(frames: int) -> float:
    """The duration of ``frames`` frames."""
    return frames / FRAMES_PER_SECOND


def times(patches: Sequence[tuple[int, int]], frames: int) -> list[tuple[float, float, float]]:
    """Start, centre and end of each patch, in seconds.

    The last frame of a track is centred on its end, or up to 16 ms beyond: no time is later than
    that, ``(frames - 1) / 62.5``.
    """
    end = max(1, frames - 1)
    return [
        (seconds(first), seconds(first + min(last, end)) / 2, seconds(min(last, end)))
        for first, last in patches
    ]
