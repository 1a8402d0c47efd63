"""Data sets that a DataLoader's workers read and crop; all else runs batched on the device."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from maest.datasets.groundtruth import GroundTruth
from maest.datasets.melspectrograms import MelFile, read_crop, read_patches
from maest.datasets.teacher_logits import read_teacher_logits
from maest.datasets.windows import WindowTargets
from maest.helpers.errors import InputError

_TRIES = 50  # unreadable tracks in a row: more of them are no accident


class _Batch:
    """A dataclass whose tensors move together."""

    def to(self, device: torch.device | str | int, **kwargs: Any) -> Self:
        """Move the tensors; Lightning calls this, with options of ``Tensor.to``."""
        # Copies to a GPU need not block: its queue runs them before the work that needs them.
        # (Lightning sets this for bare tensors only.)
        options = {"non_blocking": torch.device(device).type == "cuda", **kwargs}
        return _apply(lambda tensor: tensor.to(device, **options), self)

    def pin_memory(self) -> Self:
        return _apply(Tensor.pin_memory, self)


def _apply(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Apply ``change`` to each tensor in a batch, list or tuple."""
    if isinstance(value, _Batch):
        parts = {name: _apply(change, part) for name, part in vars(value).items()}
        return type(value)(**parts)
    if isinstance(value, list | tuple):
        return type(value)(_apply(change, part) for part in value)
    return change(value) if isinstance(value, Tensor) else value


@dataclass
class ClipBatch(_Batch):
    """Random crops, for training."""

    mel: Tensor  # float16 [B, T, F] as on disk: not normalised
    targets: Tensor  # [B, C] float32
    teacher: Tensor | None = None  # [B, C] float32, the teacher's logits for whole tracks
    # Skipped files, key → reason; other clips take their places
    errors: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.mel)


@dataclass
class TrackBatch(_Batch):
    """Whole tracks, cut into patches, for evaluation."""

    keys: list[str]  # [N]
    targets: Tensor  # [N, C] float32
    # For each patch length one group, which the network takes in one pass: mel [n, T, F] as on
    # disk, and track [n], each patch's index into the N tracks. A track's patches are in order.
    groups: list[tuple[Tensor, Tensor]]
    errors: dict[str, str]  # key → reason, of unreadable tracks, which are not among the N

    def __len__(self) -> int:
        return len(self.keys)


class PackedStrings:
    """Strings without NUL in two arrays, which forked workers share with their parent."""

    def __init__(self, strings: Sequence[str]) -> None:
        # Workers would copy a list: reading a Python object writes its reference count.
        joined = "\0".join([*strings, ""]).encode("utf-8", "surrogatepass")
        self._bytes = np.frombuffer(joined, np.uint8)
        self._ends = np.flatnonzero(self._bytes == 0)

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> str:
        end = self._ends[index]
        start = self._ends[index - 1] + 1 if index % len(self) else 0
        return self._bytes[start:end].tobytes().decode("utf-8", "surrogatepass")


class _Tracks(Dataset):
    """The tracks of a split; ``skip`` skips those that cannot be read."""

    def __init__(
        self,
        groundtruth: GroundTruth,
        base_dir: str | Path,
        frames: int,
        skip: bool = False,
        teacher_dir: str | Path | None = None,
        windows: WindowTargets | None = None,
        short_frames: int | None = None,
    ) -> None:
        self.keys, self.targets = PackedStrings(groundtruth.keys), groundtruth.targets
        self.base_dir, self.frames, self.skip = str(base_dir), frames, skip
        self.teacher_dir, self.windows, self.short_frames = teacher_dir, windows, short_frames

    def __len__(self) -> int:
        return len(self.keys)


class CropDataset(_Tracks):
    """Random crops for training, a batch at a time; ``skip`` replaces unreadable clips.

    Half of the batches, at random, have crops of ``short_frames``, if given.
    """

    def __getitems__(self, items: Sequence[tuple[int, int]]) -> ClipBatch:
        """Read a batch, from each clip's track index and the seed of its random crop.

        Raises InputError for an unreadable file; with ``skip``, for 50 in a row.
        """
        errors: dict[str, str] = {}
        frames = self.frames
        if self.short_frames is not None and items[0][1] % 2:
            frames = self.short_frames
        clips = [self._read(*item, frames, errors) for item in items]
        mels, targets, logits = zip(*clips, strict=True)
        teacher = None if self.teacher_dir is None else torch.from_numpy(np.stack(logits))
        of_clips = torch.from_numpy(np.stack(targets).astype(np.float32))
        return ClipBatch(torch.from_numpy(np.stack(mels)), of_clips, teacher, errors)

    def _read(
        self, index: int, seed: int, frames: int, errors: dict[str, str]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Return a crop, its targets and its track's teacher logits; add to ``errors``."""
        tried: set[int] = set()
        # Uniform over all tracks, whatever the sampler's weights: under ``balanced_sampling``, a
        # rare label loses a little where its files are bad.
        substitutes = np.random.default_rng((seed, 1))
        while len(tried) < min(_TRIES, len(self)):
            while index in tried:
                index = int(substitutes.integers(len(self)))
            key = self.keys[index]
            try:
                with MelFile.of_key(self.base_dir, key) as file:
                    crop, first = read_crop(file, frames, np.random.default_rng(seed))
                target = self.targets[index]
                if self.windows is not None:
                    target = self.windows.of_crop(key, first, frames, target)
                if self.teacher_dir is None:
                    return crop, target, None
                return crop, target, read_teacher_logits(self.teacher_dir, key, len(target))
            except InputError as error:
                if not self.skip:
                    raise
                errors[key] = str(error)
            tried.add(index)
        what = f"none of {len(tried)} of {len(self)} training tracks, tried in a row, can be read "
        what += f"(the last: {errors[key]})"
        hint = "`python ex_maest.py check_data` with the same settings lists what is wrong."
        raise InputError(what, kind="empty", setting="datamodule.on_error", hint=hint)


class TrackDataset(_Tracks):
    """Whole tracks, a batch at a time; ``skip`` leaves out those that cannot be read."""

    def __getitems__(self, indices: Sequence[int]) -> TrackBatch:
        tracks, errors = [], {}
        for index in indices:
            key, targets = self.keys[index], self.targets[index]
            try:
                tracks.append((key, read_patches(self.base_dir, key, self.frames), targets))
            except InputError as error:
                if not self.skip:
                    raise
                errors[key] = str(error)
        return collate_tracks(tracks, errors)


def collate_tracks(
    tracks: Sequence[tuple[str, list[np.ndarray], np.ndarray]], errors: Mapping[str, str] = {}
) -> TrackBatch:
    """Make a :class:`TrackBatch` of (key, patches, targets); patches of one length form a group."""
    by_length: dict[int, list[tuple[np.ndarray, int]]] = defaultdict(list)
    for number, (_, patches, _) in enumerate(tracks):
        for patch in patches:
            by_length[len(patch)].append((patch, number))
    groups = []
    for _, members in sorted(by_length.items(), reverse=True):
        mels, numbers = zip(*members, strict=True)
        groups.append((torch.from_numpy(np.stack(mels)), torch.tensor(numbers)))
    targets = torch.from_numpy(np.array([row for *_, row in tracks], np.float32))
    return TrackBatch([key for key, *_ in tracks], targets, groups, dict(errors))
