"""Figures as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from helpers.files import atomic_path


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG, atomically. No window system is asked, and no backend changed."""
    path = Path(path)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120, bbox_inches="tight")
    return path


def learning_curve(
    path: str | Path, epochs: Sequence[Mapping[str, float]], lines: Mapping[str, float]
) -> Path:
    """Draw loss, and validation AP and ROC-AUC, over epochs.

    Args:
        path: the PNG file.
        epochs: a row of figures for each epoch, as `helpers.history.History` keeps.
        lines: levels to compare the AP with, by name.
    """
    figure = Figure(figsize=(11, 4))
    left, right = figure.subplots(1, 2)
    x = [row["epoch"] + 1 for row in epochs]
    for axes, names in (
        (left, {"train_loss": "training", "val_loss": "validation"}),
        (right, {"val_ap": "AP", "val_roc_auc": "ROC-AUC"}),
    ):
        for name, label in names.items():
            axes.plot(x, [row.get(name, np.nan) for row in epochs], marker="o", ms=3, label=label)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    for (name, level), style in zip(lines.items(), ("--", ":", "-."), strict=False):
        right.axhline(level, color="grey", linestyle=style, label=f"{name} (AP {level:.3f})")
    left.set_title("binary cross-entropy")
    right.set_title("validation, mean over labels")
    right.set_ylim(0, 1)
    left.legend()
    right.legend()
    return save_figure(figure, path)


def label_bars(
    path: str | Path,
    labels: Sequence[str],
    series: Mapping[str, Sequence[float]],
    title: str,
    errors: Mapping[str, Sequence[float]] | None = None,
) -> Path:
    """Draw horizontal bars for each label, one colour a series; NaN leaves a gap.

    Args:
        path: the PNG file.
        labels: the C label names.
        series: C values between 0 and 1, by the series' name; labels are sorted by the first one.
        title: of the figure.
        errors: C standard deviations for some of the series.
    """
    first = np.nan_to_num(np.asarray(next(iter(series.values())), dtype=float), nan=-1)
    order = np.argsort(first)
    height = 0.8 / len(series)
    figure = Figure(figsize=(8, 1.5 + 0.12 * len(labels) * (1 + len(series))))
    axes = figure.subplots()
    at = np.arange(len(labels))
    for i, (name, values) in enumerate(series.items()):
        spread = (errors or {}).get(name)
        axes.barh(
            at + 0.4 - height * (i + 0.5),
            np.asarray(values, dtype=float)[order],
            height,
            xerr=None if spread is None else np.asarray(spread, dtype=float)[order],
            label=name,
        )
    axes.set_yticks(at, [labels[i] for i in order])
    axes.set_xlim(0, 1)
    axes.set_title(title)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="lower right")
    return save_figure(figure, path)
