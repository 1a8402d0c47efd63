"""Data sets that a DataLoader's workers read and crop; all else runs batched on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from maest.datasets.groundtruth import GroundTruth
from maest.datasets.melspectrograms import MelFile, read_crop, read_patches
from maest.datasets.teacher import read_teacher_logits
from maest.helpers.errors import InputError

_TRIES = 50  # unreadable tracks in a row: more of them are no accident


class _Batch:
    """A dataclass whose tensors move together."""

    def to(self, device: torch.device | str | int, **kwargs: Any) -> Self:
        """Move the tensors; Lightning calls this, with options of ``Tensor.to``."""
        # Copies to a GPU need not block: its queue runs them before the work that needs them.
        # (Lightning sets this for bare tensors only.)
        options = {"non_blocking": torch.device(device).type == "cuda", **kwargs}
        return self._each(lambda tensor: tensor.to(device, **options))

    def pin_memory(self) -> Self:
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        batch: Any = self
        changed = {field.name: _apply(change, getattr(self, field.name)) for field in fields(batch)}
        return replace(batch, **changed)


def _apply(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Apply ``change`` to a tensor, or to each in a list or tuple; return others unchanged."""
    if isinstance(value, list | tuple):
        return type(value)(_apply(change, part) for part in value)
    return change(value) if isinstance(value, Tensor) else value


@dataclass
class ClipBatch(_Batch):
    """Random crops, for training."""

    mel: Tensor  # [B, T, F] as on disk: not normalised, float16 (``.npy``: the file's dtype)
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
    """Strings in two arrays, which forked workers share with their parent."""

    def __init__(self, strings: Sequence[str]) -> None:
        # Workers would copy a list: reading a Python object writes its reference count.
        encoded = [string.encode("utf-8", "surrogatepass") for string in strings]
        self._bytes = np.frombuffer(b"".join(encoded), np.uint8)
        self._ends = np.fromiter(accumulate(map(len, encoded)), np.int64, len(encoded))

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> str:
        end = self._ends[index]
        start = self._ends[index - 1] if index % len(self) else 0
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
    ) -> None:
        self.keys, self.targets = PackedStrings(groundtruth.keys), groundtruth.targets
        self.base_dir, self.frames, self.skip = str(base_dir), frames, skip
        self.teacher_dir = teacher_dir

    def __len__(self) -> int:
        return len(self.keys)


class CropDataset(_Tracks):
    """Random crops for training, a batch at a time; ``skip`` replaces unreadable clips."""

    def __getitems__(self, items: Sequence[tuple[int, int]]) -> ClipBatch:
        """Read a batch, from each clip's track index and the seed of its random crop.

        Raises InputError for an unreadable file; with ``skip``, for 50 in a row.
        """
        errors: dict[str, str] = {}
        read = [self._read(index, seed, errors) for index, seed in items]
        mel = torch.from_numpy(np.stack([crop for _, crop, _ in read]))  # the widest dtype
        targets = self.targets[[track for track, _, _ in read]].astype(np.float32)
        logits = [logits for _, _, logits in read if logits is not None]
        teacher = torch.from_numpy(np.stack(logits)) if logits else None
        return ClipBatch(mel, torch.from_numpy(targets), teacher, errors)

    def _read(
        self, index: int, seed: int, errors: dict[str, str]
    ) -> tuple[int, np.ndarray, np.ndarray | None]:
        """Return the track that was read, its crop and teacher logits; add to ``errors``."""
        tried: list[int] = []
        reason = ""
        # Uniform over all tracks, whatever the sampler's weights: under ``balanced_sampling``, a
        # rare label loses a little where its files are bad.
        substitutes = np.random.default_rng((seed, 1))
        while len(tried) < min(_TRIES, len(self)):
            key = self.keys[index]
            try:
                with MelFile.of_key(self.base_dir, key) as file:
                    crop = read_crop(file, self.frames, np.random.default_rng(seed))
                if self.teacher_dir is None:
                    return index, crop, None
                classes = self.targets.shape[1]
                return index, crop, read_teacher_logits(self.teacher_dir, key, classes)
            except InputError as error:
                if not self.skip:
                    raise
                errors[key] = reason = str(error)
            tried.append(index)
            while index in tried and len(tried) < len(self):
                index = int(substitutes.integers(len(self)))
        what = f"none of {len(tried)} of {len(self)} training tracks, tried in a row, can be read "
        what += f"(the last: {reason})"
        hint = "`python ex_maest.py check_data` with the same settings lists what is wrong."
        raise InputError(what, kind="empty", setting="datamodule.on_error", hint=hint)


class TrackDataset(_Tracks):
    """Whole tracks as patches; an item is ``(key, patches or the error, targets)``."""

    def __getitem__(self, index: int) -> tuple[str, list[np.ndarray] | InputError, np.ndarray]:
        key = self.keys[index]
        targets = self.targets[index].astype(np.float32)
        try:
            return key, read_patches(self.base_dir, key, self.frames), targets
        except InputError as error:
            if not self.skip:
                raise
            return key, error, targets


def collate_tracks(
    items: Sequence[tuple[str, list[np.ndarray] | InputError, np.ndarray]],
) -> TrackBatch:
    """Make a :class:`TrackBatch`; patches of one length form a group."""
    errors = {key: str(mel) for key, mel, _ in items if isinstance(mel, InputError)}
    good = [(key, mel, target) for key, mel, target in items if not isinstance(mel, InputError)]
    by_length: dict[int, tuple[list[np.ndarray], list[int]]] = {}
    for track, (_, pieces, _) in enumerate(good):
        for piece in pieces:
            mels, tracks = by_length.setdefault(len(piece), ([], []))
            mels.append(piece)
            tracks.append(track)
    groups = [
        (torch.from_numpy(np.stack(mels)), torch.tensor(tracks))
        for _, (mels, tracks) in sorted(by_length.items(), reverse=True)
    ]
    targets = np.array([target for _, _, target in good], np.float32)
    targets = targets.reshape(len(good), len(items[0][2]))  # [0, C] if none is good
    return TrackBatch([key for key, _, _ in good], torch.from_numpy(targets), groups, errors)
