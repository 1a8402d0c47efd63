"""Plots of activations over time, above the track's log-mel."""

import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from maest.helpers.audio.mel import N_MELS, slaney_filter_bank
from maest.helpers.reports import plots
from maest.helpers.results.tracks import TrackResult

_HERTZ = (125, 500, 1000, 2000, 4000, 8000)  # marked on the mel axis
# Distances of marks on the time axis, in seconds
_TIME_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400)
_MOST_TIMES = 12


def activation_plot(
    path: Path, result: TrackResult, labels: Mapping[int, str], name: str = "activation"
) -> Path:
    """Draw activations of labels over time above the track's log-mel; return the file's path.

    ``labels``, number → text, are drawn from the top row down. Overlapping patches meet halfway
    between their centres, and gaps stay white. Colours of ``name`` "activation" run from 0 to 1, so
    that tracks compare; those of "value", from the lowest to the highest.
    """
    assert result.patch_activations is not None
    assert result.picture is not None
    rows, seconds = len(labels), result.seconds
    heights = 0.4 + 0.24 * max(rows, 3), 2.4  # inches, about
    figure = Figure(figsize=(11, sum(heights) + 0.8), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=heights)
    edges, columns = patch_columns(result.times, result.patch_activations[:, list(labels)])
    least, most = 0.0, 1.0
    if name != "activation":
        least, most = np.nanmin(columns), np.nanmax(columns)
        most = most if most > least else least + 1  # equal values span no range of colours
    lines, colours = np.arange(rows + 1) - 0.5, {"cmap": "magma_r", "vmin": least, "vmax": most}
    heat = upper.pcolorfast(edges, lines, columns.T, **colours)
    upper.set_yticks(range(rows), [plots.drawable(label) for label in labels.values()])
    upper.set_ylim(rows - 0.5, -0.5)  # the first label on top
    upper.tick_params(axis="y", length=0)
    for between in lines[1:-1]:
        upper.axhline(between, color="white", linewidth=1)
    title = " – ".join((result.key, *result.warnings))
    upper.set_title(plots.drawable(title, plots.LONGEST_TITLE))
    style = {"cmap": "magma", "aspect": "auto", "interpolation": "antialiased", "origin": "lower"}
    extent = 0, seconds, -0.5, N_MELS - 0.5
    mel = lower.imshow(np.asarray(result.picture, np.float32), extent=extent, **style)
    hertz = [f"{hertz}" if hertz < 1000 else f"{hertz // 1000}k" for hertz in _HERTZ]
    lower.set_yticks(np.interp(_HERTZ, _band_centres(), range(N_MELS)), hertz)
    lower.set_ylabel("mel bands (Hz)")
    _mark_times(lower, max(seconds, edges[-1]))
    images = (heat, upper, name, heights[0]), (mel, lower, "log mel power", heights[1])
    for image, axes, label, height in images:
        figure.colorbar(image, ax=axes, label=label, pad=0.01, fraction=0.05, aspect=height / 0.14)
    return plots.save_figure(figure, path)


def patch_columns(times: np.ndarray, activations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return column edges [n + 1] in seconds and float32 values [n, L], NaN in gaps."""
    starts, centres, ends = times.T
    # The meeting point must lie in both patches: a last patch may be so short that halfway is not.
    halfway = (centres[:-1] + centres[1:]) / 2
    meet = np.clip(halfway, starts[1:], np.maximum(ends[:-1], starts[1:]))
    first, last = np.append(starts[0], meet), np.append(np.minimum(ends[:-1], meet), ends[-1])
    # A gap comes before each patch; those of no length are dropped.
    edges = np.stack([np.append(0.0, last[:-1]), first], axis=1).ravel()
    columns = np.stack([np.full_like(activations, np.nan), activations], axis=1)
    kept = np.ones(len(edges), bool)
    kept[::2] = edges[1::2] > edges[::2]
    edges = np.append(edges[kept], max(last[-1], edges[-1] + 1e-3))
    return edges, columns.reshape(len(kept), -1)[kept].astype(np.float32)


def _mark_times(axes: Axes, seconds: float) -> None:
    """Label round times as ``m:ss``, from one hour as ``h:mm``; below 2 s, as numbers."""
    axes.set_xlim(0, seconds)
    if seconds < 2:
        axes.set_xlabel("time (s)")
        return
    step = next((s for s in _TIME_STEPS if seconds / s <= _MOST_TIMES), seconds / _MOST_TIMES)
    marks = np.arange(0, seconds + 1e-6, step)
    unit, form = (60, "h:mm") if seconds >= 3600 else (1, "m:ss")
    pairs = (divmod(mark, 60) for mark in (marks / unit).round().astype(int).tolist())
    axes.set_xticks(marks, [f"{larger}:{smaller:02d}" for larger, smaller in pairs])
    axes.set_xlabel(f"time ({form})")


@functools.cache
def _band_centres() -> np.ndarray:
    """Return the mel bands' centres in Hz, rising."""
    bank = slaney_filter_bank().numpy()  # [frequencies up to 8 kHz, bands]
    return bank.argmax(axis=0) * 8000 / (len(bank) - 1)
