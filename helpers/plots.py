"""Figures as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from helpers.files import atomic_path
from helpers.metrics import FIGURE_NAMES

# The two panels of a learning curve, by the figure that tells the task: their titles, and the
# figures in the right one. (The MSE of a regression is its loss.)
_PANELS = {
    "ap": ("binary cross-entropy", "validation, mean over labels", ("ap", "roc_auc")),
    "accuracy": ("cross-entropy", "validation", ("accuracy", "macro_f1")),
    "r2": ("mean squared error", "validation, mean over targets", ("r2",)),
}
_LOWEST = -1.0  # an R² below this is cut off: one bad epoch or target would flatten all others


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG, atomically. No window system is asked, and no backend changed."""
    path = Path(path)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120, bbox_inches="tight")
    return path


def learning_curve(
    path: str | Path, epochs: Sequence[Mapping[str, float]], lines: Mapping[str, float]
) -> Path:
    """Draw loss and validation figures over epochs: AP and ROC-AUC, or those of another task.

    Args:
        path: the PNG file.
        epochs: a row of figures for each epoch, as `helpers.history.History` keeps.
        lines: levels to compare the first figure (AP, accuracy or R²) with, by name.
    """
    monitor = next((m for m in _PANELS if any(f"val_{m}" in row for row in epochs)), "ap")
    loss, title, names = _PANELS[monitor]
    figure = Figure(figsize=(11, 4))
    left, right = figure.subplots(1, 2)
    x = [row["epoch"] + 1 for row in epochs]
    shown = {f"val_{name}": FIGURE_NAMES[name] for name in names}
    for axes, own in (
        (left, {"train_loss": "training", "val_loss": "validation"}),
        (right, shown),
    ):
        for name, label in own.items():
            axes.plot(x, [row.get(name, np.nan) for row in epochs], marker="o", ms=3, label=label)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    for (name, level), style in zip(lines.items(), ("--", ":", "-."), strict=False):
        label = f"{name} ({FIGURE_NAMES[monitor]} {level:.3f})"
        right.axhline(level, color="grey", linestyle=style, label=label)
    left.set_title(loss)
    right.set_title(title)
    values = [row[name] for row in epochs for name in shown if name in row]
    right.set_ylim(_lowest([*values, *lines.values()]), 1)
    left.legend()
    right.legend()
    return save_figure(figure, path)


def _lowest(values: Sequence[float] | np.ndarray) -> float:
    """Where an axis up to 1 begins: at 0, or below it for negative values (R²)."""
    values = np.asarray(values, dtype=float)
    lowest = np.nanmin(values, initial=0.0)
    return 0.0 if lowest >= 0 else max(_LOWEST, 1.1 * float(lowest))


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
        series: C values up to 1, by the series' name; labels are sorted by the first one. Negative
            values (of R²) are drawn down to -1, and cut off there.
        title: of the figure.
        errors: C standard deviations for some of the series.
    """
    first = np.nan_to_num(np.asarray(next(iter(series.values())), dtype=float), nan=-np.inf)
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
    axes.set_xlim(_lowest(np.concatenate([np.asarray(v, dtype=float) for v in series.values()])), 1)
    axes.set_title(title)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="lower right")
    return save_figure(figure, path)
