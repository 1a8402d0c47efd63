"""Figures as PNG files: curves, bars, maps and intervals."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import MaxNLocator

from maest.helpers.files.atomic import atomic_path
from maest.helpers.reports.metrics import FIGURE_NAMES

Rows = Sequence[Mapping[str, float]]
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


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, atomically, without a window system or a change of backend."""
    for axes in figure.axes:  # "$" in a name is no formula
        for text in (axes.title, *axes.get_xticklabels(), *axes.get_yticklabels()):
            text.set_parse_math(False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120, bbox_inches="tight")
    return path


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


def _panels(
    size: tuple[float, float], *titles: str, count: str = "", **options: Any
) -> tuple[Figure, list[Axes]]:
    """Return a figure and its panels, side by side; the x axes count what ``count`` names."""
    figure = Figure(figsize=size)
    panels = figure.subplots(1, len(titles), squeeze=False, **options)[0].tolist()
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(drawable(title, LONGEST_TITLE))
        axes.grid(axis="both" if count else "x", alpha=0.3)
        axes.set_axisbelow(True)
        if count:
            axes.set_xlabel(count)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure, panels


def _levels(axes: Axes, levels: Mapping[str, float]) -> None:
    for (name, level), style in zip(levels.items(), ("--", ":", "-."), strict=False):
        axes.axhline(level, color="grey", linestyle=style, label=name)


def _lowest(*values: float) -> float:
    """Return where an axis up to 1 begins: 0, or lower for negative values (R²)."""
    return max(_LOWEST, 1.1 * float(np.nanmin([0.0, *values])))


def learning_curve(path: Path, epochs: Rows, lines: Mapping[str, float]) -> Path:
    """Draw loss and validation metrics over epochs.

    ``epochs`` are rows of a `History`; ``lines`` are levels of the first metric.
    """
    monitor = next((m for m in _PANELS if any(f"val_{m}" in row for row in epochs)), "ap")
    loss, validation, names = _PANELS[monitor]
    figure, (left, right) = _panels((11, 4), loss, validation, count="epoch")
    losses = {"train_loss": "training", "val_loss": "validation"}
    shown = {f"val_{name}": FIGURE_NAMES[name] for name in names}
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
    path: Path,
    histories: Sequence[Rows],
    monitor: str,
    best_epochs: Sequence[int],
    names: Sequence[str],
) -> Path:
    """Draw training loss and a validation metric over epochs, one line per seed.

    ``histories`` hold rows of ``epoch`` (from 1), ``train_loss`` and ``val_<monitor>`` per seed.
    """
    kept = f"validation, {FIGURE_NAMES[monitor]}; a dot: the epoch that is kept"
    figure, (left, right) = _panels((11, 4), "training loss", kept, count="epoch")
    for rows, best, name in zip(histories, best_epochs, names, strict=True):
        epochs = [row["epoch"] for row in rows]
        left.plot(epochs, [row["train_loss"] for row in rows], lw=1)
        values = [row[f"val_{monitor}"] for row in rows]
        (line,) = right.plot(epochs, values, lw=1, label=name)
        right.plot([best], [values[epochs.index(best)]], "o", ms=5, color=line.get_color())
    if len(names) <= _MOST_NAMED:
        right.legend(fontsize=8)
    return save_figure(figure, path)


def label_bars(
    path: Path,
    labels: Sequence[str],
    series: Mapping[str, Sequence[float]],
    title: str,
    errors: Mapping[str, Sequence[float]] | None = None,
    positives: Sequence[int | None] = (),
) -> Path:
    """Draw horizontal bars for each of C labels, one colour per series; NaN leaves a gap.

    The first series sorts the labels. Values are at most 1, and cut off at -1 (R²). ``errors`` are
    standard deviations; ``positives``, the tracks of each label, stand beside its name.
    """
    values = np.array(list(series.values()), float)  # [series, C]
    order = np.argsort(np.nan_to_num(values[0], nan=-np.inf))
    ticks = [drawable(label) for label in labels]
    for i, count in enumerate(positives):
        ticks[i] += f" ({count or 'no positives'})" if count is not None else ""
    height, places = 0.8 / len(series), np.arange(len(labels))
    figure, (axes,) = _panels((8, 1.5 + 0.12 * len(labels) * (1 + len(series))), title)
    for i, name in enumerate(series):
        spread = np.array(errors[name])[order] if errors else None
        at = places + 0.4 - height * (i + 0.5)
        axes.barh(at, values[i, order], height, xerr=spread, label=name)
    axes.set_yticks(places, [ticks[i] for i in order])
    axes.set_xlim(_lowest(*values.ravel()), 1)
    axes.legend(loc="lower right")
    return save_figure(figure, path)


def heat_map(
    path: Path,
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
    table, columns = np.ma.masked_invalid(values), list(map(drawable, columns))
    n_rows, n_columns = table.shape
    # Large tables get smaller cells, so that the figure still fits a screen.
    wide, high = min(0.6, _LARGEST / n_columns), min(0.36, _LARGEST / n_rows)
    figure, (axes,) = _panels((2.5 + wide * n_columns, 1.5 + high * n_rows), title)
    axes.grid(False)
    figure.colorbar(axes.imshow(table, aspect="auto", cmap="viridis"), ax=axes)
    turned = 90 if max(map(len, columns)) * 0.09 > wide else 0  # inches of a letter, and of a cell
    axes.set_xticks(range(n_columns), columns, rotation=turned, fontsize=min(10, 72 * wide))
    axes.set_yticks(range(n_rows), list(map(drawable, rows)), fontsize=min(10, 72 * high))
    axes.set(xlabel=column_name, ylabel=row_name)
    if max(n_rows, n_columns) <= 24 and table.count():
        middle = (table.min() + table.max()) / 2
        for i, j in np.argwhere(~np.ma.getmaskarray(table)):
            colour = "black" if table[i, j] > middle else "white"
            number = numbers.format(table[i, j])
            axes.text(j, i, number, ha="center", va="center", fontsize=8, color=colour)
    return save_figure(figure, path)


def block_curves(
    path: Path,
    blocks: Sequence[int],
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    title: str,
    levels: Mapping[str, float],
) -> Path:
    """Draw mean and deviation of each series over the blocks; NaN leaves a gap."""
    figure, (axes,) = _panels((8, 4.5), title, count="block")
    for name, pair in series.items():
        means, deviations = np.asarray(pair, float)
        (line,) = axes.plot(blocks, means, marker="o", ms=3, label=name)
        band = means - deviations, means + deviations
        axes.fill_between(blocks, *band, alpha=0.15, color=line.get_color(), lw=0)
    _levels(axes, levels)
    axes.legend(fontsize=8)
    return save_figure(figure, path)


def intervals(path: Path, names: Sequence[str], figures: Mapping[str, Rows], title: str) -> Path:
    """Draw ``value``, ``low`` and ``high`` of each name, one panel per metric."""
    size = 4.5 * len(figures) + 2, 1.6 + 0.4 * len(names)
    figure, panels = _panels(size, *figures, sharey=True)
    for axes, rows in zip(panels, figures.values(), strict=True):
        for place, row in enumerate(rows):
            colour = f"C{place % 10}"
            axes.plot([row["low"], row["high"]], [place, place], lw=2, color=colour)
            axes.plot([row["value"]], [place], "o", color=colour)
    panels[0].set_yticks(range(len(names)), list(map(drawable, names)))
    panels[0].set_ylim(len(names) - 0.5, -0.5)  # the first one above
    figure.suptitle(title)
    figure.set_layout_engine("constrained")
    return save_figure(figure, path)
