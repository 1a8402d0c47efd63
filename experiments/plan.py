"""A training, put together from its settings: :func:`resolve`.

All of it is checked here, before anything is trained. :func:`decided` is the one place where
settings that are left open, and depend on others, get a value.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from maest.config import Settings
from maest.datasets.groundtruth import GroundTruth
from maest.experiments.data import check_files, check_same_labels, check_targets, find_teacher
from maest.experiments.model import build_network, clip_frames, find_checkpoint, find_task
from maest.experiments.resume import as_it_began, find_run, read_continued
from maest.helpers.errors import InputError
from maest.helpers.parallel import cores
from maest.models import Maest
from maest.models.archs import clip_seconds, descent, size_name
from maest.models.sizes import grid_size
from maest.models.weights import Checkpoint

if TYPE_CHECKING:
    from maest.datasets.datamodule import MaestDataModule

_CLIPS_PER_TRACK, _MOST_CLIPS = 16, 2400
_MOST_WORKERS = 12
# Compiling takes about a minute: in a run of fewer steps it does not pay.
_STEPS_TO_COMPILE = 1000


@dataclass(frozen=True)
class Plan:
    """What :func:`resolve` has put together."""

    settings: Settings  # with a value wherever they were open
    continued: Path | None  # the checkpoint of the training that goes on, if one does
    origin: dict[str, Any]  # what a model's folder says of its making, before the training
    data: MaestDataModule
    net: Maest
    arch: str | None  # the name of the network's size, if it has one
    steps_per_epoch: int  # of the optimiser
    steps: int

    def lines(self) -> list[str]:
        """For people: a line for each thing."""
        maest, data, trainer = self.settings.maest, self.settings.datamodule, self.settings.trainer
        net, frames = self.net, self.data.clip_frames
        weights = sum(parameter.numel() for parameter in net.parameters()) / 1e6
        tracks = [len(self.data.groundtruth(split)) for split in ("train", "val")]
        licence = self.origin.get("licence")
        rows = {
            "model": f"{self.arch or 'a size of its own'}, {weights:.1f} M weights",
            "started from": (self.origin["started_from"] or "random weights")
            + (f", whose licence the model gets: {licence}" if licence else ""),
            "targets": f"{net.task}, {net.n_classes} labels",
            "tracks": f"{tracks[0]} training and {tracks[1]} validation tracks",
            "clips": f"{data.clips_per_epoch} an epoch, of {clip_seconds(frames):g} s",
            "patchout": f"{maest.s_patchout_t} of {grid_size(frames)} time columns are dropped",
            "batch": f"{data.batch_size_train} clips, {data.num_workers} workers",
            "device": f"{processes(self.settings)} x {device_of(self.settings).type}, "
            f"{trainer.precision}{', compiled' if trainer.compile else ''}",
            "steps": f"{self.steps}, {self.steps_per_epoch} an epoch",
        }
        if self.continued is not None:
            rows["continues"] = str(self.continued)
        return [f"{name + ':':14s}{text}" for name, text in rows.items()]


def resolve(settings: Settings, log_dir: Path) -> Plan:
    """Weights, data and network of a training.

    Raises:
        InputError: anything of it is missing, or does not go together.
    """
    check_device(settings)
    check_files(settings, "train", "val")
    checkpoint = find_checkpoint(settings, training=True)
    continued = find_run(settings, log_dir)
    before = read_continued(continued)
    settings = as_it_began(settings, before)
    data = build_data(settings, checkpoint, "train", "val")
    train = data.groundtruth("train")
    settings = decided(settings, data.clip_frames, len(train))
    data.clips_per_epoch = int(settings.datamodule.clips_per_epoch or 0)
    data.num_workers = workers(settings)
    net = build_network(settings, checkpoint, train, training=True)
    check_same_labels(net, data, "val")
    check_targets(data)
    per_epoch, steps = steps_of(settings)
    return Plan(
        settings,
        continued,
        _origin(settings, train, checkpoint, before),
        data,
        net,
        size_name(net.embed_dim, net.num_heads, net.depth),
        per_epoch,
        steps,
    )


def _origin(
    settings: Settings,
    groundtruth: GroundTruth,
    checkpoint: Checkpoint | None,
    continued: Checkpoint | None,
) -> dict[str, Any]:
    """What a model's folder says of its making, as far as it is known before the training.

    Names, not paths: it is made to be passed on.
    """
    started: dict[str, Any] = {"started_from": None}
    if continued is not None and "started_from" in continued.trained_on:
        known = continued.trained_on
        started = {n: known[n] for n in ("started_from", "licence", "parents") if n in known}
    elif checkpoint is not None:
        path = settings.maest.checkpoint
        name = checkpoint.arch if path is None else "/".join(Path(path).parts[-3:])
        started = descent(name, checkpoint.trained_on)
    return {
        "groundtruth": "/".join(groundtruth.path.parts[-2:]),
        "tracks": len(groundtruth),
        **started,
        "seed": settings.seed,
    }


def build_data(settings: Settings, checkpoint: Checkpoint | None, *splits: str) -> MaestDataModule:
    """The data module of some splits; clip length and task may be the checkpoint's."""
    from maest.datasets.datamodule import MaestDataModule

    data = settings.datamodule
    return MaestDataModule(
        base_dir=data.base_dir,
        clip_frames=clip_frames(settings, checkpoint),
        batch_size_train=data.batch_size_train,
        batch_size_eval=data.batch_size_eval,
        balanced_sampling=data.balanced_sampling,
        num_workers=workers(settings, processes=1),
        seed=settings.seed,
        task=find_task(settings, checkpoint),
        teacher_dir=find_teacher(settings) if "train" in splits else None,
        on_error=data.on_error,
        **{name: getattr(data, name) for name in (f"groundtruth_{s}" for s in splits)},
    )


# --- What is worked out -------------------------------------------------------------------------


def decided(settings: Settings, frames: int, tracks: int) -> Settings:
    """The settings of a training on so many tracks, with a value for each that is open."""
    maest, data, trainer = settings.maest, settings.datamodule, settings.trainer
    clips = tracks if data.clips_per_epoch is None else data.clips_per_epoch
    if clips == "auto":
        clips = min(_CLIPS_PER_TRACK * tracks, _MOST_CLIPS)
    columns = maest.s_patchout_t
    if columns is None:  # 3 a second, about half: the paper's 15, 30, 60, 90 of 5, 10, 20, 30 s
        always = maest.s_patchout_t_indices or maest.s_patchout_t_interleaved > 1
        columns = 0 if always else min(round(3 * clip_seconds(frames)), grid_size(frames) - 1)
    cuda = device_of(settings).type == "cuda"
    settings = replace(
        settings,
        maest=replace(maest, s_patchout_t=columns),
        datamodule=replace(data, clips_per_epoch=clips, num_workers=workers(settings)),
        trainer=replace(
            trainer, precision=trainer.precision or ("16-mixed" if cuda else "32-true")
        ),
    )
    if trainer.compile is None:
        # Each rate of stochastic depth would be a graph of its own.
        pays = cuda and steps_of(settings)[1] >= _STEPS_TO_COMPILE and not maest.drop_path_rate
        settings = replace(settings, trainer=replace(settings.trainer, compile=pays))
    return settings


def workers(settings: Settings, processes: int | None = None) -> int:
    """Processes that read: none on a CPU, where the network needs every core.

    On a GPU one a core, at most 12, and at most this process's share of the machine.
    """
    if settings.datamodule.num_workers is not None:
        return settings.datamodule.num_workers
    if device_of(settings).type != "cuda":
        return 0
    share = (os.cpu_count() or 1) // (processes or _devices(settings))
    return max(1, min(cores(), share, _MOST_WORKERS))


def steps_of(settings: Settings) -> tuple[int, int]:
    """Steps of an epoch, and of the whole training, by settings that are decided."""
    data, trainer = settings.datamodule, settings.trainer
    clips = int(data.clips_per_epoch or 0)
    batches = math.ceil(clips // processes(settings) / data.batch_size_train)
    limit = trainer.limit_train_batches
    if limit is not None:
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    epoch = math.ceil(batches / trainer.accumulate_grad_batches)
    steps = trainer.max_epochs * epoch
    return epoch, steps if trainer.max_steps < 0 else min(steps, trainer.max_steps)


def processes(settings: Settings) -> int:
    """How many train together."""
    return _devices(settings) * settings.trainer.num_nodes


def _devices(settings: Settings) -> int:
    devices = settings.trainer.devices
    return devices if devices > 0 else torch.cuda.device_count() or 1


def device_of(settings: Settings) -> torch.device:
    """What computes, by ``trainer.accelerator``."""
    accelerator = settings.trainer.accelerator
    if torch.cuda.is_available() and accelerator in ("auto", "gpu", "cuda"):
        return torch.device("cuda")
    if torch.backends.mps.is_available() and accelerator in ("auto", "gpu", "mps"):
        return torch.device("mps")
    return torch.device("cpu")


def check_device(settings: Settings) -> None:
    """Raise InputError for settings of section ``trainer`` that a CPU cannot serve."""
    trainer = settings.trainer
    if device_of(settings).type != "cpu":
        return
    if trainer.accelerator not in ("auto", "cpu"):
        name, message = "accelerator", f"there is no {trainer.accelerator!r} here"
        hint = "Leave it out to take what there is."
    elif trainer.precision == "16-mixed":
        name, message = "precision", "a CPU does not compute in fp16"
        hint = "Leave it out: 32-true is the fastest there."
    elif trainer.devices == -1:
        name, message = "devices", "there is no GPU here, of which -1 would take all"
        hint = "Give a number of CPU processes, or leave it out."
    else:
        return
    raise InputError(message, kind="unsupported", setting=f"trainer.{name}", hint=hint)
