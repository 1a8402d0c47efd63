"""Figures as PNG files."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import MaxNLocator

from maest.helpers.files import atomic_path
from maest.helpers.melspectrogram import N_MELS, slaney_filter_bank
from maest.helpers.metrics import FIGURE_NAMES

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
    for axes in figure.axes:  # "$" in a name is no formula
        for text in (axes.title, *axes.get_xticklabels(), *axes.get_yticklabels()):
            text.set_parse_math(False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120, bbox_inches="tight")
    return path


def _count_along_x(axes: Axes, name: str) -> None:
    axes.set_xlabel(name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)


def _levels(axes: Axes, levels: Mapping[str, float]) -> None:
    """Horizontal lines to compare with, by name."""
    for (name, level), style in zip(levels.items(), ("--", ":", "-."), strict=False):
        axes.axhline(level, color="grey", linestyle=style, label=name)


def learning_curve(
    path: str | Path, epochs: Sequence[Mapping[str, float]], lines: Mapping[str, float]
) -> Path:
    """Draw loss and validation metrics over epochs: AP and ROC-AUC, or those of another task.

    Args:
        epochs: a row of metrics for each epoch, as `helpers.history.History` keeps.
        lines: levels to compare the first metric (AP, accuracy or R²) with, by name.
    """
    monitor = next((m for m in _PANELS if any(f"val_{m}" in row for row in epochs)), "ap")
    loss, title, names = _PANELS[monitor]
    figure = Figure(figsize=(11, 4))
    panels = figure.subplots(1, 2)
    shown = {f"val_{name}": FIGURE_NAMES[name] for name in names}
    series = ({"train_loss": "training", "val_loss": "validation"}, shown)
    for axes, columns, heading in zip(panels, series, (loss, title), strict=True):
        for name, label in columns.items():
            values = [row.get(name, np.nan) for row in epochs]
            axes.plot([row["epoch"] for row in epochs], values, marker="o", ms=3, label=label)
        _count_along_x(axes, "epoch")
        axes.set_title(heading)
    first = FIGURE_NAMES[monitor]
    _levels(panels[1], {f"{name} ({first} {level:.3f})": level for name, level in lines.items()})
    values = [row[name] for row in epochs for name in shown if name in row]
    panels[1].set_ylim(_lowest([*values, *lines.values()]), 1)
    for axes in panels:
        axes.legend()
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
    positives: Sequence[int | None] | None = None,
) -> Path:
    """Draw horizontal bars for each label, one colour a series; NaN leaves a gap.

    Args:
        labels: the C label names.
        series: C values up to 1, by the series' name; labels are sorted by the first one. Negative
            values (of R²) are drawn down to -1, and cut off there.
        errors: C standard deviations for some of the series.
        positives: how many tracks have each label; written beside its name.
    """
    counts = positives if positives is not None else [None] * len(labels)
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
    axes.set_yticks(at, [_with_count(labels[i], counts[i]) for i in order])
    axes.set_xlim(_lowest(np.concatenate([np.asarray(v, dtype=float) for v in series.values()])), 1)
    axes.set_title(title)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="lower right")
    return save_figure(figure, path)


def _with_count(label: str, positives: int | None) -> str:
    name = _drawable(label, _LONGEST_LABEL)
    return name if positives is None else f"{name} ({positives or 'no positives'})"


# ---- activations over time -----------------------------------------------------------------------

_LONGEST_TITLE, _LONGEST_LABEL = 100, 40  # characters
_HERTZ = (125, 500, 1000, 2000, 4000, 8000)  # marked on the mel axis
# Distances of marks on the time axis, in seconds
_TIME_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400)
_MOST_TIMES = 12
_MOST_NAMED = 8  # lines in a legend
_LARGEST = 24  # inches of a table's cells


def seed_curves(
    path: str | Path,
    histories: Sequence[Sequence[Mapping[str, float]]],
    monitor: str,
    best_epochs: Sequence[int],
    names: Sequence[str],
) -> Path:
    """Draw loss and a validation figure over epochs, a line a seed; its best epoch is marked.

    Args:
        histories: rows of figures of each seed: ``epoch`` (from 1), ``train_loss``,
            ``val_<monitor>``.
        monitor: the figure in the right panel.
        best_epochs: of each seed, from 1.
        names: of the seeds; a legend has them where they are few.
    """
    figure = Figure(figsize=(11, 4))
    left, right = figure.subplots(1, 2)
    for rows, best, name in zip(histories, best_epochs, names, strict=True):
        epochs = [row["epoch"] for row in rows]
        left.plot(epochs, [row.get("train_loss", np.nan) for row in rows], lw=1)
        values = [row[f"val_{monitor}"] for row in rows]
        (line,) = right.plot(epochs, values, lw=1, label=name)
        at = epochs.index(best)
        right.plot([best], [values[at]], "o", ms=5, color=line.get_color())
    if len(names) <= _MOST_NAMED:
        right.legend(fontsize=8)
    left.set_title("training loss")
    right.set_title(f"validation, {FIGURE_NAMES[monitor]}; a dot: the epoch that is kept")
    _count_along_x(left, "epoch")
    _count_along_x(right, "epoch")
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
    """Draw a table of figures as colours, with the numbers in it where there is room.

    Args:
        values: [R, C]; NaN is left white.
        numbers: how one is written.
    """
    values = np.asarray(values, dtype=float)
    n_rows, n_columns = values.shape
    # Many of them get smaller cells: a picture has a size that can be looked at.
    wide, high = min(0.6, _LARGEST / n_columns), min(0.36, _LARGEST / n_rows)
    figure = Figure(figsize=(2.5 + wide * n_columns, 1.5 + high * n_rows))
    axes = figure.subplots()
    image = axes.imshow(np.ma.masked_invalid(values), aspect="auto", cmap="viridis")
    columns, rows = ([_drawable(str(n), _LONGEST_LABEL) for n in own] for own in (columns, rows))
    upright = max(map(len, columns)) * 0.09 > wide  # inches of a letter, and of a cell
    size = min(10, 72 * wide)
    axes.set_xticks(range(n_columns), columns, rotation=90 if upright else 0, fontsize=size)
    axes.set_yticks(range(n_rows), rows, fontsize=min(10, 72 * high))
    axes.set_xlabel(column_name)
    axes.set_ylabel(row_name)
    axes.set_title(_drawable(title, _LONGEST_TITLE))
    finite = values[np.isfinite(values)]
    if max(n_rows, n_columns) <= 24 and len(finite):
        middle = (finite.min() + finite.max()) / 2
        for (i, j), value in np.ndenumerate(values):
            if np.isfinite(value):
                axes.text(j, i, numbers.format(value), ha="center", va="center", fontsize=8,
                          color="black" if value > middle else "white")  # fmt: skip
    figure.colorbar(image, ax=axes)
    return save_figure(figure, path)


def block_curves(
    path: str | Path,
    blocks: Sequence[int],
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    title: str,
    levels: Mapping[str, float] | None = None,
) -> Path:
    """Draw a figure over the blocks, a line for each choice of tokens, with bands of one deviation.

    Args:
        series: by name, mean and deviation for each block; NaN leaves a gap.
        levels: lines to compare with, by name.
    """
    figure = Figure(figsize=(8, 4.5))
    axes = figure.subplots()
    for name, figures in series.items():
        means, deviations = (np.asarray(values, float) for values in figures)
        (line,) = axes.plot(blocks, means, marker="o", ms=3, label=name)
        axes.fill_between(blocks, means - deviations, means + deviations, alpha=0.15,
                          color=line.get_color(), lw=0)  # fmt: skip
    _levels(axes, levels or {})
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
    """Draw figures with their confidence intervals, a panel each, a line each of what has them.

    Args:
        names: of what is compared, from above.
        figures: name of a figure → its ``value``, ``low`` and ``high`` for each.
    """
    size = (4.5 * len(figures) + 2, 1.6 + 0.4 * len(names))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(figures), sharey=True, squeeze=False)[0]
    places = range(len(names))
    for axes, (name, own) in zip(panels, figures.items(), strict=True):
        for place, one in zip(places, own, strict=True):
            axes.plot([one["low"], one["high"]], [place, place], lw=2, color=f"C{place % 10}")
            axes.plot([one["value"]], [place], "o", color=f"C{place % 10}")
        axes.set_title(name)
        axes.grid(alpha=0.3, axis="x")
    panels[0].set_yticks(places, [_drawable(name, _LONGEST_LABEL) for name in names])
    panels[0].set_ylim(len(names) - 0.5, -0.5)  # the first one above
    figure.suptitle(title)
    return save_figure(figure, path)


def activation_plot(
    path: str | Path,
    picture: np.ndarray,
    times: np.ndarray,
    activations: np.ndarray,
    labels: Sequence[str],
    seconds: float,
    title: str,
    figure_name: str = "activation",
) -> Path:
    """Draw some labels' activations over time, above the track's log-mel; they share the axis.

    A patch is drawn from its start to its end; where patches overlap they meet halfway between
    their centres, so that each is drawn around its own. A gap between patches is left white.

    Args:
        picture: [96, columns] log-mel of the whole track, its columns evenly spread over it.
        times: [P, 3], start, centre and end of each patch in seconds.
        activations: [P, L] of the labels, of each patch.
        labels: L names, from the top row down.
        seconds: duration of the track.
        figure_name: what the colours stand for: "activation", from 0 to 1 whatever the track, so
            that pictures can be compared; or "value", from the lowest to the highest there is.
    """
    rows = len(labels)
    heights = 0.4 + 0.24 * max(rows, 3), 2.4  # inches, about
    figure = Figure(figsize=(11, sum(heights) + 0.8), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=heights)
    edges, columns = _patch_columns(times, activations)
    least, most = 0.0, 1.0
    if figure_name != "activation":
        least, most = np.nanmin(columns), np.nanmax(columns)
        most = most if most > least else least + 1  # all the same: there is no range of colours
    heat = upper.pcolorfast(
        edges, np.arange(rows + 1) - 0.5, columns.T, cmap="magma_r", vmin=least, vmax=most
    )
    upper.set_yticks(range(rows), [_drawable(name, _LONGEST_LABEL) for name in labels])
    upper.set_ylim(rows - 0.5, -0.5)  # the first label on top
    upper.tick_params(axis="y", length=0)
    for between in np.arange(1, rows) - 0.5:
        upper.axhline(between, color="white", linewidth=1)
    mel = lower.imshow(
        np.asarray(picture, dtype=np.float32),
        origin="lower",
        aspect="auto",
        extent=(0, seconds, -0.5, N_MELS - 0.5),
        interpolation="antialiased",
        cmap="magma",
    )
    at = np.interp(_HERTZ, *_band_centres())
    lower.set_yticks(at, [f"{hertz}" if hertz < 1000 else f"{hertz // 1000}k" for hertz in _HERTZ])
    lower.set_ylabel("mel bands (Hz)")
    lower.set_xlabel("time" + (" (h:mm)" if seconds >= 3600 else " (m:ss)"))
    _mark_times(lower, max(seconds, edges[-1]))
    for image, axes, height, name in (
        (heat, upper, heights[0], figure_name),
        (mel, lower, heights[1], "log mel power"),
    ):
        figure.colorbar(image, ax=axes, label=name, pad=0.01, fraction=0.05, aspect=height / 0.14)
    upper.set_title(_drawable(title, _LONGEST_TITLE))
    return save_figure(figure, path)


def _patch_columns(times: np.ndarray, activations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Edges [n + 1] in seconds, and the values [n, L] between them: NaN where no patch is."""
    starts, centres, ends = times.T
    # Where two patches meet: halfway between their centres, but in both of them (a last patch may
    # be so short that its centre is far from the others' rhythm).
    halfway = (centres[:-1] + centres[1:]) / 2
    meet = np.clip(halfway, starts[1:], np.maximum(ends[:-1], starts[1:]))
    first, last = np.append(starts[0], meet), np.append(np.minimum(ends[:-1], meet), ends[-1])
    edges, columns = [], []
    nothing = np.full(activations.shape[1], np.nan)
    before = 0.0
    for start, end, values in zip(first, last, activations, strict=True):
        if start > before:
            edges.append(before)
            columns.append(nothing)
        edges.append(start)
        columns.append(values)
        before = end
    return np.array([*edges, max(before, edges[-1] + 1e-3)]), np.array(columns, np.float32)


def _mark_times(axes: Axes, seconds: float) -> None:
    """Round times along the x axis, as ``m:ss``, or ``h:mm`` from an hour on."""
    axes.set_xlim(0, seconds)
    step = next((s for s in _TIME_STEPS if seconds / s <= _MOST_TIMES), seconds / _MOST_TIMES)
    if seconds < 2:
        axes.set_xlabel("time (s)")
        return
    marks = np.arange(0, seconds + 1e-6, step)
    unit = 60 if seconds >= 3600 else 1
    pairs = (divmod(mark, 60) for mark in (marks / unit).round().astype(int).tolist())
    texts = [f"{larger}:{smaller:02d}" for larger, smaller in pairs]
    axes.set_xticks(marks, texts)


@functools.cache
def _band_centres() -> tuple[np.ndarray, np.ndarray]:
    """Hertz of the mel bands' centres, rising, and the bands' numbers."""
    bank = slaney_filter_bank().numpy()
    return bank.argmax(axis=0) * 8000 / (len(bank) - 1), np.arange(N_MELS)


@functools.cache
def _characters() -> frozenset[int]:
    """The characters that the figures' font has."""
    return frozenset(get_font(findfont(FontProperties())).get_charmap())


def _drawable(text: str, longest: int) -> str:
    """The text in one line, cut at its start; a box for what the font has no sign for.

    Matplotlib would warn of each such character, and cannot draw surrogates at all.
    """
    known = _characters()
    signs = ("\u25a1" if ord(c) not in known or not c.isprintable() else c for c in text)
    drawn = "".join(signs)
    return drawn if len(drawn) <= longest else f"…{drawn[1 - longest :]}"
