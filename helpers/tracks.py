"""A track on its way through extraction: its log-mel first, then what the network makes of it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np

from maest.helpers.audio import stream_audio
from maest.helpers.audio_blocks import AudioError
from maest.helpers.log_mel import log_mel_pieces
from maest.helpers.mel_constants import N_MELS

# Frames of a log-mel that is kept in memory: three hours, 130 MB. A longer one goes to a file.
FRAMES_IN_MEMORY = 675_000
_COLUMNS = 4096  # of an overview, at most


@dataclass
class Track:
    """A track's log-mel; or why it has none, or no result."""

    key: str
    index: int = 0  # its number in the run
    # float16 [T, 96], as it is on disk: not normalised
    mel: np.ndarray = field(default_factory=lambda: np.zeros((0, N_MELS), np.float16))
    warnings: list[str] = field(default_factory=list)  # `helpers.audio_blocks.sound_warnings`
    error: str | None = None  # why it cannot be read (``mel`` is empty then), or not be computed


@dataclass
class TrackResult:
    """What the network says of one track. P patches, D channels, C classes; all arrays float32.

    What was not asked for is None.
    """

    key: str
    index: int  # its number in the run
    seconds: float  # its duration, rounded up to a whole frame (16 ms)
    times: np.ndarray  # float64 [P, 3]: start, centre and end of each patch, in seconds
    # By block: [3, D] pooled over patches, or [P, 3, D]; of block -1 (the embedding after the final
    # norm) [D] or [P, D]
    embeddings: dict[int, np.ndarray] = field(default_factory=dict)
    logits: np.ndarray | None = None  # [C] pooled, or [P, C]
    # [C], the mean over patches of `Maest.activations`, weighted by the seconds they newly cover
    activations: np.ndarray | None = None
    patch_activations: np.ndarray | None = None  # [P, C]
    picture: np.ndarray | None = None  # `overview` of the log-mel
    # Why all this may mean little: "silent", "channels cancel", "0.1 s only"
    warnings: list[str] = field(default_factory=list)


def overview(mel: np.ndarray) -> np.ndarray:
    """A log-mel [T, 96] averaged over time to at most 4096 columns: float32 [96, columns]."""
    frames = 4  # of a column
    while len(mel) > frames * _COLUMNS:
        frames *= 2
    starts = range(0, len(mel), frames)
    return np.stack([mel[s : s + frames].mean(axis=0, dtype=np.float32) for s in starts], axis=1)


def read_audio_mel(
    path: Path, scratch: Path, seconds: float | None = None
) -> tuple[np.ndarray, list[str]]:
    """The log-mel of an audio file, float16 [T, 96], and warnings about its sound.

    Of more than three hours, it is a memory map of a file in ``scratch``. With ``seconds``, only
    the central part is read. AudioError: as `helpers.audio.read_audio`.
    """
    with closing(stream_audio(path, seconds)) as blocks:
        return collect(log_mel_pieces(blocks), scratch), blocks.warnings


def collect(pieces: Iterable[np.ndarray], scratch: Path) -> np.ndarray:
    """Put pieces of a log-mel together: in memory, or if they are long in a file in ``scratch``."""
    pieces = iter(pieces)
    held: list[np.ndarray] = []
    for piece in pieces:
        held.append(piece)
        if sum(map(len, held)) > FRAMES_IN_MEMORY:
            break
    else:
        return np.concatenate(held)
    handle, path = tempfile.mkstemp(suffix=".mmap", dir=scratch)
    try:
        with os.fdopen(handle, "wb") as file:
            for piece in chain(held, pieces):
                file.write(piece.data)
    except OSError as error:
        os.unlink(path)
        what = f"its log-mel, of hours, cannot be kept in {scratch}: {error.strerror}"
        hint = "Make room there, or set TMPDIR to a folder with more."
        raise AudioError(what, kind="access", hint=hint) from None
    return np.memmap(path, np.float16, "r").reshape(-1, N_MELS)
