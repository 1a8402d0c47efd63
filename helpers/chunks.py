"""What goes from the files to the network in extraction, and what comes out of it.

Audio or a log-mel file becomes :class:`Chunk` after chunk of patches, in a reading process; the
network makes a :class:`TrackResult` of them, which is written to files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maest.helpers.errors import InputError
from maest.helpers.melspectrogram import HOP_LENGTH, N_FFT, n_frames
from maest.helpers.patches import PATCH_SIZE, cut, fresh
from maest.helpers.settings import listed

FINAL = -1  # the number that stands for the embedding after the final norm
# Whose embeddings, where nobody says: the paper's choice. Of a shallower network, the last block's.
DEFAULT_BLOCK = 7


def default_block(depth: int) -> int:
    """The block whose embeddings are taken of a network of so many, where nobody says."""
    return min(DEFAULT_BLOCK, depth - 1)


def chosen_blocks(given: Any, depth: int, setting: str = "blocks") -> tuple[int, ...]:
    """The blocks whose embeddings are asked for.

    Args:
        given: a block's number from 0, or -1 for the embedding after the final norm; several, as
            any sequence, array or typed list; "all"; or None for the default.
        depth: of the network.
        setting: what it is called, for messages.

    Raises:
        InputError: there is no such block, or one is named twice.
    """
    if given is None:
        return (default_block(depth),)
    if isinstance(given, str) and given == "all":
        return tuple(range(depth))
    given = given.tolist() if hasattr(given, "tolist") else given  # NumPy's and PyTorch's
    several = isinstance(given, Iterable) and not isinstance(given, str)
    blocks = [_whole(part) for part in (given if several else listed(given))]
    known = [type(block) is int and FINAL <= block < depth for block in blocks]
    if not all(known) or len(set(blocks)) < len(blocks):
        raise InputError(
            f"{given!r} is no choice of this network's blocks",
            kind="invalid",
            hint=f"Give a number from 0 to {depth - 1}, or -1 for the embedding after the final "
            'norm; several, each once, such as [6,7]; or "all".',
            setting=setting,
        )
    return tuple(blocks)


def _whole(part: Any) -> Any:
    """7 of 7, 7.0 and "7"; anything else as it is."""
    if isinstance(part, str) and re.fullmatch(r"-?\d+", part):
        return int(part)
    if isinstance(part, Real) and not isinstance(part, bool) and part == part // 1:
        return int(part)
    return part


@dataclass(frozen=True)
class Cutting:
    """How tracks are cut into patches, see `helpers.patches.cut`.

    Attributes:
        longest: frames of a whole patch.
        hop: frames from one patch to the next; None for ``longest``.
        tail: "keep", "drop" or "pad".
    """

    longest: int
    hop: int | None = None
    tail: str = "keep"

    def spans(self, frames: int) -> list[tuple[int, int]]:
        """The patches of a track of so many frames."""
        return cut(frames, self.longest, self.hop, self.tail)


@dataclass
class Chunk:
    """Some consecutive patches of one track, all of one length; or word that it cannot be read.

    A track comes as chunks in order, the last of which is marked; or with ``error``, after which no
    more of it come.

    Attributes:
        key: the track's.
        index: its number in the run; chunks of one track have the same.
        attempt: how many-th reading of the track this is, from 0: a reading process may die, and
            what came of the attempt before is void then.
        patches: [n, T frames, 96] log-mel, not normalised, float16 or float32; or
            [n, samples] float32, the waveforms that such patches are computed of
            (`log_mel_of`). None with an error, or where a last chunk brings nothing more.
        spans: int64 [n, 2], first frame of each patch and one past its last; padding not counted.
        fresh: int64 [n], frames that are in no patch before it.
        frames: of the whole track, in its last chunk; None in those before.
        error: why the track cannot be read, or not to its end.
        warnings: why results of it may mean little (`helpers.audio_blocks.sound_warnings`), in its
            last chunk.
    """

    key: str
    index: int
    attempt: int = 0
    patches: Tensor | None = None
    spans: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    fresh: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    frames: int | None = None
    error: str | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def last(self) -> bool:
        """Whether no more of this track comes."""
        return self.frames is not None or self.error is not None

    def to(self, device: torch.device | str | int, **options) -> Chunk:
        """Move the patches to a device; Lightning calls this."""
        if self.patches is not None:
            options = {"non_blocking": torch.device(device).type == "cuda", **options}
            self.patches = self.patches.to(device, **options)
        return self

    def pin_memory(self) -> Chunk:
        """Called by a DataLoader that pins memory."""
        if self.patches is not None:
            self.patches = self.patches.pin_memory()
        return self


@dataclass
class TrackResult:
    """What the network says of one track. P patches, D channels, C classes; all arrays float32.

    Attributes:
        key, index: of the track.
        seconds: its duration, rounded up to a whole frame (16 ms).
        times: float64 [P, 3]: start, centre and end of each patch, in seconds.
        embeddings: by block: [3, D] pooled over patches, or [P, 3, D]; of block -1 (`FINAL`), the
            embedding after the final norm, [D] or [P, D].
        logits: [C] pooled, or [P, C]; None if they were not asked for.
        activations: [C], of the track: the mean over patches of `Maest.activations`, weighted by
            the seconds they newly cover; None if they were not asked for.
        patch_activations: [P, C], of each patch.
        picture: [96, columns] log-mel of the whole track, averaged over time to some hundreds of
            columns; None if it was not asked for.
        warnings: "silent", "channels cancel", "0.1 s only": why all this may mean little.
    """

    key: str
    index: int
    seconds: float
    times: np.ndarray
    embeddings: dict[int, np.ndarray] = field(default_factory=dict)
    logits: np.ndarray | None = None
    activations: np.ndarray | None = None
    patch_activations: np.ndarray | None = None
    picture: np.ndarray | None = None
    warnings: list[str] = field(default_factory=list)


def samples_of(frames: int) -> int:
    """Samples under so many frames, from half a frame before the first to half one after it."""
    return (frames - 1) * HOP_LENGTH + N_FFT


def stream_patches(
    blocks: Iterable[np.ndarray], cutting: Cutting, per_chunk: int, key: str, index: int
) -> Iterator[Chunk]:
    """Cut a waveform that comes block by block into patches, as they fill.

    No more of it is held than one chunk and one block.

    Args:
        blocks: consecutive float32 pieces of the waveform, mono at 16 kHz. Its ``warnings``, if it
            has any (`helpers.audio.stream_audio`), are looked at after the last of them.
        cutting: how.
        per_chunk: patches in a chunk, at most.
        key, index: of the track.

    Yields:
        chunks of waveforms [n, samples]. Of a track from which ``cutting`` takes no patch, one
        without any.
    """
    hop = cutting.longest if cutting.hop is None else cutting.hop
    size = samples_of(cutting.longest)
    # Samples from `start` on; frame 0 begins half a frame before the first sample.
    held, start, total, done = [np.zeros(N_FFT // 2, np.float32)], -(N_FFT // 2), 0, 0
    length = N_FFT // 2
    ready: list[np.ndarray] = []

    def chunk(patches: list[np.ndarray], spans: list[tuple[int, int]], new: list[int]) -> Chunk:
        return Chunk(
            *(key, index, 0),
            torch.from_numpy(np.stack(patches)) if patches else None,
            np.array(spans, np.int64).reshape(-1, 2),
            np.array(new, np.int64),
        )

    def take(first: int, wanted: int) -> np.ndarray:
        """So many samples from frame ``first`` on; beyond the end there is silence."""
        nonlocal held
        held = [np.concatenate(held)] if len(held) > 1 else held
        begin = first * HOP_LENGTH - N_FFT // 2 - start
        found = held[0][begin : begin + wanted]
        return np.pad(found, (0, wanted - len(found)))

    def drop_before(first: int) -> None:
        """Forget the samples before frame ``first``."""
        nonlocal held, start, length
        gone = min(length, first * HOP_LENGTH - N_FFT // 2 - start)
        if gone > 0:
            held = [np.concatenate(held)[gone:]]
            start, length = start + gone, length - gone

    whole = 0  # patches that are sure to be whole, `done` of which were yielded
    for block in blocks:
        held.append(block)
        length, total = length + len(block), total + len(block)
        drop_before(whole * hop)
        while start + length >= whole * hop * HOP_LENGTH - N_FFT // 2 + size:
            ready.append(take(whole * hop, size))
            whole += 1
            drop_before(whole * hop)
            if len(ready) == per_chunk:
                spans = [(i * hop, i * hop + cutting.longest) for i in range(done, whole)]
                new = [
                    min(hop, cutting.longest) if i else cutting.longest for i in range(done, whole)
                ]
                yield chunk(ready, spans, new)
                ready, done = [], whole
    frames = n_frames(total) if total else 0
    spans = cutting.spans(frames) if total else []
    weights = fresh(spans)
    for first, last in spans[whole:]:
        short = last - first < cutting.longest
        wanted = cutting.longest
        if short and cutting.tail != "pad":
            wanted = max(last - first, PATCH_SIZE)
        if short and ready and wanted < cutting.longest:
            yield chunk(ready, spans[done:whole], weights[done:whole])
            ready, done = [], whole
        # Frames beyond the last are silent, whatever the last sample's place in it.
        ready.append(take(first, samples_of(wanted)))
        whole += 1
    final = chunk(ready, spans[done:whole], weights[done:whole])
    final.frames, final.warnings = frames, list(getattr(blocks, "warnings", ()))
    yield final


def log_mel_of(waveforms: Tensor, frontend: torch.nn.Module) -> Tensor:
    """[n, samples] of :func:`stream_patches` → [n, T frames, 96] log-mel, not normalised."""
    return frontend.of_padded(waveforms).transpose(-1, -2)
