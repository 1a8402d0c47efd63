"""A small log-mel spectrogram of a whole track, put together piece by piece."""

from __future__ import annotations

import numpy as np

from maest.helpers.mel_constants import N_MELS

_COLUMNS = 4096  # at most


class Thumbnail:
    """A track's log-mel, averaged over time to few columns, however long it is."""

    def __init__(self) -> None:
        self._frames = 4  # of a column
        self._sums = np.zeros((0, N_MELS), np.float32)
        self._counts = np.zeros(0, np.float32)

    def add(self, mel: np.ndarray, first: int) -> None:
        """Frames [n, 96] from frame ``first`` on."""
        while (first + len(mel)) // self._frames >= _COLUMNS:
            even = len(self._counts) + len(self._counts) % 2
            self._grow(even)
            self._sums = self._sums.reshape(-1, 2, N_MELS).sum(1)
            self._counts = self._counts.reshape(-1, 2).sum(1)
            self._frames *= 2
        columns = (first + np.arange(len(mel))) // self._frames
        self._grow(columns[-1] + 1)
        np.add.at(self._sums, columns, mel)
        np.add.at(self._counts, columns, 1)

    def _grow(self, columns: int) -> None:
        missing = columns - len(self._counts)
        if missing > 0:
            self._sums = np.pad(self._sums, ((0, missing), (0, 0)))
            self._counts = np.pad(self._counts, (0, missing))

    def columns(self, frames: int) -> np.ndarray:
        """float32 [96, columns] of a track of so many frames; silence where nothing was heard."""
        self._grow(-(-frames // self._frames))
        return (self._sums / np.maximum(self._counts, 1)[:, None]).T
