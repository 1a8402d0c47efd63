"""Evaluate a network on whole tracks, also for training; the commands test and calibrate."""

import os
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from maest.config import Settings
from maest.datasets.groundtruth import check_labels
from maest.experiments.data import check_files, limited, read
from maest.experiments.devices import find_devices
from maest.experiments.model import (
    build_network,
    check_head,
    clip_frames,
    in_section,
    network_arguments,
    require_checkpoint,
)
from maest.experiments.plan import build_data
from maest.experiments.runs import run_dir
from maest.helpers.errors import InputError
from maest.helpers.files.atomic import write_json
from maest.helpers.reports import metrics
from maest.helpers.reports.report import metrics_line
from maest.helpers.reports.thresholds import FEWEST, best_thresholds
from maest.helpers.soft_labels import positive
from maest.models import Maest, get_maest, save_model
from maest.models.engines import PRECISIONS
from maest.models.evaluation import Scored, TrackScores
from maest.models.weights import Checkpoint


@torch.inference_mode()
def evaluate(
    net: Maest,
    tracks: DataLoader,
    limit: int | float | None,
    settings: Settings,
    skipped: dict[str, str],
) -> Scored:
    """Score a network on whole tracks, in this process alone; leave it on the CPU.

    ``limit`` is a number of batches, or a share. Unreadable files are added to ``skipped``.
    """
    if settings.trainer.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    devices, total = find_devices(settings.trainer), limited(len(tracks), limit)
    device, dtype = devices.device, PRECISIONS[devices.precision]
    patches = settings.inference.patches_per_pass
    scores = TrackScores({"": net.to(device).eval()}, patches, skipped)
    quiet = None if settings.trainer.enable_progress_bar else True  # None: a bar on terminals only
    with torch.autocast(device.type, dtype, enabled=dtype is not None):
        for batch in tqdm(islice(tracks, total), "evaluation", total, leave=False, disable=quiet):
            scores.add(batch.to(device))
    net.cpu()
    return scores.result()[""]


def metrics_of(split: str, scored: Scored, net: Maest) -> dict[str, Any]:
    """Return metrics over all labels and of each label, and those of chance."""
    evaluation, targets = scored.evaluation, scored.targets
    names = net.labels or [str(i) for i in range(targets.shape[1])]
    results: dict[str, Any] = {f"{split}_{k}": v for k, v in evaluation.figures.items()}
    results[f"{split}_tracks"] = len(targets)
    if net.task == "multi-label":
        chance = metrics.chance_scores(targets)
        results["chance"] = dict(zip(metrics.SHOWN["multi-label"], chance, strict=True))
    rows = []
    for i, name in enumerate(names):
        figures = {metric: values[i] for metric, values in evaluation.per_label.items()}
        row: dict[str, Any] = {n: None if np.isnan(v) else float(v) for n, v in figures.items()}
        if net.task != "regression":
            row["positives"] = int(positive(targets[:, i]).sum())
        rows.append({"label": name, **row})
    return results | {"per_label": rows}


def left_out(task: str, count: int) -> str:
    """Say how many labels the means leave out."""
    what = "targets" if task == "regression" else "labels"
    return f"{count} {what} skipped, as they cannot be scored"


def _evaluate_checkpoint(
    settings: Settings, split: str, with_thresholds: bool = False
) -> tuple[Checkpoint, Maest, Scored]:
    """Score maest.checkpoint, or published weights, on whole tracks of a split.

    ``with_thresholds`` refuses a network whose task has none.
    """
    find_devices(settings.trainer)  # first, as it may refuse
    check_files(settings, split)
    checkpoint = require_checkpoint(settings)
    splits, frames = read(settings, checkpoint, split), clip_frames(settings, checkpoint)
    net = build_network(settings, checkpoint, splits[split])
    if with_thresholds and net.task != "multi-label":
        message, hint = f"{net.task} has no thresholds", "Give a multi-label model."
        where, setting = checkpoint.path, "maest.checkpoint"
        raise InputError(message, kind="unsupported", hint=hint, setting=setting, path=where)
    setting = f"datamodule.groundtruth_{split}"
    check_labels(splits[split], net.n_classes, net.labels, "the model", setting)
    check_head(checkpoint, net)
    data, trainer = build_data(settings, splits, frames), settings.trainer
    tracks, limit = data.val_dataloader, trainer.limit_val_batches
    if split == "test":
        tracks, limit = data.test_dataloader, trainer.limit_test_batches
    try:
        return checkpoint, net, evaluate(net, tracks(), limit, settings, {})
    except FloatingPointError as error:
        hint = "Its weights are damaged, or their training has diverged: take others."
        what, path, setting = str(error), checkpoint.path, "maest.checkpoint"
        raise InputError(what, kind="corrupt", setting=setting, path=path, hint=hint) from None


def test(run: Any, settings: Settings) -> dict[str, Any]:
    """Evaluate maest.checkpoint on whole tracks of the test split."""
    written = run_dir(run) / "results.json"
    checkpoint, net, scored = _evaluate_checkpoint(settings, "test")
    results = metrics_of("test", scored, net) | {"average": checkpoint.average}
    write_json(written, results)
    shown = {name: results[f"test_{name}"] for name in metrics.SHOWN[net.task]}
    line, chance = metrics_line(net.task, shown), results.get("chance")
    line += f" (chance: {metrics_line(net.task, chance)})" if chance else ""
    count = left_out(net.task, scored.evaluation.left_out)
    print(f"{results['test_tracks']} tracks: {line}; {count}; one by one: {written}")
    return {f"test_{name}": value for name, value in shown.items()}


def thresholds_of(scored: Scored, net: Maest) -> list[float | None] | None:
    """Return the thresholds of a multi-label network's tags, by its scores on validation tracks."""
    if net.task != "multi-label":
        return None
    return best_thresholds(scored.targets, scored.outputs)


def thresholds_line(net: Maest) -> str:
    """Say how many labels have a threshold."""
    count = sum(threshold is not None for threshold in net.thresholds or ())
    others = f" (the others: fewer than {FEWEST} positives)" if count < net.n_classes else ""
    return f"{count} of {net.n_classes} labels have a threshold{others}"


def calibrate(run: Any, settings: Settings) -> dict[str, Any]:
    """Write maest.checkpoint as a model folder with thresholds, chosen on the validation split.

    The folder is a new one, in the run's, as published weights and those of others stay unchanged.
    """
    folder = run_dir(run) / "model"
    checkpoint, net, scored = _evaluate_checkpoint(settings, "val", with_thresholds=True)
    thresholds = thresholds_of(scored, net)
    if thresholds is None:
        message = f"no label has {FEWEST} positives among its {len(scored.targets)} tracks"
        path, setting = settings.datamodule.groundtruth_val, "datamodule.groundtruth_val"
        hint = "Give a larger one; or predict with inference.threshold=<a number>."
        raise InputError(message, kind="empty", setting=setting, path=path, hint=hint)
    # Evaluation may have fitted positions to other clips.
    with in_section("maest"):
        model = get_maest(checkpoint=checkpoint, **network_arguments(settings, checkpoint))
    model.thresholds = thresholds
    model.to(next(iter(checkpoint.tensors.values())).dtype)
    save_model(folder, model, checkpoint.arch, checkpoint.trained_on)
    print(f"{thresholds_line(model)}; {len(scored.targets)} tracks; {folder}")
    return {"folder": str(folder)}
