"""Build a training from its settings, and check all of it: :func:`resolve`."""

from __future__ import annotations

import json
import logging
import math
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from maest.config import Settings, plain
from maest.config.schema import settings_of
from maest.datasets.datamodule import MaestDataModule
from maest.datasets.groundtruth import GroundTruth, check_labels, check_targets
from maest.experiments.data import check_files, find_teacher, limited, read
from maest.experiments.devices import find_devices
from maest.experiments.model import arch_of, build_network, clip_frames, find_checkpoint
from maest.experiments.runs import newest_runs
from maest.helpers.differences import differences
from maest.helpers.errors import InputError
from maest.models import Maest, load_checkpoint
from maest.models.archs import clip_seconds, descent, input_frames, size_name
from maest.models.sizes import grid_size
from maest.models.weights import Checkpoint

log = logging.getLogger(__name__)

_CLIPS_PER_TRACK, _MOST_CLIPS = 16, 2400
# Compiling takes about a minute, which does not pay in a run of fewer steps.
_STEPS_TO_COMPILE = 1000
# Defaults of version 0.1. If a run's record has one of these and the settings have today's
# default, nobody has chosen either.
_EARLIER_DEFAULTS = {
    "maest.s_patchout_t": 22,
    "maest.checkpoint_swa_weights": False,
    "datamodule.clips_per_epoch": 2400,
}


@dataclass(frozen=True)
class Plan:
    """A training, as built by :func:`resolve`."""

    settings: Settings  # decided
    continued: Path | None  # checkpoint to continue from
    origin: dict[str, Any]  # the model folder's record before the training
    data: MaestDataModule
    net: Maest
    steps_per_epoch: int  # of the optimiser
    steps: int

    @property
    def arch(self) -> str | None:
        """The name of the network's size, if it has one."""
        return size_name(self.net.embed_dim, self.net.num_heads, self.net.depth)

    def lines(self) -> list[str]:
        """Return a summary, one line per fact."""
        maest, data, trainer = self.settings.maest, self.settings.datamodule, self.settings.trainer
        net, devices = self.net, find_devices(trainer)
        frames, short = self.data.clip_frames, self.data.short_frames
        weights = sum(parameter.numel() for parameter in net.parameters()) / 1e6
        tracks = [len(self.data.splits[split]) for split in ("train", "val")]
        licence = self.origin.get("licence")
        rows = {
            "model": f"{self.arch or 'a size of its own'}, {weights:.1f} M weights",
            "started from": (self.origin["started_from"] or "random weights")
            + (f", whose licence the model gets: {licence}" if licence else ""),
            "targets": f"{net.task}, {net.n_classes} labels",
            "tracks": f"{tracks[0]} training and {tracks[1]} validation tracks",
            "clips": f"{data.clips_per_epoch} an epoch, of {clip_seconds(frames):g} s"
            + (f", in half of the batches {clip_seconds(short):g} s" if short else ""),
            "patchout": f"{maest.s_patchout_t} of {grid_size(frames)} time columns are dropped",
            "batch": f"{data.batch_size_train} clips, {data.num_workers} workers",
            "device": f"{devices.processes} x {devices.device.type}, "
            f"{trainer.precision}{', compiled' if trainer.compile else ''}",
            "steps": f"{self.steps}, {self.steps_per_epoch} an epoch",
        }
        if self.continued is not None:
            rows["continues"] = str(self.continued)
        return [f"{name + ':':14s}{text}" for name, text in rows.items()]


def resolve(settings: Settings, log_dir: Path) -> Plan:
    """Return weights, data and network of a training. InputError: they do not fit together."""
    find_devices(settings.trainer)  # refuses missing devices before data is built
    arch_of(settings)
    check_files(settings, "train", "val")
    checkpoint = find_checkpoint(settings, training=True)
    continued = find_run(settings, log_dir)
    before = read_continued(continued)
    settings = resumed_settings(settings, before)
    frames, splits = clip_frames(settings, checkpoint), read(settings, checkpoint, "train", "val")
    settings = decided(settings, frames, len(splits["train"]))
    data = build_data(settings, splits, frames)  # before minutes go into the data's norm
    if (data.short_frames or 0) > frames:
        what = f"is longer than a clip, {clip_seconds(frames):g} s"
        hint = "Give less, or a longer datamodule.clip_length."
        raise InputError(what, kind="conflict", setting="datamodule.short_clips", hint=hint)
    net = build_network(settings, checkpoint, splits["train"], training=True)
    for split, groundtruth in splits.items():
        setting = f"datamodule.groundtruth_{split}"
        check_labels(groundtruth, net.n_classes, net.labels, "the model", setting)
        check_targets(groundtruth, split, setting)
    _check_task(settings, net)
    origin = _origin(settings, splits["train"], checkpoint, before)
    return Plan(settings, continued, origin, data, net, *steps_of(settings))


def _check_task(settings: Settings, net: Maest) -> None:
    balanced = settings.datamodule.balanced_sampling and net.task == "regression"
    taught = settings.datamodule.teacher_dir is not None
    no_labels, one_head = net.task != "multi-label", net.distilled_type != "separated"
    for wrong, setting, message in (
        (balanced, "datamodule.balanced_sampling", "it counts labels, and a regression has none"),
        (taught and no_labels, "datamodule.teacher_dir", "a teacher is for maest.task=multi-label"),
        (taught and one_head, "maest.distilled_type", "a teacher is for a dist head: separated"),
    ):
        if wrong:
            hint = "Leave one of the two out."
            raise InputError(message, kind="conflict", setting=setting, hint=hint)


def _origin(
    settings: Settings,
    groundtruth: GroundTruth,
    checkpoint: Checkpoint | None,
    continued: Checkpoint | None,
) -> dict[str, Any]:
    """Return what a model's folder records before training: names, not paths."""
    started: dict[str, Any] = {"started_from": None}
    if continued is not None and "started_from" in continued.trained_on:
        names = ("started_from", "licence", "parents")
        started = {n: value for n, value in continued.trained_on.items() if n in names}
    elif checkpoint is not None:
        path = settings.maest.checkpoint
        name = checkpoint.arch if path is None else "/".join(Path(path).parts[-3:])
        started = descent(name, checkpoint.trained_on)
    about = {"groundtruth": "/".join(groundtruth.path.parts[-2:]), "tracks": len(groundtruth)}
    return about | started | {"seed": settings.seed}


def build_data(settings: Settings, splits: dict[str, GroundTruth], frames: int) -> MaestDataModule:
    """Return the data module of some splits, in clips of ``frames`` frames."""
    data, clips = settings.datamodule, settings.datamodule.clips_per_epoch
    return MaestDataModule(
        splits,
        base_dir=data.base_dir,
        clip_frames=frames,
        batch_size_train=data.batch_size_train,
        batch_size_eval=data.batch_size_eval,
        clips_per_epoch=clips if isinstance(clips, int) else None,
        balanced_sampling=data.balanced_sampling,
        num_workers=find_devices(settings.trainer).workers(data.num_workers),
        seed=settings.seed,
        teacher_dir=find_teacher(settings) if "train" in splits else None,
        window_targets=data.window_targets if "train" in splits else None,
        short_frames=None if data.short_clips is None else input_frames(data.short_clips),
        by_length=data.by_length,
        on_error=data.on_error,
    )


# ---- what is worked out --------------------------------------------------------------------------


def decided(settings: Settings, frames: int, tracks: int) -> Settings:
    """Return a training's settings with a value for each open one, given its number of tracks."""
    maest, data, trainer = settings.maest, settings.datamodule, settings.trainer
    devices, clips, columns = find_devices(trainer), data.clips_per_epoch, maest.s_patchout_t
    if not isinstance(clips, int):
        clips = tracks if clips is None else min(_CLIPS_PER_TRACK * tracks, _MOST_CLIPS)
    if columns is None:  # 3 a second, about half: the paper's 15, 30, 60, 90 of 5, 10, 20, 30 s
        always = maest.s_patchout_t_indices or maest.s_patchout_t_interleaved > 1
        columns = 0 if always else min(round(3 * clip_seconds(frames)), grid_size(frames) - 1)
    workers = devices.workers(data.num_workers)
    settings = replace(
        settings,
        maest=replace(maest, s_patchout_t=columns),
        datamodule=replace(data, clips_per_epoch=clips, num_workers=workers),
        trainer=replace(trainer, precision=devices.precision),
    )
    if trainer.compile is None:
        # Each rate of stochastic depth would compile a separate graph.
        pays = devices.device.type == "cuda" and not maest.drop_path_rate
        pays = pays and steps_of(settings)[1] >= _STEPS_TO_COMPILE
        settings = replace(settings, trainer=replace(settings.trainer, compile=pays))
    return settings


def steps_of(settings: Settings) -> tuple[int, int]:
    """Return optimiser steps per epoch, and in total, by :func:`decided` settings."""
    data, trainer = settings.datamodule, settings.trainer
    clips = int(data.clips_per_epoch or 0) // find_devices(trainer).processes
    batches = limited(math.ceil(clips / data.batch_size_train), trainer.limit_train_batches)
    epoch = math.ceil(batches / trainer.accumulate_grad_batches)
    steps = trainer.max_epochs * epoch
    return epoch, steps if trainer.max_steps < 0 else min(steps, trainer.max_steps)


# ---- a training that goes on ---------------------------------------------------------------------


def find_run(settings: Settings, log_dir: Path) -> Path | None:
    """Return the checkpoint to continue from; None starts a new training.

    ``ckpt_path=last`` takes the newest run of the same settings, if there is one, so that a
    cluster's job can be submitted again unchanged.
    """
    if settings.ckpt_path != "last":
        return None if settings.ckpt_path is None else Path(settings.ckpt_path)
    newest = ""
    for run in newest_runs("checkpoints/last.ckpt", log_dir):
        path = run / "checkpoints" / "last.ckpt"
        try:
            differing = _differing(settings, _read_record(path))
        except (OSError, ValueError, TypeError, KeyError):
            continue  # not a training's record
        if not differing:
            log.info("continuing %s", path)
            return path
        has = "; ".join(differing[:5]) + "; …" * (len(differing) > 5)
        newest = newest or f" The newest, {run}, has {has}. (ckpt_path={path} would go on from it)"
    which = "has these settings" if newest else "can be continued"
    log.warning("ckpt_path=last: no run in %s %s: a new one begins.%s", log_dir, which, newest)
    return None


def read_continued(path: Path | None) -> Checkpoint | None:
    """Return the checkpoint to continue from, or None if it is missing or corrupt."""
    if path is not None and path.is_file():
        with suppress(InputError):  # the training raises it
            return load_checkpoint(path, average=False)
    return None


def resumed_settings(settings: Settings, continued: Checkpoint | None) -> Settings:
    """Fill open settings from the continued training: measured again, they could differ."""
    if continued is None:
        return settings
    maest, data = settings.maest, settings.datamodule
    earlier: dict[str, Any] = {n: continued.sizes.get(n) for n in ("norm_mean", "norm_std")}
    clips = data.clips_per_epoch
    with suppress(OSError, ValueError, KeyError, TypeError):  # it is not in a run's folder
        record = _read_record(continued.path)
        earlier["s_patchout_t"] = record["maest"]["s_patchout_t"]
        if clips == "auto":
            clips = record["datamodule"]["clips_per_epoch"]
    earlier = {name: value for name, value in earlier.items() if getattr(maest, name) is None}
    return replace(
        settings, maest=replace(maest, **earlier), datamodule=replace(data, clips_per_epoch=clips)
    )


def _read_record(checkpoint: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((checkpoint.parents[1] / "config.json").read_text("utf-8"))
    return record


def _differing(settings: Settings, record: dict[str, Any]) -> list[str]:
    """Return how settings that matter differ from a record; missing ones count as defaults.

    KeyError, TypeError: the record is not a training's.
    """
    now, lines = plain(settings), differences(record["seed"], settings.seed, "seed")
    for setting in settings_of(Settings):
        section, _, name = setting.name.partition(".")
        if section not in ("maest", "module", "datamodule", "trainer") or "free" in setting.tags:
            continue
        default, value = plain(setting.default), now[section][name]
        then = record[section].get(name, default)
        if value != default or then != _EARLIER_DEFAULTS.get(setting.name, value):
            lines += differences(then, value, setting.name)
    return lines
