"""Evaluate a network on whole tracks, also for training; the command test."""

from __future__ import annotations

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
from maest.experiments.model import build_network, check_head, clip_frames, require_checkpoint
from maest.experiments.plan import build_data
from maest.experiments.runs import run_dir
from maest.helpers.errors import InputError
from maest.helpers.files.atomic import write_json
from maest.helpers.reports import metrics
from maest.helpers.reports.report import metrics_line
from maest.helpers.soft_labels import positive
from maest.models import Maest
from maest.models.engines import PRECISIONS
from maest.models.evaluation import Scored, TrackScores


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


def test(run: Any, settings: Settings) -> dict[str, Any]:
    """Evaluate maest.checkpoint on whole tracks of the test split."""
    written = run_dir(run) / "results.json"
    find_devices(settings.trainer)  # first, as it may refuse
    check_files(settings, "test")
    checkpoint = require_checkpoint(settings)
    splits, frames = read(settings, checkpoint, "test"), clip_frames(settings, checkpoint)
    net = build_network(settings, checkpoint, splits["test"])
    setting = "datamodule.groundtruth_test"
    check_labels(splits["test"], net.n_classes, net.labels, "the model", setting)
    check_head(checkpoint, net)
    tracks = build_data(settings, splits, frames).test_dataloader()
    try:
        scored = evaluate(net, tracks, settings.trainer.limit_test_batches, settings, {})
    except FloatingPointError as error:
        hint = "Its weights are damaged, or their training has diverged: take others."
        what, path, setting = str(error), checkpoint.path, "maest.checkpoint"
        raise InputError(what, kind="corrupt", setting=setting, path=path, hint=hint) from None
    results = metrics_of("test", scored, net) | {"average": checkpoint.average}
    write_json(written, results)
    shown = {name: results[f"test_{name}"] for name in metrics.SHOWN[net.task]}
    line, chance = metrics_line(net.task, shown), results.get("chance")
    line += f" (chance: {metrics_line(net.task, chance)})" if chance else ""
    count = left_out(net.task, scored.evaluation.left_out)
    print(f"{results['test_tracks']} tracks: {line}; {count}; one by one: {written}")
    return {f"test_{name}": value for name, value in shown.items()}
