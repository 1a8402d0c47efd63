"""The Lightning data module: ground truth and log-mel files in, batches out.

A worker process only reads and crops; everything after that runs batched on the device.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    TensorDataset,
)

from datasets.groundtruth import (
    GroundTruth,
    GroundTruthError,
    labels_beside,
    read_groundtruth,
)
from datasets.melspectrograms import (
    MelFileError,
    find_mel,
    mean_and_std,
    mel_path,
    read_crop,
    read_patches,
)
from datasets.sampling import ClipSampler
from datasets.scores import DATA_DIR as SCORES_DIR
from datasets.teacher import check_teacher_files, read_teacher_logits
from helpers.errors import InputError


@dataclass
class TrackBatch:
    """Whole tracks, cut into patches, for evaluation and extraction.

    Patches of one length, of all the tracks, are one group: a group is one pass of the network.

    Attributes:
        keys: the N tracks' ground-truth keys.
        targets: [N, C] float32.
        groups: for each length, ``(mel [n, T, F] as it is on disk, track [n])``; ``track`` says
            which of the N tracks a patch is of. A track's patches are in order.
        errors: what went wrong with a track that could not be read, by key. Such tracks are not
            among the N.
    """

    keys: list[str]
    targets: Tensor
    groups: list[tuple[Tensor, Tensor]]
    errors: dict[str, str]

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device, **kwargs) -> TrackBatch:
        """Move the tensors; Lightning calls this."""
        groups = [(mel.to(device, **kwargs), track.to(device)) for mel, track in self.groups]
        return TrackBatch(self.keys, self.targets.to(device), groups, self.errors)

    def pin_memory(self) -> TrackBatch:
        """Called by a DataLoader that pins memory."""
        groups = [(mel.pin_memory(), track) for mel, track in self.groups]
        return TrackBatch(self.keys, self.targets, groups, self.errors)


class CropDataset(Dataset):
    """Random crops for training. An item is asked for as ``(index, seed of the crop)``."""

    def __init__(
        self,
        groundtruth: GroundTruth,
        base_dir: Path,
        frames: int,
        teacher_dir: Path | None = None,
    ) -> None:
        self.groundtruth, self.base_dir, self.frames = groundtruth, base_dir, frames
        self.teacher_dir = teacher_dir

    def __len__(self) -> int:
        return len(self.groundtruth)

    def __getitem__(self, item: tuple[int, int]) -> tuple[np.ndarray, ...]:
        """``(mel [T, F] as it is on disk, targets [C] float32)``.

        With a ``teacher_dir`` also the teacher's logits for the whole track, [C] float32.
        """
        index, seed = item
        key = self.groundtruth.keys[index]
        crop = read_crop(find_mel(self.base_dir, key), self.frames, np.random.default_rng(seed))
        targets = self.groundtruth.targets[index].astype(np.float32)
        if self.teacher_dir is None:
            return crop, targets
        return crop, targets, read_teacher_logits(self.teacher_dir, key, len(targets))


class TrackDataset(Dataset):
    """Whole tracks as patches; an item is ``(key, patches or the error, targets)``."""

    def __init__(
        self, groundtruth: GroundTruth, base_dir: Path, frames: int, keep_going: bool
    ) -> None:
        self.groundtruth, self.base_dir, self.frames = groundtruth, base_dir, frames
        self.keep_going = keep_going

    def __len__(self) -> int:
        return len(self.groundtruth)

    def __getitem__(self, index: int) -> tuple[str, list[np.ndarray] | MelFileError, np.ndarray]:
        key = self.groundtruth.keys[index]
        targets = self.groundtruth.targets[index].astype(np.float32)
        try:
            return key, read_patches(find_mel(self.base_dir, key), self.frames), targets
        except MelFileError as error:
            if self.keep_going:
                return key, error, targets
            raise


def collate_tracks(items: Sequence[tuple[str, list[np.ndarray] | MelFileError, np.ndarray]]):
    """Make a :class:`TrackBatch`, with the patches of one length together."""
    errors = {key: str(mel) for key, mel, _ in items if isinstance(mel, Exception)}
    good = [item for item in items if item[0] not in errors]
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
    targets = [target for _, _, target in good]
    stacked = torch.from_numpy(np.stack(targets)) if targets else torch.zeros(0, 0)
    return TrackBatch([key for key, _, _ in good], stacked, groups, errors)


class MaestDataModule(pl.LightningDataModule):
    """Log-mel clips and their targets.

    Args:
        groundtruth_train, groundtruth_val, groundtruth_test, groundtruth_predict: pickles of
            {path relative to ``base_dir``: targets}; those that a command does not need may be
            None.
        base_dir: folder of the log-mel files.
        clip_frames: length of a training crop and of an evaluation patch, in frames.
        batch_size_train: clips in a training batch.
        batch_size_eval: tracks in an evaluation or extraction batch.
        clips_per_epoch: length of an epoch; all clips if None.
        balanced_sampling: draw clips of rare labels more often.
        num_workers: reading processes; by default none on a machine without a GPU, where the
            network needs every core.
        seed: of the draws and crops.
        task: what the targets are: "multi-label", "single-label" or "regression".
        teacher_dir: folder of a teacher's logits for the training tracks, as ``extract_logits``
            writes it; a training batch then has them as a third part.

    Raises:
        InputError: for settings that do not go together with the task.
    """

    def __init__(
        self,
        *,
        base_dir: str | Path,
        clip_frames: int,
        groundtruth_train: str | Path | None = None,
        groundtruth_val: str | Path | None = None,
        groundtruth_test: str | Path | None = None,
        groundtruth_predict: str | Path | None = None,
        batch_size_train: int = 12,
        batch_size_eval: int = 8,
        clips_per_epoch: int | None = None,
        balanced_sampling: bool = False,
        num_workers: int | None = None,
        seed: int = 0,
        task: str = "multi-label",
        teacher_dir: str | Path | None = None,
    ) -> None:
        super().__init__()
        if groundtruth_train is not None:  # the two are settings of training alone
            if balanced_sampling and task == "regression":
                raise InputError(
                    "datamodule.balanced_sampling=True counts labels, and maest.task=regression "
                    "has none: leave one of the two out"
                )
            if teacher_dir is not None and task != "multi-label":
                raise InputError(
                    f"datamodule.teacher_dir gives many labels to a track, and maest.task is "
                    f"{task!r}: leave it out, or set maest.task=multi-label"
                )
        self.base_dir = Path(base_dir)
        self.clip_frames = clip_frames
        self.paths = {
            "train": groundtruth_train,
            "val": groundtruth_val,
            "test": groundtruth_test,
            "predict": groundtruth_predict,
        }
        self.batch_size_train = batch_size_train
        self.batch_size_eval = batch_size_eval
        self.clips_per_epoch = clips_per_epoch
        self.balanced_sampling = balanced_sampling
        if num_workers is None:
            num_workers = min(os.cpu_count() or 1, 12) if torch.cuda.is_available() else 0
        self.num_workers = num_workers
        self.seed = seed
        self.task = task
        self.teacher_dir = None if teacher_dir is None else Path(teacher_dir)
        self._groundtruths: dict[str, GroundTruth] = {}

    def prepare_data(self) -> None:
        """Build the embedded data set if the settings point to it and there is none."""
        wanted = [Path(path).resolve() for path in self.paths.values() if path is not None]
        ours = [path for path in wanted if path.is_relative_to(SCORES_DIR)]
        if ours and not (SCORES_DIR / "report.json").exists():
            from datasets.scores.preprocess import build  # its libraries are slow to import

            build()

    def setup(self, stage: str) -> None:
        """Called by Lightning; before a training, all the teacher's files must be there."""
        if stage == "fit" and self.teacher_dir is not None:
            check_teacher_files(self.teacher_dir, self.groundtruth("train").keys)

    def groundtruth(self, split: str) -> GroundTruth:
        """The ground truth of "train", "val", "test" or "predict", read once.

        That of "predict" may be of any task: nothing but its tracks matters.

        Raises:
            InputError: if the settings name none, or the file is no valid ground truth.
        """
        if split not in self._groundtruths:
            path = self.paths[split]
            if path is None:
                raise InputError(
                    f"datamodule.groundtruth_{split} is not set: give a ground-truth pickle"
                )
            self._groundtruths[split] = (
                _read_any(path) if split == "predict" else read_groundtruth(path, task=self.task)
            )
        return self._groundtruths[split]

    def labels(self, split: str) -> list[str] | None:
        """The names in the ``labels.json`` beside a split's ground truth; None if there is none."""
        return labels_beside(self.groundtruth(split))

    def mean_and_std(self, split: str, tracks: int = 200) -> tuple[float, float]:
        """Mean and standard deviation of a split's log-mel values.

        Of all its tracks, or of ``tracks`` that are spread evenly over the ground truth.
        """
        keys = self.groundtruth(split).keys
        some = np.linspace(0, len(keys) - 1, min(tracks, len(keys))).astype(int)
        return mean_and_std(mel_path(self.base_dir, keys[i]) for i in some)

    def train_dataloader(self) -> DataLoader:
        groundtruth = self.groundtruth("train")
        sampler = ClipSampler(
            groundtruth.targets, self.clips_per_epoch, self.balanced_sampling, self.seed
        )
        dataset = CropDataset(groundtruth, self.base_dir, self.clip_frames, self.teacher_dir)
        return self._loader(dataset, self.batch_size_train, sampler=sampler)

    def val_dataloader(self) -> DataLoader:
        return self._tracks("val")

    def test_dataloader(self) -> DataLoader:
        return self._tracks("test")

    def predict_dataloader(self) -> DataLoader:
        return self._tracks("predict", keep_going=True)

    def _tracks(self, split: str, keep_going: bool = False) -> DataLoader:
        dataset = TrackDataset(
            self.groundtruth(split), self.base_dir, self.clip_frames, keep_going=keep_going
        )
        return self._loader(dataset, self.batch_size_eval, collate_fn=collate_tracks)

    def _loader(
        self, dataset: Dataset, batch_size: int, sampler: Sampler | None = None, collate_fn=None
    ) -> DataLoader:
        return DataLoader(
            dataset=dataset,
            batch_size=batch_size,
            sampler=sampler,
            collate_fn=collate_fn,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )


def _read_any(path: str | Path) -> GroundTruth:
    """Read labels, or else real values."""
    try:
        return read_groundtruth(path)
    except GroundTruthError as error:
        try:
            return read_groundtruth(path, task="regression")
        except GroundTruthError:
            raise error from None


class FeatureDataModule(pl.LightningDataModule):
    """Features held in memory, for the probe. A batch is indexed at once, not item by item.

    Args:
        splits: "train", "val", "test" → (features float32 [N, D], targets [N, C] of 0 and 1).
        batch_size: tracks in a batch.
        seed: of the order of the training tracks.
    """

    def __init__(
        self, splits: Mapping[str, tuple[np.ndarray, np.ndarray]], batch_size: int, seed: int
    ) -> None:
        super().__init__()
        self.splits = {
            name: TensorDataset(torch.from_numpy(x), torch.from_numpy(y.astype(np.float32)))
            for name, (x, y) in splits.items()
        }
        self.batch_size = batch_size
        self.generator = torch.Generator().manual_seed(seed)

    def _loader(self, split: str) -> DataLoader:
        dataset = self.splits[split]
        order = (
            RandomSampler(dataset, generator=self.generator)
            if split == "train"
            else SequentialSampler(dataset)
        )
        batches = BatchSampler(order, self.batch_size, drop_last=False)
        return DataLoader(dataset, sampler=batches, batch_size=None)

    def train_dataloader(self) -> DataLoader:
        return self._loader("train")

    def val_dataloader(self) -> DataLoader:
        return self._loader("val")

    def test_dataloader(self) -> DataLoader:
        return self._loader("test")
