"""What a run of ``ex_maest.py`` has come to: figures, pictures, and the lines it prints."""

from __future__ import annotations

import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from maest.datasets.datamodule import MaestDataModule
from maest.helpers import metrics, plots
from maest.helpers.checkpoints import Checkpoints
from maest.helpers.history import History
from maest.models import Maest, licences, load_checkpoint
from maest.models.training import MaestModule
from maest.models.weights import Checkpoint, load_into


def figures_of(split: str, module: MaestModule, labels: list[str] | None) -> dict[str, Any]:
    """The last evaluation's figures, over all labels and for each, and what chance gets."""
    evaluation, targets = module.evaluation, module.targets
    names = labels or [str(i) for i in range(targets.shape[1])]
    results: dict[str, Any] = {f"{split}_{k}": v for k, v in evaluation.figures.items()}
    results[f"{split}_tracks"] = len(targets)
    multi_label, regression = module.net.task == "multi-label", module.net.task == "regression"
    if multi_label:
        results["chance"] = dict(
            zip(metrics.SHOWN["multi-label"], metrics.chance_scores(targets), strict=True)
        )
    results["per_label"] = [
        {
            "label": name,
            **{k: None if np.isnan(v[i]) else float(v[i]) for k, v in evaluation.per_label.items()},
            **({} if regression else {"positives": int(targets[:, i].sum())}),
        }
        for i, name in enumerate(names)
    ]
    return results


def average_of(
    net: Maest, checkpoints: Checkpoints, history: History, results: dict[str, Any]
) -> Maest | None:
    """The best average of weights, or None; its figures go into ``results["swa"]``."""
    path = checkpoints.path("best-swa")
    if path is None:
        return None
    epoch = checkpoints.best["best-swa"]["epoch"]
    row = next(row for row in history.epochs if row["epoch"] == epoch)
    found = load_checkpoint(path, average=True)
    results["swa"] = {
        "epoch": found.trained_on["epoch"],
        "steps": found.trained_on["steps"],
        **{n.replace("val_swa_", "val_"): v for n, v in row.items() if n.startswith("val_swa_")},
    }
    return load_into(deepcopy(net), found)


def summarise(
    module: MaestModule, data: MaestDataModule, history: History, folder: Path
) -> dict[str, Any]:
    """Figures of the kept weights on the validation split, beside baselines; with pictures."""
    task = module.net.task
    results = figures_of("val", module, module.net.labels)
    baseline = metrics.baseline(task, data.groundtruth("train").targets, module.targets)
    name, first = metrics.BASELINES[task], metrics.SHOWN[task][0]
    results[name] = {figure: baseline.figures[figure] for figure in metrics.SHOWN[task]}
    results["epochs"] = history.epochs
    if history.epochs:
        lines = {"chance": results["chance"][first]} if "chance" in results else {}
        lines[name.replace("_", " ")] = results[name][first]
        plots.learning_curve(folder / "learning_curve.png", history.epochs, lines)
    figure = "f1" if task == "single-label" else first
    plots.label_bars(
        folder / "labels.png",
        [row["label"] for row in results["per_label"]],
        {
            "model": module.evaluation.per_label[figure],
            name.replace("_", " "): baseline.per_label[figure],
        },
        f"{metrics.FIGURE_NAMES[figure]} on the validation split",
    )
    return results


def origin(
    config: dict[str, Any],
    data: MaestDataModule,
    checkpoint: Checkpoint | None,
    continued: Checkpoint | None,
) -> dict[str, Any]:
    """What is known of a model before its training: data, what it starts from, and the licence.

    Names, not paths: it is made to be passed on.

    Args:
        config: all settings.
        data: of the training.
        checkpoint: the model that the training starts from.
        continued: the checkpoint of the training that this one continues.
    """
    groundtruth, descent = data.groundtruth("train"), {"started_from": None}
    if continued is not None and "started_from" in continued.trained_on:
        known = continued.trained_on
        descent = {n: known[n] for n in ("started_from", "licence", "parents") if n in known}
    elif checkpoint is not None:
        path = config["maest"]["checkpoint"]
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
        "seed": config["seed"],
    }


def provenance(
    origin: dict[str, Any], data: MaestDataModule, results: dict[str, Any]
) -> dict[str, Any]:
    """What a model folder says of its making."""
    return {
        **origin,
        "steps": results["best_steps"],
        "epoch": results["best_epoch"],
        **{f"val_{name}": results[f"val_{name}"] for name in metrics.SHOWN[data.task]},
        **({"swa": results["swa"]} if "swa" in results else {}),
        "date": time.strftime("%Y-%m-%d"),
        "versions": {"torch": torch.__version__, "pytorch_lightning": pl.__version__},
    }


def in_words(task: str, figures: dict[str, float]) -> str:
    return ", ".join(f"{metrics.FIGURE_NAMES[n]} {figures[n]:.4f}" for n in metrics.SHOWN[task])


def print_report(results: dict[str, Any], task: str, folder: Path, model: Path) -> None:
    rows = {"model": {name: results[f"val_{name}"] for name in metrics.SHOWN[task]}}
    if "swa" in results:
        rows["its average"] = {name: results["swa"][f"val_{name}"] for name in metrics.SHOWN[task]}
    rows[metrics.BASELINES[task].replace("_", " ")] = results[metrics.BASELINES[task]]
    if "chance" in results:
        rows["chance"] = results["chance"]
    names = [metrics.FIGURE_NAMES[name] for name in metrics.SHOWN[task]]
    lines = [f"  {'':19s}" + "".join(f"{name:>9s}" for name in names)]
    lines += [
        f"  {row:19s}" + "".join(f"{figures[name]:9.4f}" for name in metrics.SHOWN[task])
        for row, figures in rows.items()
    ]
    curve = folder / "learning_curve.png"
    left_out = next(int(v) for k, v in results.items() if k.endswith("_left_out"))
    print(
        f"\nvalidation, {results['val_tracks']} tracks, best epoch {results['best_epoch']}:\n"
        + "\n".join(lines)
        + f"\n({left_out} {'targets' if task == 'regression' else 'labels'} skipped, as they "
        f"cannot be scored; {results['steps']} steps in {results['seconds']:.0f} s)\n"
        + (f"learning curve: {curve}\n" if curve.is_file() else "")
        + f"per label:      {folder / 'labels.png'}\n"
        f"model folder:   {model}" + (" (used with its average)" if "swa" in results else "")
    )
    if results["skipped"]:
        print(f"{len(results['skipped'])} files could not be read, and were skipped: results.json")
