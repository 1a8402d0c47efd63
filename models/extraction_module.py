"""Extraction under Lightning, which says on which devices, and in which precision."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytorch_lightning as pl

from maest.helpers.chunks import Chunk, TrackResult
from maest.models.batching import Batcher, Encoder, Failure

_END = -1  # the index of a chunk that stands for the end of all


class ThenEnd:
    """Chunks, and after them one that says that there are no more."""

    def __init__(self, chunks: Iterable[Chunk]) -> None:
        self.chunks = chunks

    def __iter__(self) -> Iterator[Chunk]:
        yield from self.chunks
        yield Chunk("", _END)


class ExtractionModule(pl.LightningModule):
    """Chunks of tracks in, results of tracks out: to be run over :class:`ThenEnd`.

    Args:
        encoder, patches_per_pass: of :class:`models.batching.Batcher`.
    """

    def __init__(self, encoder: Encoder, patches_per_pass: int | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self._batcher = Batcher(encoder, patches_per_pass)

    def predict_step(self, chunk: Chunk, batch_idx: int) -> list[TrackResult | Failure]:
        """The tracks that are complete with this chunk."""
        return self._batcher.flush() if chunk.index == _END else self._batcher.feed(chunk)
