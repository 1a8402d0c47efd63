"""A training, put together from its settings: :func:`resolve`.

All of it is checked here, before anything is trained. :func:`decided` is the one place where
settings that are left open, and depend on others, get a value.
"""

from __future__ import annotations

import math
import os
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from maest.config import Settings
from maest.datasets.groundtruth import GroundTruth
from maest.datasets.scores import DATA_DIR, build_if_missing
from maest.experiments.model import (
    build_network,
    check_head,
    check_label_names,
    clip_frames,
    find_checkpoint,
    find_task,
    in_section,
    network_arguments,
    require_checkpoint,
)
from maest.experiments.resume import as_it_began, find_run, read_continued
from maest.helpers.errors import InputError
from maest.helpers.parallel import cores
from maest.models import Maest, licences
from maest.models.archs import clip_seconds, size_name
from maest.models.maest import grid_size
from maest.models.weights import Checkpoint

if TYPE_CHECKING:
    from maest.datasets.datamodule import MaestDataModule

__all__ = ["build_network", "check_head", "check_label_names", "find_checkpoint", "in_section"]
__all__ += ["network_arguments", "require_checkpoint"]

_CLIPS_PER_TRACK, _MOST_CLIPS = 16, 2400
_MOST_WORKERS = 12
# Compiling takes about a minute: in a run of fewer steps it does not pay.
_STEPS_TO_COMPILE = 1000


@dataclass(frozen=True)
class Plan:
    """What :func:`resolve` has put together.

    Attributes:
        settings: with a value wherever they were open.
        continued: the checkpoint of the training that goes on, if one does.
        origin: of the model's making, what is known before the training: data, licence, parents.
        arch: the name of the network's size; None if it has none.
        steps_per_epoch, steps: of the optimiser.
    """

    settings: Settings
    continued: Path | None
    origin: dict[str, Any]
    data: MaestDataModule
    net: Maest
    arch: str | None
    steps_per_epoch: int
    steps: int

    def lines(self) -> list[str]:
        """For people: a line for each thing."""
        maest, data, trainer = self.settings.maest, self.settings.datamodule, self.settings.trainer
        net, frames, origin = self.net, self.data.clip_frames, self.origin
        weights = sum(parameter.numel() for parameter in net.parameters()) / 1e6
        start = origin["started_from"] or "random weights"
        if "licence" in origin:
            start += f", whose licence goes on to the model: {origin['licence']}"
        kind = "numbers" if net.task == "regression" else f"{net.task} labels"
        rows = {
            "model": f"{self.arch or 'a size of its own'}: {weights:.1f} M weights, {net.depth} "
            f"blocks, {net.embed_dim} channels, {net.num_heads} heads",
            "started from": start,
            "targets": f"{net.n_classes} {kind}",
            "tracks": f"{len(self.data.groundtruth('train'))} training and "
            f"{len(self.data.groundtruth('val'))} validation tracks",
            "clips": f"{data.clips_per_epoch} an epoch, of {clip_seconds(frames):g} s ({frames} "
            "frames)",
            "patchout": f"{maest.s_patchout_t} of {grid_size(frames)} time columns, "
            f"{maest.s_patchout_f} of {grid_size(96)} frequency rows",
            "batch": f"{data.batch_size_train} clips x {trainer.accumulate_grad_batches} x "
            f"{processes(self.settings)} processes, each with {data.num_workers} workers",
            "device": f"{device_of(self.settings).type}, {trainer.precision}, "
            f"{'' if trainer.compile else 'not '}compiled",
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
    data.clips_per_epoch = settings.datamodule.clips_per_epoch
    data.num_workers = workers(settings)
    net = build_network(settings, checkpoint, train, training=True)
    check_same_labels(net, data, "val")
    _check_targets(data)
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
    descent: dict[str, Any] = {"started_from": None}
    if continued is not None and "started_from" in continued.trained_on:
        known = continued.trained_on
        descent = {n: known[n] for n in ("started_from", "licence", "parents") if n in known}
    elif checkpoint is not None:
        path = settings.maest.checkpoint
        name = checkpoint.arch if path is None else "/".join(Path(path).parts[-3:])
        licence = licences.inherited(checkpoint.licence)
        descent = {
            "started_from": name,
            **({"licence": licence} if licence else {}),
            "parents": licences.parents(name, checkpoint.trained_on),
        }
    return {
        "groundtruth": "/".join(groundtruth.path.parts[-2:]),
        "tracks": len(groundtruth),
        **descent,
        "seed": settings.seed,
    }


# --- What is worked out -------------------------------------------------------------------------


def decided(settings: Settings, frames: int, tracks: int) -> Settings:
    """The settings of a training with a value for each that is open.

    Args:
        settings: of any command.
        frames: of a clip.
        tracks: to train on.
    """
    maest, data, trainer = settings.maest, settings.datamodule, settings.trainer
    clips = data.clips_per_epoch
    if clips is None:
        clips = tracks
    elif clips == "auto":
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
    batches = math.ceil(data.clips_per_epoch // processes(settings) / data.batch_size_train)
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


# --- The data -----------------------------------------------------------------------------------


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
        teacher_dir=data.teacher_dir if "train" in splits else None,
        on_error=data.on_error,
        **{name: getattr(data, name) for name in (f"groundtruth_{s}" for s in splits)},
    )


def splits_not_given(settings: Settings, *splits: str) -> list[str]:
    """Splits that are the embedded data set's by default, where the log-mel files are others."""
    data, default = settings.datamodule, type(settings.datamodule)()
    if Path(data.base_dir).resolve() == Path(default.base_dir).resolve():
        return []
    names = {split: f"groundtruth_{split}" for split in splits}
    return [split for split, n in names.items() if getattr(data, n) == getattr(default, n)]


def check_files(settings: Settings, *splits: str) -> None:
    """Raise InputError if a split's ground truth, or the teacher's folder, does not exist.

    The embedded data set is built if it is asked for and missing.
    """
    paths = {split: getattr(settings.datamodule, f"groundtruth_{split}") for split in splits}
    for split in splits_not_given(settings, *splits):
        raise InputError(
            "it is not given, and datamodule.base_dir is not the embedded data set's",
            kind="missing",
            hint=f"Give datamodule.groundtruth_{split}=<a ground truth of the tracks there>.",
            setting=f"datamodule.groundtruth_{split}",
        )
    for split, path in paths.items():
        embedded = path is not None and DATA_DIR in Path(path).resolve().parents
        if not embedded and (path is None or not Path(path).exists()):
            raise InputError(
                "it is not set" if path is None else "no such file",
                kind="missing",
                hint="Give a ground truth: a data set's own preprocess.py makes it, or `python "
                "datasets/groundtruth.py build`.",
                path=path,
                setting=f"datamodule.groundtruth_{split}",
            )
    teacher = settings.datamodule.teacher_dir
    if "train" in splits and teacher is not None and not Path(teacher).is_dir():
        raise InputError(
            "no such folder",
            kind="missing",
            hint="`python ex_maest.py extract_logits with maest.checkpoint=<the teacher>` writes "
            "the logits of a model of the same labels, for all training tracks.",
            path=teacher,
            setting="datamodule.teacher_dir",
        )
    build_if_missing(paths.values())


# --- Checks -------------------------------------------------------------------------------------


def check_device(settings: Settings) -> None:
    """Raise InputError for settings of section ``trainer`` that a CPU cannot serve."""
    trainer = settings.trainer
    if device_of(settings).type != "cpu":
        return
    if trainer.accelerator not in ("auto", "cpu"):
        raise InputError(
            f"there is no {trainer.accelerator!r} here",
            kind="unsupported",
            setting="trainer.accelerator",
            hint="Leave it out to take what there is.",
        )
    if trainer.precision == "16-mixed":
        raise InputError(
            "a CPU does not compute in fp16",
            kind="unsupported",
            setting="trainer.precision",
            hint="Leave it out: 32-true is the fastest there.",
        )
    if trainer.devices == -1:
        raise InputError(
            "there is no GPU here, of which -1 would take all",
            kind="unsupported",
            setting="trainer.devices",
            hint="Give a number of CPU processes, or leave it out.",
        )


def check_same_labels(net: Maest, data: MaestDataModule, split: str) -> None:
    """Raise InputError if a split has other labels than the network."""
    groundtruth, labels = data.groundtruth(split), data.labels(split)
    if groundtruth.n_classes != net.n_classes:
        raise InputError(
            f"{groundtruth.n_classes} labels to a track, and the model has {net.n_classes}",
            kind="mismatch",
            setting=f"datamodule.groundtruth_{split}",
            path=groundtruth.path,
            hint="Use a ground truth of the model's own task: all splits of one data set.",
        )
    if None not in (labels, net.labels) and labels != net.labels:
        raise InputError(
            "other labels, or another order, than the model's",
            kind="mismatch",
            path=groundtruth.path.parent / "labels.json",
            hint="Use a ground truth with the model's labels, or a model of these.",
        )


def _check_targets(data: MaestDataModule) -> None:
    """Raise InputError if there is nothing to learn, or to choose the best epoch by."""
    from maest.helpers import metrics  # imports scikit-learn

    train, val = data.groundtruth("train"), data.groundtruth("val")
    if data.task == "multi-label" and not train.targets.any():
        raise InputError(
            "no track has a label: there is nothing to learn",
            kind="empty",
            setting="datamodule.groundtruth_train",
            path=train.path,
            hint="Check how it was made: `python datasets/groundtruth.py show` counts its labels.",
        )
    with warnings.catch_warnings(action="ignore"):  # of scikit-learn, for what is said here
        scores = metrics.evaluate(data.task, val.targets, np.zeros(val.targets.shape))
    if np.isnan(scores.figures[metrics.MONITOR[data.task]]):
        regression = data.task == "regression"
        what = "target with two values" if regression else "label that some have and some not"
        raise InputError(
            f"there is nothing to choose the best epoch by: among its {len(val)} tracks there is "
            f"no {what}",
            kind="empty",
            setting="datamodule.groundtruth_val",
            path=val.path,
            hint="Validate on more tracks.",
        )
