"""The commands test, check_data and compute_norm_stats."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from maest.config import Settings
from maest.datasets.check import CheckReport, check_splits
from maest.datasets.groundtruth import GroundTruth, read_groundtruth
from maest.datasets.norm import norm_stats
from maest.experiments.data import check_files, check_same_labels, find_teacher, splits_not_given
from maest.experiments.model import (
    arch_of,
    build_network,
    check_head,
    clip_frames,
    find_task,
    require_checkpoint,
)
from maest.experiments.plan import build_data, check_device, device_of
from maest.experiments.run_report import metrics_of
from maest.experiments.runs import run_dir
from maest.helpers import metrics
from maest.helpers.errors import InputError
from maest.helpers.files import write_json
from maest.helpers.report import metrics_line
from maest.models import Maest, load_checkpoint
from maest.models.evaluation import Scored, TrackScores
from maest.models.weights import Checkpoint

log = logging.getLogger(__name__)


@torch.inference_mode()
def evaluate(
    net: Maest, tracks: DataLoader, limit: float | None, settings: Settings, skipped: dict[str, str]
) -> Scored:
    """Score a network on whole tracks, in this process alone; it comes back on the CPU.

    ``limit`` is a number of batches, or a share of them. Files that could not be read are added to
    ``skipped``.
    """
    if settings.trainer.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    device, precision = device_of(settings), settings.trainer.precision or "32-true"
    dtype = torch.float16 if precision == "16-mixed" else torch.bfloat16
    total = len(tracks)
    if limit is not None:
        total = min(total, limit if isinstance(limit, int) else max(1, int(limit * total)))
    at_once = settings.inference.patches_per_pass or 32
    scores = TrackScores({"": net.to(device).eval()}, at_once, skipped)
    quiet = not (settings.trainer.enable_progress_bar and sys.stderr.isatty())
    with torch.autocast(device.type, dtype, enabled=precision != "32-true"):
        for batch in tqdm(islice(tracks, total), "evaluation", total, leave=False, disable=quiet):
            scores.add(batch.to(device))
    net.cpu()
    return scores.result()[""]


def test(run: Any, settings: Settings) -> dict[str, Any]:
    """Evaluate maest.checkpoint on whole tracks of datamodule.groundtruth_test."""
    folder = run_dir(run)
    check_device(settings)
    check_files(settings, "test")
    checkpoint = require_checkpoint(settings)
    data = build_data(settings, checkpoint, "test")
    net = build_network(settings, checkpoint, data.groundtruth("test"))
    check_same_labels(net, data, "test")
    check_head(checkpoint, net)
    try:
        scored = evaluate(
            net, data.test_dataloader(), settings.trainer.limit_test_batches, settings, {}
        )
    except FloatingPointError:
        raise InputError(
            "the network's outputs are NaN or infinite",
            kind="corrupt",
            hint="Its weights are damaged, or their training has diverged: take others.",
            setting="maest.checkpoint",
            path=checkpoint.path,
        ) from None
    results = metrics_of("test", scored, net) | {"average": checkpoint.average}
    write_json(folder / "results.json", results)
    shown = {name: results[f"test_{name}"] for name in metrics.SHOWN[net.task]}
    chance = results.get("chance")
    print(
        f"{results['test_tracks']} tracks: {metrics_line(net.task, shown)}"
        + (f" (chance: {metrics_line(net.task, chance)})" if chance else "")
        + f"; {scored.evaluation.left_out} {'targets' if net.task == 'regression' else 'labels'} "
        f"skipped, as they cannot be scored; one by one: {folder / 'results.json'}"
    )
    return {f"test_{name}": value for name, value in shown.items()}


def check_data(run: Any, settings: Settings) -> dict[str, Any]:
    """Look at all ground truths and files for what would stop a training, or spoil it."""
    folder = run_dir(run)
    given = [s for s in ("train", "val", "test") if _path(settings, s) is not None]
    left_out = splits_not_given(settings, *given)
    for split in left_out:
        log.warning("datamodule.groundtruth_%s is not given: not checked", split)
    splits = [split for split in given if split not in left_out]
    check_files(settings, *(splits or given))
    checkpoint = _read_sizes(settings)
    task = find_task(settings, checkpoint)
    found: dict[str, GroundTruth | InputError] = {}
    for split in splits:
        try:
            found[split] = read_groundtruth(_path(settings, split) or "", task=task)
        except InputError as error:
            found[split] = error
    report = check(settings, found, clip_frames(settings, checkpoint))
    write_json(folder / "check.json", report.to_dict())
    print(f"{report}\nall of it: {folder / 'check.json'}")
    return {"failed": len(report.problems), "warnings": len(report.warnings)}


def check(
    settings: Settings,
    splits: Mapping[str, GroundTruth | InputError],
    frames: int,
    brief: bool = False,
) -> CheckReport:
    """:func:`datasets.check.check_splits` by the settings."""
    data, teacher = settings.datamodule, find_teacher(settings) if "train" in splits else None
    skip = data.on_error == "skip"
    return check_splits(splits, data.base_dir, frames, teacher, skip, brief)


def compute_norm_stats(run: Any, settings: Settings) -> dict[str, Any]:
    """Mean and standard deviation of all log-mel values of datamodule.groundtruth_train."""
    folder = run_dir(run)
    check_files(settings, "train")
    task = find_task(settings, _read_sizes(settings))
    groundtruth = read_groundtruth(_path(settings, "train") or "", task=task)
    stats = norm_stats(settings.datamodule.base_dir, groundtruth.keys)
    write_json(folder / "norm_stats.json", vars(stats))
    for reason in list(stats.failed.values())[:10]:
        log.error("%s", reason)
    print(
        f"{stats.tracks} tracks, {stats.frames} frames; {len(stats.failed)} files could not be "
        f"read\nmaest.norm_mean={stats.mean!r} maest.norm_std={stats.std!r}"
    )
    return {"norm_mean": stats.mean, "norm_std": stats.std, "failed": len(stats.failed)}


def _path(settings: Settings, split: str) -> str | None:
    path: str | None = getattr(settings.datamodule, f"groundtruth_{split}")
    return path


def _read_sizes(settings: Settings) -> Checkpoint | None:
    """What ``maest.checkpoint`` says of clip length and task; nothing is fetched for it."""
    arch_of(settings)  # a misspelt one is refused
    path, average = settings.maest.checkpoint, settings.maest.checkpoint_swa_weights
    return None if path is None else load_checkpoint(path, average)
