"""Tracks as chunks of patches, read in several processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from maest.datasets.tracks import TrackSource
from maest.helpers.chunks import Chunk, Cutting
from maest.helpers.processes import TIME_LIMIT, process_map


class ChunkLoader:
    """Chunks of tracks, as they are read. To be iterated over, any number of times.

    A track whose worker process is killed, or hangs, is retried alone when all others are done,
    with ``attempt`` 1. If that fails too, it comes as a chunk with ``error``. See
    `helpers.processes.process_map`.

    Args:
        source: of the tracks. It is pickled where processes are not forks.
        indices: of the tracks to read, each once.
        cutting: how they are cut into patches.
        per_chunk: patches in a chunk, at most.
        num_workers: reading processes; 0 to read in this one.
        waveforms: whether chunks of audio are waveforms rather than log-mels.
        pin_memory: whether the patches are in page-locked memory, which a GPU copies faster.
        time_limit: seconds without a chunk, after which a process is taken to hang.
        start_method: of processes: "fork", "spawn" or "forkserver"; None for Python's default.

    Raises:
        InputError: when iterating: processes end before they read anything.
    """

    def __init__(
        self,
        source: TrackSource,
        indices: Sequence[int],
        cutting: Cutting,
        *,
        per_chunk: int,
        num_workers: int,
        waveforms: bool = False,
        pin_memory: bool = False,
        time_limit: float | None = TIME_LIMIT,
        start_method: str | None = None,
    ) -> None:
        self.source, self.indices, self.pin_memory = source, indices, pin_memory
        self._read = partial(
            _read, source, cutting=cutting, per_chunk=per_chunk, waveforms=waveforms
        )
        self._how = {
            "num_workers": num_workers,
            "time_limit": time_limit,
            "start_method": start_method,
        }

    def __iter__(self) -> Iterator[Chunk]:
        results = process_map(self._read, self.indices, failed=self._failed, **self._how)
        for _, (chunk, patches), attempt in results:
            chunk.attempt = attempt
            if patches is not None:
                chunk.patches = torch.from_numpy(patches)
            yield chunk.pin_memory() if self.pin_memory else chunk

    def _failed(self, index: int, reason: str) -> tuple[Chunk, None]:
        return Chunk(self.source.keys[index], index, error=reason), None


def _read(source: TrackSource, index: int, **how) -> Iterator[tuple[Chunk, np.ndarray | None]]:
    """A track's chunks, with their patches apart: arrays go through a pipe faster than tensors."""
    for chunk in source.chunks(index, **how):
        patches = None if chunk.patches is None else chunk.patches.contiguous().numpy()
        yield replace(chunk, patches=None), patches
