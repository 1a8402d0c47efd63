"""A track in extraction: its log-mel, then the network's results."""

import os
import tempfile
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np

from maest.helpers.audio.blocks import AudioError, Meter
from maest.helpers.audio.constants import HOP_LENGTH, N_MELS, n_frames
from maest.helpers.audio.log_mel import log_mel, log_mel_pieces
from maest.helpers.audio.patches import PatchPlan
from maest.helpers.audio.patches import seconds as plan_seconds
from maest.helpers.audio.reading import read_parts, stream_audio
from maest.helpers.errors import Kind

# Most frames of a log-mel in memory: three hours, 130 MB. A longer one goes to a file.
FRAMES_IN_MEMORY = 675_000
_COLUMNS = 4096  # most columns of an overview


@dataclass
class Track:
    """A track's log-mel, or the error that left it without one, or without a result."""

    key: str
    index: int = 0  # its number in the run
    # float16 [T, 96], as it is on disk: not normalised
    mel: np.ndarray = field(default_factory=lambda: np.zeros((0, N_MELS), np.float16))
    warnings: list[str] = field(default_factory=list)  # `helpers.audio.blocks.sound_warnings`
    error: str | None = None  # why it cannot be read (``mel`` is empty then) or computed
    kind: Kind | None = None  # of the error, where it is known


@dataclass
class TrackResult:
    """A track's results: P patches, D channels, C classes, float32; None if not requested."""

    key: str
    index: int  #: its number in the run
    seconds: float  #: its duration, rounded up to a whole frame (16 ms)
    times: np.ndarray  #: float64 [P, 3]: start, centre and end of each patch, in seconds
    #: By block: [3, D] pooled over patches, or [P, 3, D]; of block -1 (the embedding after the
    #: final norm) [D] or [P, D]
    embeddings: dict[int, np.ndarray] = field(default_factory=dict)
    logits: np.ndarray | None = None  #: [C] pooled, or [P, C]
    #: [C], the mean over patches of `Maest.activations`, weighted by the seconds they newly cover
    activations: np.ndarray | None = None
    patch_activations: np.ndarray | None = None  #: [P, C]
    picture: np.ndarray | None = None  #: `overview` of the log-mel
    #: Reasons to doubt the results: "silent", "channels cancel", "0.1 s only"
    warnings: list[str] = field(default_factory=list)


def overview(mel: np.ndarray) -> np.ndarray:
    """Average a log-mel [T, 96] over time to at most 4096 columns: float32 [96, columns]."""
    frames = 4  # of a column
    while len(mel) > frames * _COLUMNS:
        frames *= 2
    starts = range(0, len(mel), frames)
    return np.stack([mel[s : s + frames].mean(axis=0, dtype=np.float32) for s in starts], axis=1)


def read_audio_mel(
    path: Path, scratch: Path, seconds: float | None = None, plan: PatchPlan | None = None
) -> tuple[np.ndarray, list[str]]:
    """Return the log-mel of an audio file, float16 [T, 96], and warnings about its sound.

    ``seconds`` limits reading to the central part. Of a ``plan`` with few windows of a long file,
    only these are read where the format allows; the other frames are 0. For ``scratch``, see
    :func:`collect`. AudioError: see `helpers.audio.reading.read_audio`.
    """
    meter = Meter()
    if plan is not None and plan.most is not None and seconds is None:
        mel = _windows(path, plan, scratch, meter)
        if mel is not None:
            return mel, meter.warnings()
        meter = Meter()
    with closing(stream_audio(path, seconds, meter)) as blocks:
        return collect(log_mel_pieces(blocks), scratch), meter.warnings()


def _windows(path: Path, plan: PatchPlan, scratch: Path, meter: Meter) -> np.ndarray | None:
    """Read the windows of a plan alone; None if that is no gain, or not possible."""
    spans: list[tuple[int, int]] = []

    def parts(samples: int) -> list[tuple[int, int]]:
        # A frame covers two hops. One more before the first keeps the edge out of it.
        spans.extend(plan.spans(n_frames(samples)))
        return [(max(0, a - 1) * HOP_LENGTH, min(samples, b * HOP_LENGTH)) for a, b in spans]

    longer_than = 2 * (plan.most or 0) * plan_seconds(plan.length)
    found = read_parts(path, longer_than, parts, meter)
    if found is None:
        return None
    samples, waves = found
    frames = n_frames(samples)
    if frames > FRAMES_IN_MEMORY:
        handle, name = tempfile.mkstemp(suffix=".mmap", dir=scratch)
        os.close(handle)
        mel: np.ndarray = np.memmap(name, np.float16, "w+", shape=(frames, N_MELS))
    else:
        mel = np.zeros((frames, N_MELS), np.float16)
    for (a, b), wave in zip(spans, waves, strict=True):
        skip = min(a, 1)
        mel[a:b] = log_mel(wave)[skip : skip + b - a]
    return mel


def collect(pieces: Iterable[np.ndarray], scratch: Path) -> np.ndarray:
    """Join a log-mel in memory; above three hours, as a map of a file in ``scratch``.

    AudioError: there is no room for that.
    """
    pieces, frames = iter(pieces), 0
    in_memory: list[np.ndarray] = []
    for piece in pieces:
        in_memory.append(piece)
        frames += len(piece)
        if frames > FRAMES_IN_MEMORY:
            break
    else:
        return np.concatenate(in_memory)
    handle, path = tempfile.mkstemp(suffix=".mmap", dir=scratch)
    try:
        with os.fdopen(handle, "wb") as file:
            for piece in chain(in_memory, pieces):
                file.write(piece.data)
    except OSError as error:
        os.unlink(path)  # other tracks need the room
        what = f"its log-mel, of hours, cannot be kept in {scratch}: {error.strerror}"
        hint = "Make room there, or set TMPDIR to a folder with more."
        raise AudioError(what, kind="access", hint=hint) from None
    return np.memmap(path, np.float16, "r").reshape(-1, N_MELS)
