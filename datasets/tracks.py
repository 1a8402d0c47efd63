"""Whole tracks for extraction: which there are, and reading one in chunks of patches.

`datasets.chunk_loader` does so in several processes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from maest.datasets.batches import PackedStrings
from maest.datasets.collection import find_audio, no_audio, split_shard
from maest.datasets.melspectrograms import MelFile, mel_path
from maest.helpers.audio import stream_audio
from maest.helpers.audio_blocks import mel_warnings
from maest.helpers.chunks import Chunk, Cutting, log_mel_of, stream_patches
from maest.helpers.errors import InputError
from maest.helpers.melspectrogram import N_MELS, MelSpectrogram, front_end
from maest.helpers.patches import PATCH_SIZE, fresh, seconds

_EXPECTED = "Give an audio file, or a folder of them."
_LONGEST_REASON = 300  # characters of an error that nobody foresaw


class TrackSource(ABC):
    """Tracks below a folder. Worker processes share the memory of their keys.

    Args:
        folder: where the tracks are.
        keys: of the tracks; any text, escaped bytes that are no UTF-8 included.

    Attributes:
        folder: the same, absolute.
        keys: the same.
    """

    def __init__(self, folder: str | Path, keys: Sequence[str]) -> None:
        self.folder = Path(folder).resolve()
        self.keys: Sequence[str] = PackedStrings(keys)

    def __len__(self) -> int:
        return len(self.keys)

    @abstractmethod
    def path(self, index: int) -> Path:
        """The file of a track."""

    def chunks(
        self,
        index: int,
        cutting: Cutting,
        per_chunk: int,
        waveforms: bool = False,
        frontend: MelSpectrogram | None = None,
    ) -> Iterator[Chunk]:
        """Read one track, no more of it at a time than one chunk.

        Args:
            index: of the track.
            cutting: how it is cut into patches.
            per_chunk: patches in a chunk, at most.
            waveforms: whether chunks of audio are waveforms, for a log-mel that is computed
                elsewhere. Those of log-mel files are log-mels all the same.
            frontend: what computes the log-mel of audio; None for one on the CPU.

        Yields:
            its chunks, in order. Whatever goes wrong is a last chunk with ``error``.
        """
        key, some = self.keys[index], False
        try:
            with closing(self._read(index, cutting, per_chunk, waveforms, frontend)) as chunks:
                for chunk in chunks:
                    some = some or chunk.patches is not None
                    if chunk.frames is not None and not some:
                        chunk = Chunk(key, index, error=_no_patch(chunk.frames, cutting))
                    yield chunk
        except InputError as error:
            yield Chunk(key, index, error=error.reason)
        except Exception as error:  # whatever a damaged file leads to, the others are read
            yield Chunk(key, index, error=f"{type(error).__name__}: {error}"[:_LONGEST_REASON])

    @abstractmethod
    def _read(
        self,
        index: int,
        cutting: Cutting,
        per_chunk: int,
        waveforms: bool,
        frontend: MelSpectrogram | None,
    ) -> Iterator[Chunk]:
        """The same; errors are raised, and a track may come without any patch."""


class AudioTracks(TrackSource):
    """Audio files: a key is a path relative to the folder, with its suffix.

    Attributes:
        seconds: of each track, at most so many are read, its centre; None: all.
    """

    seconds: float | None = None

    def path(self, index: int) -> Path:
        return self.folder / self.keys[index]

    def _read(
        self,
        index: int,
        cutting: Cutting,
        per_chunk: int,
        waveforms: bool,
        frontend: MelSpectrogram | None,
    ) -> Iterator[Chunk]:
        key = self.keys[index]
        with closing(stream_audio(self.path(index), self.seconds)) as blocks:
            for chunk in stream_patches(blocks, cutting, per_chunk, key, index):
                if chunk.patches is not None and not waveforms:
                    with torch.no_grad():
                        chunk.patches = log_mel_of(chunk.patches, frontend or front_end())
                yield chunk


class MelTracks(TrackSource):
    """Log-mel files: a key is that of a ground truth, see `datasets.melspectrograms.mel_path`."""

    def path(self, index: int) -> Path:
        return mel_path(self.folder, self.keys[index])

    def _read(
        self,
        index: int,
        cutting: Cutting,
        per_chunk: int,
        waveforms: bool,
        frontend: MelSpectrogram | None,
    ) -> Iterator[Chunk]:
        key = self.keys[index]
        with MelFile.of_key(self.folder, key) as mel:
            frames = len(mel)
            spans = cutting.spans(frames)
            weights = fresh(spans)
            if not spans:
                yield Chunk(key, index, frames=frames)
            first, peak = 0, 0.0
            while first < len(spans):
                length = _patch_frames(spans[first], cutting)
                last = first + 1
                while (
                    last < min(len(spans), first + per_chunk)
                    and _patch_frames(spans[last], cutting) == length
                ):
                    last += 1
                patches = _read_spans(mel, spans[first:last], length)
                peak = max(peak, float(patches.max()))
                chunk = Chunk(
                    key,
                    index,
                    patches=torch.from_numpy(patches),
                    spans=np.array(spans[first:last], np.int64),
                    fresh=np.array(weights[first:last], np.int64),
                )
                if last == len(spans):
                    chunk = replace(chunk, frames=frames, warnings=mel_warnings(frames, peak))
                yield chunk
                first = last


def _no_patch(frames: int, cutting: Cutting) -> str:
    if not frames:
        return "no audio in it (0 samples)"
    return (
        f"shorter than a patch ({seconds(cutting.longest):g} s) and inference.tail=drop leaves "
        "such out"
    )


def _patch_frames(span: tuple[int, int], cutting: Cutting) -> int:
    """How many frames a patch of these has, padding counted."""
    own = span[1] - span[0]
    if own == cutting.longest or cutting.tail == "pad":
        return cutting.longest
    return max(own, PATCH_SIZE)


def _read_spans(mel: MelFile, spans: list[tuple[int, int]], length: int) -> np.ndarray:
    """[n, length, 96], float16 if the file is and else float32; zeros behind what is shorter."""
    dtype = np.float16 if mel.dtype == np.float16 else np.float32
    out = np.empty((len(spans), length, N_MELS), dtype)
    for patch, (first, last) in zip(out, spans, strict=True):
        mel.read_into(patch[: last - first], first)
        patch[last - first :] = 0
    return out


# ---- which tracks there are ----------------------------------------------------------------------


class Found(NamedTuple):
    """What :func:`find_tracks` found.

    Attributes:
        tracks: the audio, in the order of its names' bytes.
        failed: folders that may not be read, relative to the folder → reason.
        left_out: suffix, or name of a folder, that is not taken for music → how many there are.
    """

    tracks: AudioTracks
    failed: dict[str, str]
    left_out: Counter[str]


def find_tracks(audio: str | Path, leave_out: str | Path | None = None) -> Found:
    """Find the audio that ``inference.audio`` names.

    Args:
        audio: an audio file, whatever its suffix; or a folder of audio, with any folders in it:
            see `datasets.collection.find_audio`.
        leave_out: a folder that is not looked into, that of the results.

    Raises:
        InputError: there is no such file or folder, it may not be looked at, or there is no audio
            in it.
    """
    failed: dict[str, str] = {}
    left_out: Counter[str] = Counter()
    if not str(audio):
        raise InputError("is empty", kind="empty", hint=_EXPECTED, setting="inference.audio")
    path = Path(audio)
    try:
        path = path.expanduser()
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, RuntimeError) as error:  # RuntimeError: ~ of a user that there is not
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            reason, kind="access", hint=_EXPECTED, path=path, setting="inference.audio"
        ) from None
    if is_file:
        return Found(AudioTracks(path.parent, [path.name]), failed, left_out)
    if not is_folder:
        found = path.exists()
        raise InputError(
            "is neither a file nor a folder" if found else "no such file or folder",
            kind="invalid" if found else "missing",
            hint=_EXPECTED,
            path=path,
            setting="inference.audio",
        )
    folder = path.resolve()
    inside = None if leave_out is None else Path(leave_out).expanduser().resolve()
    names = find_audio(folder, inside, failed, left_out)
    if not names and not failed:
        raise no_audio(folder, left_out, "inference.audio")
    return Found(AudioTracks(folder, names), failed, left_out)


# ---- whose tracks they are -----------------------------------------------------------------------


def parse_shard(text: str) -> tuple[int, int]:
    """``3/100`` → (3, 100): the third of a hundred parts.

    Raises:
        InputError: for another text, and for a part that there is not.
    """
    shard = split_shard(str(text))
    if shard is None or not 1 <= shard[0] <= shard[1]:
        raise InputError(
            f"{str(text)!r} is no part of a whole",
            hint="Give K/N, such as 3/100, with K from 1 to N.",
            setting="inference.shard",
        )
    return shard


def own_share(
    total: int, shard: tuple[int, int] | None = None, rank: int = 0, world: int = 1
) -> range:
    """The tracks that one process is to do: those of all shards and ranks are all, each once.

    Args:
        total: number of tracks.
        shard: (k, n), the k-th of n parts, k from 1; None for all.
        rank, world: which of how many processes that share this part, from 0.

    Raises:
        ValueError: for a part or a rank that there is not.
    """
    k, n = shard or (1, 1)
    if not (1 <= k <= n and 0 <= rank < world):
        raise ValueError(f"there is no part {k} of {n}, or no process {rank} of {world}")
    return range(total)[k - 1 :: n][rank::world]
