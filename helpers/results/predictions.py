"""Predictions of tracks as JSON, CSV and picture.

A classifier's outputs are activations, 0 to 1 (`Maest.activations`); the ``top`` labels are kept,
highest first. A regression's are values of any size; all targets are kept, in the model's order.
JSON entries and CSV columns are named ``activation`` or ``value`` accordingly.

With thresholds, a track's labels are its tags: those at or above their threshold, ``top`` at most,
and perhaps none. Its patches keep their ``top`` labels.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from maest.helpers.errors import InputError
from maest.helpers.files.atomic import encodable, read_bytes, valid_utf8, write_json, write_rows
from maest.helpers.results.tracks import TrackResult

SEPARATOR = "; "  # between the warnings in a table's cell
NO_TAG = "no tag above its threshold"  # of a track


def output_name(task: str) -> str:
    """Return the name of a task's outputs: "activation", or "value" for regression."""
    return "value" if task == "regression" else "activation"


Thresholds = float | Sequence[float | None]  # of all labels, or by label; None: it is never a tag


def best(
    values: np.ndarray, top: int, task: str, thresholds: Thresholds | None = None
) -> np.ndarray:
    """Return the indices of the ``top`` highest of [C] activations; all targets for regression.

    With thresholds, only of activations at or above theirs.
    """
    if task == "regression":
        return np.arange(len(values))
    order = np.argsort(-values, kind="stable")
    if thresholds is not None:
        lowest = np.asarray(thresholds, np.float64)  # None becomes NaN, which nothing reaches
        order = order[(values >= lowest)[order]]
    return order[:top]


def label_names(labels: Sequence[str] | None, n_classes: int) -> list[str]:
    """Return the labels, or "label 0", … for a model without names."""
    return [f"label {i}" for i in range(n_classes)] if labels is None else list(labels)


# ---- files of a track ----------------------------------------------------------------------------


def write_predictions(
    path_json: Path,
    result: TrackResult,
    labels: Sequence[str] | None,
    top: int,
    task: str = "multi-label",
    thresholds: Thresholds | None = None,
) -> None:
    """Write a track's predictions as JSON, and before it as CSV (``.csv`` for ``.json``).

    The JSON holds ``track`` (the key; bytes that are not UTF-8 as backslash escapes), ``seconds``
    (duration), ``warnings`` ("silent", "channels cancel", "0.1 s only"), ``task``, ``labels`` of
    the whole track (``label`` and ``activation`` of each) and ``patches`` (``start`` and ``end`` in
    seconds, and ``labels``). The CSV has the columns ``scope`` ("track" or "patch"), ``start``,
    ``end``, ``rank`` (from 1), ``label``, ``activation`` and ``warnings`` (in the track's rows).
    A track without a tag has the JSON's ``note`` and, in the CSV, a row of rank 0 that say so.
    """
    assert result.activations is not None
    assert result.patch_activations is not None
    names = [valid_utf8(name) for name in label_names(labels, len(result.activations))]
    output = output_name(task)

    def part(
        start: float, end: float, values: np.ndarray, thresholds: Thresholds | None = None
    ) -> dict[str, Any]:
        chosen = best(values, top, task, thresholds)
        entries = [{"label": names[i], output: round(float(values[i]), 6)} for i in chosen]
        return {"start": start, "end": end, "labels": entries}

    whole = part(0.0, round(result.seconds, 3), result.activations, thresholds)
    spans = zip(result.times.round(3).tolist(), result.patch_activations, strict=True)
    patches = [part(start, end, values) for (start, _, end), values in spans]
    prediction = {
        "track": valid_utf8(result.key),
        "seconds": whole["end"],
        "warnings": list(result.warnings),
        "task": task,
        "labels": whole["labels"],
        **({} if whole["labels"] else {"note": NO_TAG}),
        "patches": patches,
    }
    header = ("scope", "start", "end", "rank", "label", output, "warnings")
    warnings = SEPARATOR.join(result.warnings)
    rows = (
        (scope, f"{p['start']:.3f}", f"{p['end']:.3f}", rank, *cells, why)
        for scope, p, why in (("track", whole, warnings), *(("patch", p, "") for p in patches))
        for rank, cells in enumerate(_cells(p["labels"], output), 1 if p["labels"] else 0)
    )
    write_rows(path_json.with_suffix(".csv"), header, rows)
    write_json(path_json, prediction)


def _cells(entries: list[dict[str, Any]], output: str) -> list[tuple[str, str]]:
    none = [(f"({NO_TAG})", "")]
    return [(entry["label"], f"{entry[output]:.6f}") for entry in entries] or none


def read_predictions(path_json: Path) -> dict[str, Any]:
    """Read the JSON of :func:`write_predictions`; version 0.1 wrote no ``warnings``.

    InputError: the file is missing, unreadable or corrupt.
    """
    content = read_bytes(path_json, missing="Run predict for this track first.")
    try:
        prediction = {"warnings": [], **json.loads(content)}
        output, whole = output_name(prediction["task"]), {"start": 0, "end": prediction["seconds"]}
        for part in ({**prediction, **whole}, *prediction["patches"]):
            float(part["start"]), float(part["end"])
            for entry in part["labels"]:
                str(entry["label"]), float(entry[output])
        str(prediction["track"]), SEPARATOR.join(prediction["warnings"])
    except (ValueError, LookupError, TypeError, AttributeError):
        message, hint = "expected a track's predictions as JSON", "Run predict again."
        raise InputError(message, kind="corrupt", hint=hint, path=path_json) from None
    return prediction


def plot_predictions(
    path: Path,
    result: TrackResult,
    labels: Sequence[str] | None,
    top: int,
    task: str,
    thresholds: Thresholds | None = None,
) -> None:
    """Draw the activations of a track's tags over time, above the log-mel, as PNG.

    Without a tag, those of the best labels.
    """
    from maest.helpers.reports.activation_plot import activation_plot  # imports matplotlib

    assert result.activations is not None
    names = label_names(labels, len(result.activations))
    chosen = best(result.activations, top, task, thresholds)
    chosen = chosen if len(chosen) else best(result.activations, top, task)
    shown = {int(i): names[i] for i in chosen}
    activation_plot(path, result, shown, output_name(task))


# ---- one CSV over a folder -----------------------------------------------------------------------


def write_table(path_csv: Path, folder: Path, keys: Iterable[str], most: int | None = None) -> bool:
    """Write one CSV with a row per track: ``track,seconds,label_1,activation_1,…,warnings``.

    Skips tracks whose ``<key>.predictions.json`` in ``folder`` is missing or corrupt, or has
    another number of labels than the first; with ``most``, which is for tags, has more. Returns
    whether there is any row.
    """

    def readable() -> Iterator[tuple[str, dict[str, Any]]]:
        for key in keys:
            with suppress(InputError, ValueError):  # ValueError: no file can have that name
                yield key, read_predictions(folder / f"{key}.predictions.json")

    tracks = readable()
    first = next(tracks, None)
    output, width = (output_name(first[1]["task"]), len(first[1]["labels"])) if first else ("", 0)
    width = width if most is None or not first else most

    def fits(labels: int) -> bool:
        return labels == width if most is None else labels <= width

    def padded(entries: list[dict[str, Any]]) -> list[str]:
        cells = [cell for pair in _cells(entries, output) for cell in pair]
        return cells + [""] * (2 * width - len(cells))

    columns = (f"{name}_{i}" for i in range(1, width + 1) for name in ("label", output))
    rows = (
        (
            *(encodable(key), f"{track['seconds']:.3f}"),
            *padded(track["labels"]),
            SEPARATOR.join(track["warnings"]),
        )
        for key, track in chain([first] if first else (), tracks)
        if output_name(track["task"]) == output and fits(len(track["labels"]))
    )
    write_rows(path_csv, ("track", "seconds", *columns, "warnings"), rows)
    return first is not None
