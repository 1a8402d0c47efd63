"""The Lightning data module: ground truths and log-mel files in, batches out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler

from maest.datasets.batches import CropDataset, TrackDataset
from maest.datasets.groundtruth import GroundTruth
from maest.datasets.melspectrograms import track_bytes
from maest.datasets.sampling import ClipSampler
from maest.datasets.teacher_logits import check_teacher_files
from maest.datasets.windows import WindowTargets
from maest.helpers.differences import differences
from maest.helpers.errors import InputError
from maest.helpers.work.signals import ignore_signals


class MaestDataModule(pl.LightningDataModule):
    """Log-mel clips with their targets for training, and whole tracks for evaluation.

    Each training process loads a disjoint share of an epoch's one draw, and of the tracks to
    evaluate; Lightning must not replace the samplers (``Trainer(use_distributed_sampler=False)``).
    ``splits`` are those needed of "train", "val" and "test"; ``clip_frames`` is the length of a
    crop and of a patch, ``short_frames`` that of the crops of half of the batches.
    `config/settings.py` explains the other arguments. Raises InputError if ``window_targets`` do
    not fit the training split.
    """

    def __init__(
        self,
        splits: Mapping[str, GroundTruth],
        *,
        base_dir: str | Path,
        clip_frames: int,
        batch_size_train: int = 12,
        batch_size_eval: int = 8,
        clips_per_epoch: int | None = None,
        balanced_sampling: bool = False,
        num_workers: int = 0,
        seed: int = 0,
        teacher_dir: Path | None = None,
        window_targets: str | Path | None = None,
        short_frames: int | None = None,
        by_length: bool = False,
        on_error: str = "raise",
    ) -> None:
        super().__init__()
        self.splits, self.base_dir, self.clip_frames = splits, Path(base_dir), clip_frames
        self.batch_size_train, self.batch_size_eval = batch_size_train, batch_size_eval
        self.clips_per_epoch, self.balanced_sampling = clips_per_epoch, balanced_sampling
        self.num_workers, self.seed = num_workers, seed
        self.teacher_dir, self.on_error, self.skip = teacher_dir, on_error, on_error == "skip"
        self.short_frames, self.by_length = short_frames, by_length
        self.windows: WindowTargets | None = None
        if window_targets is not None:
            self.windows = WindowTargets(window_targets, splits["train"])
        self._start = 0, 0  # epoch and batch

    def setup(self, stage: str) -> None:
        """Lightning's hook. Raises InputError for missing logits of the teacher, unless skipped."""
        if stage == "fit" and self.teacher_dir is not None and not self.skip:
            check_teacher_files(self.teacher_dir, self.splits["train"].keys)

    def state_dict(self) -> dict[str, int]:
        """Where training stands, for a checkpoint: the epoch, and its finished batches."""
        trainer: Any = self.trainer
        progress = trainer.fit_loop.epoch_progress.current
        epoch, batches = progress.processed, trainer.fit_loop.epoch_loop.batch_idx + 1
        if progress.started == progress.processed:  # between two epochs
            batches = 0
        return {"epoch": epoch, "batches": batches, **self._plan()}

    def _plan(self) -> dict[str, int]:
        """The settings that fix a batch's size, and an epoch's batches and steps."""
        trainer: Any = self.trainer
        tracks = len(self.splits["train"])
        return {
            "training tracks": tracks,
            "datamodule.clips_per_epoch": self.clips_per_epoch or tracks,
            "datamodule.batch_size_train": self.batch_size_train,
            "trainer.devices x trainer.num_nodes": trainer.world_size,
            "trainer.accumulate_grad_batches": trainer.accumulate_grad_batches,
        }

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Resume where a checkpoint stands, without reading again what it has seen.

        Raises InputError if an epoch's batches differ.
        """
        plan, clips = self._plan(), "datamodule.clips_per_epoch"
        # Version 0.1 wrote 0 for one clip of each track.
        before = {**state_dict, clips: state_dict[clips] or state_dict["training tracks"]}
        differing = differences({name: before[name] for name in plan}, plan)
        # Otherwise neither the position in an epoch nor the learning rate would be right.
        if differing:
            message, setting = f"that training had {'; '.join(differing)}", "ckpt_path"
            hint = "Give the same, or start a new one from its weights with maest.checkpoint."
            raise InputError(message, kind="mismatch", setting=setting, hint=hint)
        self._start = state_dict["epoch"], state_dict["batches"]

    def train_dataloader(self) -> DataLoader:
        train, (rank, processes) = self.splits["train"], self._rank()
        clips, balanced = self.clips_per_epoch, self.balanced_sampling
        lengths = track_bytes(self.base_dir, train.keys) if self.by_length else None
        sampler = ClipSampler(train.targets, clips, balanced, self.seed, rank, processes, lengths)
        # Workers begin to read before Lightning sets the sampler's epoch.
        sampler.set_epoch(self._start[0])
        sampler.skip(self._start[1] * self.batch_size_train)
        dataset = CropDataset(
            train,
            self.base_dir,
            self.clip_frames,
            self.skip,
            self.teacher_dir,
            self.windows,
            self.short_frames,
        )
        return self._loader(dataset, self.batch_size_train, sampler)

    def val_dataloader(self) -> DataLoader:
        return self._tracks("val")

    def test_dataloader(self) -> DataLoader:
        return self._tracks("test")

    def _tracks(self, split: str) -> DataLoader:
        dataset = TrackDataset(self.splits[split], self.base_dir, self.clip_frames, self.skip)
        rank, processes = self._rank()  # the last repeat first tracks: gathering drops those
        sampler: Sampler[int] = DistributedSampler(dataset, processes, rank, shuffle=False)
        return self._loader(dataset, self.batch_size_eval, sampler)

    def _rank(self) -> tuple[int, int]:
        """Rank of this training process, and number of processes."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _loader(self, dataset: Dataset, batch_size: int, sampler: Sampler) -> DataLoader:
        return DataLoader(
            dataset,
            batch_size,
            sampler=sampler,
            collate_fn=_identity,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=ignore_signals,
        )


def _identity(batch: Any) -> Any:
    """Collate a batch that ``__getitems__`` collated already."""
    return batch
