"""Figures as PNG files: curves, bars, maps and intervals."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import MaxNLocator

from maest.helpers.files.atomic import atomic_path
from maest.helpers.reports.metrics import FIGURE_NAMES

# The metric that identifies the task: titles of both panels of a learning curve, and the metrics
# of the right one. (The MSE of a regression is its loss.)
_PANELS = {
    "ap": ("binary cross-entropy", "validation, mean over labels", ("ap", "roc_auc")),
    "accuracy": ("cross-entropy", "validation", ("accuracy", "macro_f1")),
    "r2": ("mean squared error", "validation, mean over targets", ("r2",)),
}
_LOWEST = -1.0  # an R² below this is cut off: one bad epoch or target would flatten all others
LONGEST_TITLE, LONGEST_LABEL = 100, 40  # characters
_MOST_NAMED = 8  # lines in a legend
_LARGEST = 24  # inches of a table's cells


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG, atomically, without a window system or a change of backend."""
    for axes in figure.axes:  # "$" in a name is no formula
        for text in (axes.title, *axes.get_xticklabels(), *axes.get_yticklabels()):
            text.set_parse_math(False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120, bbox_inches="tight")
    return Path(path)


@functools.cache
def _characters() -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties())).get_charmap())


def drawable(text: str, longest: int = LONGEST_LABEL) -> str:
    """Return the text in one line, cut at its start, with boxes for what the font lacks.

    Matplotlib would warn of each such character, and cannot draw surrogates at all.
    """
    known = _characters()
    drawn = "".join("\u25a1" if ord(c) not in known or not c.isprintable() else c for c in text)
    return drawn if len(drawn) <= longest else f"…{drawn[1 - longest :]}"


def _over_epochs(titles: Sequence[str]) -> tuple[Figure, Axes, Axes]:
    figure = Figure(figsize=(11, 4))
    left, right = figure.subplots(1, 2)
    for axes, title in zip((left, right), titles, strict=True):
        axes.set_title(title)
        _count_along_x(axes, "epoch")
    return figure, left, right


def _count_along_x(axes: Axes, name: str) -> None:
    axes.set_xlabel(name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)


def _levels(axes: Axes, levels: Mapping[str, float]) -> None:
    for (name, level), style in zip(levels.items(), ("--", ":", "-."), strict=False):
        axes.axhline(level, color="grey", linestyle=style, label=name)


def _lowest(*values: float) -> float:
    """Return where an axis up to 1 begins: 0, or lower for negative values (R²)."""
    return max(_LOWEST, 1.1 * float(np.nanmin([0.0, *values])))


# ---- over epochs ---------------------------------------------------------------------------------


def learning_curve(
    path: str | Path, epochs: Sequence[Mapping[str, float]], lines: Mapping[str, float]
) -> Path:
    """Draw loss and validation metrics over epochs.

    ``epochs`` are rows of a `History`; ``lines`` are levels of the first metric.
    """
    monitor = next((m for m in _PANELS if any(f"val_{m}" in row for row in epochs)), "ap")
    *titles, names = _PANELS[monitor]
    shown = {f"val_{name}": FIGURE_NAMES[name] for name in names}
    figure, left, right = _over_epochs(titles)
    losses = {"train_loss": "training", "val_loss": "validation"}
    for axes, columns in ((left, losses), (right, shown)):
        for name, label in columns.items():
            values = [row.get(name, np.nan) for row in epochs]
            axes.plot([row["epoch"] for row in epochs], values, marker="o", ms=3, label=label)
    first = FIGURE_NAMES[monitor]
    _levels(right, {f"{name} ({first} {level:.3f})": level for name, level in lines.items()})
    values = [row[name] for row in epochs for name in shown if name in row]
    right.set_ylim(_lowest(*values, *lines.values()), 1)
    left.legend()
    right.legend()
    return save_figure(figure, path)


def seed_curves(
    path: str | Path,
    histories: Sequence[Sequence[Mapping[str, float]]],
    monitor: str,
    best_epochs: Sequence[int],
    names: Sequence[str],
) -> Path:
    """Draw training loss and a validation metric over epochs, one line per seed.

    ``histories`` hold rows of ``epoch`` (from 1), ``train_loss`` and ``val_<monitor>`` per seed.
    """
    kept = f"validation, {FIGURE_NAMES[monitor]}; a dot: the epoch that is kept"
    figure, left, right = _over_epochs(("training loss", kept))
    for rows, best, name in zip(histories, best_epochs, names, strict=True):
        epochs = [row["epoch"] for row in rows]
        left.plot(epochs, [row["train_loss"] for row in rows], lw=1)
        values = [row[f"val_{monitor}"] for row in rows]
        (line,) = right.plot(epochs, values, lw=1, label=name)
        right.plot([best], [values[epochs.index(best)]], "o", ms=5, color=line.get_color())
    if len(names) <= _MOST_NAMED:
        right.legend(fontsize=8)
    return save_figure(figure, path)


# ---- over labels, blocks, runs -------------------------------------------------------------------


def label_bars(
    path: str | Path,
    labels: Sequence[str],
    series: Mapping[str, Sequence[float]],
    title: str,
    errors: Mapping[str, Sequence[float]] | None = None,
    positives: Sequence[int | None] | None = None,
) -> Path:
    """Draw horizontal bars for each of C labels, one colour per series; NaN leaves a gap.

    The first series sorts the labels. Values are at most 1, and cut off at -1 (R²). ``errors`` are
    standard deviations; ``positives``, the tracks of each label, stand beside its name.
    """
    values = {name: np.asarray(own, float) for name, own in series.items()}
    order = np.argsort(np.nan_to_num(next(iter(values.values())), nan=-np.inf))
    ticks = [drawable(label) for label in labels]
    for i, count in enumerate(positives or ()):
        ticks[i] += f" ({count or 'no positives'})" if count is not None else ""
    height, places = 0.8 / len(values), np.arange(len(labels))
    figure = Figure(figsize=(8, 1.5 + 0.12 * len(labels) * (1 + len(values))))
    axes = figure.subplots()
    for i, (name, own) in enumerate(values.items()):
        of_series = (errors or {}).get(name)
        spread = None if of_series is None else np.asarray(of_series, float)[order]
        axes.barh(places + 0.4 - height * (i + 0.5), own[order], height, xerr=spread, label=name)
    axes.set_yticks(places, [ticks[i] for i in order])
    axes.set_xlim(_lowest(*np.concatenate(list(values.values()))), 1)
    axes.set_title(title)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="lower right")
    return save_figure(figure, path)


def heat_map(
    path: str | Path,
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    *,
    numbers: str = "{:.3f}",
    row_name: str = "",
    column_name: str = "",
) -> Path:
    """Draw a table [R, C] as colours, with numbers where there is room; NaN stays white."""
    values = np.asarray(values, dtype=float)
    n_rows, n_columns = values.shape
    # Large tables get smaller cells, so that the figure still fits a screen.
    wide, high = min(0.6, _LARGEST / n_columns), min(0.36, _LARGEST / n_rows)
    figure = Figure(figsize=(2.5 + wide * n_columns, 1.5 + high * n_rows))
    axes = figure.subplots()
    image = axes.imshow(np.ma.masked_invalid(values), aspect="auto", cmap="viridis")
    columns, rows = list(map(drawable, columns)), list(map(drawable, rows))
    upright = max(map(len, columns)) * 0.09 > wide  # inches of a letter, and of a cell
    size = min(10, 72 * wide)
    axes.set_xticks(range(n_columns), columns, rotation=90 if upright else 0, fontsize=size)
    axes.set_yticks(range(n_rows), rows, fontsize=min(10, 72 * high))
    axes.set_xlabel(column_name)
    axes.set_ylabel(row_name)
    axes.set_title(drawable(title, LONGEST_TITLE))
    finite = np.isfinite(values)
    if max(n_rows, n_columns) <= 24 and finite.any():
        middle = (values[finite].min() + values[finite].max()) / 2
        for i, j in np.argwhere(finite):
            colour = "black" if values[i, j] > middle else "white"
            number = numbers.format(values[i, j])
            axes.text(j, i, number, ha="center", va="center", fontsize=8, color=colour)
    figure.colorbar(image, ax=axes)
    return save_figure(figure, path)


def block_curves(
    path: str | Path,
    blocks: Sequence[int],
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    title: str,
    levels: Mapping[str, float],
) -> Path:
    """Draw mean and deviation of each series over the blocks; NaN leaves a gap."""
    figure = Figure(figsize=(8, 4.5))
    axes = figure.subplots()
    for name, own in series.items():
        means, deviations = np.asarray(own, float)
        (line,) = axes.plot(blocks, means, marker="o", ms=3, label=name)
        band, colour = (means - deviations, means + deviations), line.get_color()
        axes.fill_between(blocks, *band, alpha=0.15, color=colour, lw=0)
    _levels(axes, levels)
    _count_along_x(axes, "block")
    axes.set_title(title)
    axes.legend(fontsize=8)
    return save_figure(figure, path)


def intervals(
    path: str | Path,
    names: Sequence[str],
    figures: Mapping[str, Sequence[Mapping[str, float]]],
    title: str,
) -> Path:
    """Draw ``value``, ``low`` and ``high`` of each name, one panel per metric."""
    figure = Figure((4.5 * len(figures) + 2, 1.6 + 0.4 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(figures), sharey=True, squeeze=False)[0]
    for axes, (name, own) in zip(panels, figures.items(), strict=True):
        for place, one in enumerate(own):
            axes.plot([one["low"], one["high"]], [place, place], lw=2, color=f"C{place % 10}")
            axes.plot([one["value"]], [place], "o", color=f"C{place % 10}")
        axes.set_title(name)
        axes.grid(alpha=0.3, axis="x")
    panels[0].set_yticks(range(len(names)), list(map(drawable, names)))
    panels[0].set_ylim(len(names) - 0.5, -0.5)  # the first one above
    figure.suptitle(title)
    return save_figure(figure, path)
