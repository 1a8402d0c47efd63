"""Results of a training or a test: metrics, pictures, and the lines that are printed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from maest.datasets.groundtruth import GroundTruth
from maest.helpers import metrics, plots
from maest.helpers.report import metrics_table
from maest.models import Maest
from maest.models.evaluation import Scored


def metrics_of(split: str, scored: Scored, net: Maest) -> dict[str, Any]:
    """Metrics over all labels and of each, and what chance gets."""
    evaluation, targets = scored.evaluation, scored.targets
    names = net.labels or [str(i) for i in range(targets.shape[1])]
    results: dict[str, Any] = {f"{split}_{k}": v for k, v in evaluation.figures.items()}
    results[f"{split}_tracks"] = len(targets)
    if net.task == "multi-label":
        chance = metrics.chance_scores(targets)
        results["chance"] = dict(zip(metrics.SHOWN["multi-label"], chance, strict=True))
    rows = []
    for i, name in enumerate(names):
        row: dict[str, Any] = {"label": name}
        for metric, values in evaluation.per_label.items():
            row[metric] = None if np.isnan(values[i]) else float(values[i])
        if net.task != "regression":
            row["positives"] = int(targets[:, i].sum())
        rows.append(row)
    return results | {"per_label": rows}


def summarize(
    scored: Scored, net: Maest, train: GroundTruth, epochs: list[dict[str, float]], folder: Path
) -> dict[str, Any]:
    """Metrics on the validation split, beside baselines; with pictures in ``folder``."""
    task, results = net.task, metrics_of("val", scored, net)
    baseline = metrics.baseline(task, train.targets, scored.targets)
    name, first = metrics.BASELINES[task], metrics.SHOWN[task][0]
    results[name] = {metric: baseline.figures[metric] for metric in metrics.SHOWN[task]}
    results["epochs"] = epochs
    words = name.replace("_", " ")
    if epochs:
        lines = {"chance": results["chance"][first]} if "chance" in results else {}
        lines[words] = results[name][first]
        plots.learning_curve(folder / "learning_curve.png", epochs, lines)
    metric = "f1" if task == "single-label" else first
    bars = {
        "model": scored.evaluation.per_label[metric].tolist(),
        words: baseline.per_label[metric].tolist(),
    }
    labels = [row["label"] for row in results["per_label"]]
    title = f"{metrics.FIGURE_NAMES[metric]} on the validation split"
    plots.label_bars(folder / "labels.png", labels, bars, title)
    return results


def provenance(origin: dict[str, Any], task: str, results: dict[str, Any]) -> dict[str, Any]:
    """What a model folder says of its making."""
    return {
        **origin,
        "steps": results["best_steps"],
        "epoch": results["best_epoch"],
        **{f"val_{name}": results[f"val_{name}"] for name in metrics.SHOWN[task]},
        **({"swa": results["swa"]} if "swa" in results else {}),
        "date": time.strftime("%Y-%m-%d"),
        "versions": {"torch": torch.__version__, "pytorch_lightning": pl.__version__},
    }


def print_report(results: dict[str, Any], task: str, folder: Path, model: Path) -> None:
    """The end of a training's output: a table of the model and its baselines, and the files."""
    shown, swa, baseline = metrics.SHOWN[task], results.get("swa"), metrics.BASELINES[task]
    rows = {"model": {name: results[f"val_{name}"] for name in shown}}
    if swa:
        rows["its average"] = {name: swa[f"val_{name}"] for name in shown}
    rows[baseline.replace("_", " ")] = results[baseline]
    if "chance" in results:
        rows["chance"] = results["chance"]
    left_out = next(int(v) for k, v in results.items() if k.endswith("_left_out"))
    curve = folder / "learning_curve.png"
    print(f"\nvalidation, {results['val_tracks']} tracks, best epoch {results['best_epoch']}:")
    print(metrics_table(task, rows.items()))
    print(
        f"({left_out} {'targets' if task == 'regression' else 'labels'} skipped, as they cannot be "
        f"scored; {results['steps']} steps in {results['seconds']:.0f} s)"
    )
    if curve.is_file():
        print(f"learning curve: {curve}")
    print(f"per label:      {folder / 'labels.png'}")
    print(f"model folder:   {model}" + (" (used with its average)" if swa else ""))
    if results["skipped"]:
        print(f"{len(results['skipped'])} files could not be read, and were skipped: results.json")
