"""Whole tracks for extraction: find them, and have workers compute or read their log-mels."""

import tempfile
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from maest.datasets.audio_folder import find_audio
from maest.datasets.batches import PackedStrings
from maest.datasets.melspectrograms import MelFile, mel_path
from maest.helpers.audio.blocks import mel_warnings
from maest.helpers.audio.constants import N_MELS
from maest.helpers.audio.patches import PatchPlan
from maest.helpers.errors import InputError, Kind
from maest.helpers.results.tracks import Track, collect, read_audio_mel
from maest.helpers.work.processes import process_map

_LONGEST_REASON = 300  # characters of an unexpected error


class Tracks:
    """Tracks below a folder; a key is a file's path relative to the folder, or stands for it."""

    def __init__(self, folder: str | Path, keys: Sequence[str]) -> None:
        self.folder = Path(folder).resolve()
        self.keys = PackedStrings(keys)

    def path(self, index: int) -> Path:
        return self.folder / self.keys[index]

    def read(self, index: int, scratch: Path) -> Track:
        """Read a track; a failure goes into its ``error``. Very long log-mels go to ``scratch``."""
        key = self.keys[index]
        kind: Kind = "corrupt"
        try:
            return Track(key, index, *self._mel(index, scratch))
        except InputError as error:
            reason, kind = error.reason, error.kind
        except Exception as error:  # a corrupt file may raise anything; the others are read
            reason = f"{type(error).__name__}: {error}"[:_LONGEST_REASON]
            if isinstance(error, OSError | MemoryError):  # the machine's fault, not the file's
                kind = "access"
        return Track(key, index, error=reason, kind=kind)

    def _mel(self, index: int, scratch: Path) -> tuple[np.ndarray, list[str]]:
        raise NotImplementedError


class AudioTracks(Tracks):
    seconds: float | None = None  # read at most this much of each track, from its centre
    plan: PatchPlan | None = None  # of few windows: read these alone, where that is possible

    def _mel(self, index: int, scratch: Path) -> tuple[np.ndarray, list[str]]:
        return read_audio_mel(self.path(index), scratch, self.seconds, self.plan)


class MelTracks(Tracks):
    """Log-mel files; keys as in ground truths, see `datasets.melspectrograms.mel_path`."""

    def path(self, index: int) -> Path:
        return mel_path(self.folder, self.keys[index])

    def _mel(self, index: int, scratch: Path) -> tuple[np.ndarray, list[str]]:
        with MelFile.of_key(self.folder, self.keys[index]) as file:
            mel = collect(file.chunks(), scratch)
            return mel, mel_warnings(len(mel), float(mel.max()))


def read_tracks(tracks: Tracks, indices: Sequence[int], num_workers: int) -> Generator[Track]:
    """Yield tracks in the order in which workers finish them (`process_map`).

    A track whose worker is killed, or hangs, is retried alone at the end; a second failure goes
    into its ``error``. Raises InputError if workers end before they read anything.
    """
    with tempfile.TemporaryDirectory(prefix="maest-", ignore_cleanup_errors=True) as scratch:
        results = process_map(
            partial(_read, tracks, Path(scratch)),
            indices,
            num_workers=num_workers,
            failed=lambda i, reason: (Track(tracks.keys[i], i, error=reason, kind="worker"), None),
        )
        with closing(results):
            for track, path in results:
                if path is not None:
                    track.mel = np.memmap(path, np.float16, "r").reshape(-1, N_MELS)
                    path.unlink()  # the map keeps it until the track is done
                yield track


def _read(tracks: Tracks, scratch: Path, index: int) -> tuple[Track, Path | None]:
    """Read a track; a log-mel that is a memory map comes as the path of its file."""
    track, path = tracks.read(index, scratch), None
    if isinstance(track.mel, np.memmap):
        path, track.mel = Path(str(track.mel.filename)), np.zeros((0, N_MELS), np.float16)
    return track, path


# ---- the tracks of a run, and of one process -----------------------------------------------------


class FoundTracks(NamedTuple):
    tracks: AudioTracks  # in the order of their names, as bytes
    unreadable: dict[str, str]  # as in `AudioFolder`
    skipped: Counter[str]  # as in `AudioFolder`


def find_tracks(audio: str | Path, leave_out: str | Path | None = None) -> FoundTracks:
    """Find the audio of ``inference.audio``: a file with any suffix, or all audio in a folder.

    Skips the folder ``leave_out``, that of the results. Raises InputError if there is no audio.
    """
    setting, hint = "inference.audio", "Give an audio file, or a folder of them."
    refusal = partial(InputError, path=audio, setting=setting, hint=hint)
    if not str(audio):
        raise refusal("is empty", kind="empty")
    try:
        path = Path(audio).expanduser()
        if path.is_file():
            return FoundTracks(AudioTracks(path.parent, [path.name]), {}, Counter())
        if path.is_dir():
            folder = path.resolve()
            inside = None if leave_out is None else Path(leave_out).expanduser().resolve()
            files, unreadable, skipped = find_audio(folder, inside, setting)
            return FoundTracks(AudioTracks(folder, files), unreadable, skipped)
        if path.exists():
            raise refusal("is neither a file nor a folder")
    except (OSError, RuntimeError) as error:  # RuntimeError: ~ of an unknown user
        reason = getattr(error, "strerror", None) or str(error)
        raise refusal(reason, kind="access") from None
    raise refusal("no such file or folder", kind="missing")


def rank_share(
    total: int, shard: tuple[int, int] | None = None, rank: int = 0, world: int = 1
) -> range:
    """The indices of one rank's tracks within ``shard`` (k, n): part k of n, from 1."""
    k, n = shard or (1, 1)
    return range(total)[k - 1 :: n][rank::world]
