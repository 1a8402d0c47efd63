"""Predictions of tracks as JSON, CSV and picture, and as a table in a terminal.

A classifier's figures are activations, 0 to 1 (`Maest.activations`); the ``top`` labels are kept,
highest first. A regression's are values of any size; all targets are kept, in the model's order.
JSON entries and CSV columns are named ``activation`` or ``value`` accordingly.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from maest.helpers.errors import InputError, Kind
from maest.helpers.files.atomic import encodable, valid_utf8, write_json, write_rows
from maest.helpers.results.tracks import TrackResult

SEPARATOR = "; "  # between the warnings in a table's cell
_LABELS_A_PATCH = 3  # in the table
_PATCHES = 60  # rows of the table
_BAR = 20  # characters
_WHOLE_SECONDS = 2.0  # patches that start closer together are shown with tenths of seconds


def figure_name(task: str) -> str:
    """Return the name of a task's outputs: "activation", or "value" for regression."""
    return "value" if task == "regression" else "activation"


def best(values: np.ndarray, top: int, task: str) -> np.ndarray:
    """Return the indices of the ``top`` highest of [C] activations; all targets for regression."""
    if task == "regression":
        return np.arange(len(values))
    return np.argsort(-values, kind="stable")[:top]


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
) -> None:
    """Write a track's predictions as JSON, and before it as CSV (``.csv`` for ``.json``).

    The JSON holds ``track`` (the key; bytes that are not UTF-8 as backslash escapes), ``seconds``
    (duration), ``warnings`` ("silent", "channels cancel", "0.1 s only"), ``task``, ``labels`` of
    the whole track (``label`` and ``activation`` of each) and ``patches`` (``start`` and ``end`` in
    seconds, and ``labels``). The CSV has the columns ``scope`` ("track" or "patch"), ``start``,
    ``end``, ``rank`` (from 1), ``label``, ``activation`` and ``warnings`` (in the track's rows).
    """
    assert result.activations is not None
    assert result.patch_activations is not None
    names = [valid_utf8(name) for name in label_names(labels, len(result.activations))]
    figure = figure_name(task)

    def entries(values: np.ndarray) -> list[dict[str, Any]]:
        chosen = best(values, top, task)
        return [{"label": names[i], figure: round(float(values[i]), 6)} for i in chosen]

    spans = zip(result.times.round(3).tolist(), result.patch_activations, strict=True)
    patches = [
        {"start": start, "end": end, "labels": entries(values)} for (start, _, end), values in spans
    ]
    prediction: dict[str, Any] = {
        "track": valid_utf8(result.key),
        "seconds": round(result.seconds, 3),
        "warnings": list(result.warnings),
        "task": task,
        "labels": entries(result.activations),
        "patches": patches,
    }
    whole = {"start": 0.0, "end": prediction["seconds"], "labels": prediction["labels"]}
    parts = [("track", whole, SEPARATOR.join(result.warnings))]
    parts += [("patch", patch, "") for patch in patches]
    rows = (
        (scope, f"{part['start']:.3f}", f"{part['end']:.3f}", rank, *_cells(entry, figure), warned)
        for scope, part, warned in parts
        for rank, entry in enumerate(part["labels"], 1)
    )
    header = ("scope", "start", "end", "rank", "label", figure, "warnings")
    write_rows(path_json.with_suffix(".csv"), header, rows)
    write_json(path_json, prediction)


def _cells(entry: dict[str, Any], figure: str) -> tuple[str, str]:
    return entry["label"], f"{entry[figure]:.6f}"


def read_predictions(path_json: Path) -> dict[str, Any]:
    """Read the JSON of :func:`write_predictions`; version 0.1 wrote no ``warnings``.

    InputError: the file is missing, unreadable or corrupt.
    """
    try:
        prediction = {"warnings": [], **json.loads(path_json.read_text("utf-8"))}
        figure, whole = figure_name(prediction["task"]), {"start": 0, "end": prediction["seconds"]}
        for part in ({**prediction, **whole}, *prediction["patches"]):
            float(part["start"]), float(part["end"])
            for entry in part["labels"]:
                str(entry["label"]), float(entry[figure])
        str(prediction["track"]), SEPARATOR.join(prediction["warnings"])
    except OSError as error:
        kind: Kind = "missing" if isinstance(error, FileNotFoundError) else "access"
        message, hint = f"cannot be read ({error.strerror})", "Run predict for this track first."
        raise InputError(message, kind=kind, hint=hint, path=path_json) from None
    except (ValueError, LookupError, TypeError, AttributeError):
        message, hint = "expected a track's predictions as JSON", "Run predict again."
        raise InputError(message, kind="corrupt", hint=hint, path=path_json) from None
    return prediction


def plot_predictions(
    path: Path, result: TrackResult, labels: Sequence[str] | None, top: int, task: str
) -> None:
    """Draw the activations of the best labels over time, above the log-mel, as PNG."""
    from maest.helpers.reports.activation_plot import activation_plot  # imports matplotlib

    assert result.activations is not None
    assert result.patch_activations is not None
    assert result.picture is not None
    names, shown = label_names(labels, len(result.activations)), best(result.activations, top, task)
    activation_plot(
        path,
        result.picture,
        result.times,
        result.patch_activations[:, shown],
        [names[i] for i in shown],
        result.seconds,
        " – ".join((result.key, *result.warnings)),
        figure_name(task),
    )


# ---- one CSV over a folder -----------------------------------------------------------------------


def write_table(path_csv: Path, folder: Path, keys: Iterable[str]) -> bool:
    """Write one CSV with a row per track: ``track,seconds,label_1,activation_1,…,warnings``.

    Skips tracks whose ``<key>.predictions.json`` in ``folder`` is missing or corrupt, or has
    another number of labels than the first. Returns whether there is any row.
    """

    def readable() -> Iterator[tuple[str, dict[str, Any]]]:
        for key in keys:
            with suppress(InputError, ValueError):  # ValueError: no file can have that name
                yield key, read_predictions(folder / f"{key}.predictions.json")

    tracks = readable()
    first = next(tracks, None)
    if first is None:
        write_rows(path_csv, ("track", "seconds", "warnings"), ())
        return False
    figure, width = figure_name(first[1]["task"]), len(first[1]["labels"])
    names = chain.from_iterable((f"label_{i}", f"{figure}_{i}") for i in range(1, width + 1))
    rows = (
        (
            *(encodable(key), f"{track['seconds']:.3f}"),
            *chain.from_iterable(_cells(entry, figure) for entry in track["labels"]),
            SEPARATOR.join(track["warnings"]),
        )
        for key, track in chain([first], tracks)
        if (figure_name(track["task"]), len(track["labels"])) == (figure, width)
    )
    write_rows(path_csv, ("track", "seconds", *names, "warnings"), rows)
    return True


# ---- in a terminal -------------------------------------------------------------------------------


def table(prediction: dict[str, Any], width: int = 80) -> str:
    """Return a track's predictions as text: warnings, top labels, first labels per patch.

    ``prediction`` is that of :func:`read_predictions`; lines have at most ``width``, or 40,
    columns.
    """
    width, figure = max(width, 40), figure_name(prediction["task"])
    head = [f"{_clock(prediction['seconds'])}  {printable(prediction['track'])}"]
    head += [f"  {printable(why)}: its labels mean little" for why in prediction["warnings"]]
    track = _track_lines(prediction["labels"], figure, width)
    patches = _patch_lines(prediction["patches"], figure, width)
    lines = chain((_cut(line, width) for line in head), [""], track, [""], patches)
    return "\n".join(line.rstrip() for line in lines)


def _track_lines(entries: list[dict[str, Any]], figure: str, width: int) -> Iterator[str]:
    names = [printable(entry["label"]) for entry in entries]
    room = width - (31 if figure == "activation" else 15)
    longest = min(room, max(map(_columns, names), default=0))
    for name, entry in zip(names, entries, strict=True):
        if figure == "activation":
            filled = round(_BAR * min(max(entry[figure], 0), 1))
            number = f"{entry[figure]:5.3f}  {'█' * filled}{'·' * (_BAR - filled)}"
        else:
            number = f"{entry[figure]:>11.5g}"
        yield f"  {_fill(name, longest)}  {number}"


def _patch_lines(patches: list[dict[str, Any]], figure: str, width: int) -> Iterator[str]:
    steps = [later["start"] - sooner["start"] for sooner, later in pairwise(patches)]
    tenths = min(steps, default=_WHOLE_SECONDS) < _WHOLE_SECONDS
    shown = patches[:_PATCHES]
    spans = [f"{_clock(p['start'], tenths)}–{_clock(p['end'], tenths)}" for p in shown]
    lead = max(map(len, spans), default=0)
    most = (width - lead - 2) // _LABELS_A_PATCH - 2  # columns for a label and its figure

    def text(entry: dict[str, Any]) -> str:
        number = f"{entry[figure]:.2f}" if figure == "activation" else f"{entry[figure]:.3g}"
        name, room = printable(entry["label"]), most - len(number) - 1
        if _columns(name) > room:  # of Discogs' "genre---style", the style
            name = name.rpartition("---")[2]
        return _cut(f"{_cut(name, room)} {number}", most)

    rows = [[text(entry) for entry in patch["labels"][:_LABELS_A_PATCH]] for patch in shown]
    widest = max((_columns(cell) for row in rows for cell in row), default=0)
    for row, span in zip(rows, spans, strict=True):
        yield f"  {span:>{lead}}  {'  '.join(_fill(cell, widest) for cell in row)}"
    if len(patches) > _PATCHES:
        yield _cut(f"  … and {len(patches) - _PATCHES} more patches: see the CSV", width)


def _clock(seconds: float, tenths: bool = False) -> str:
    """Return ``m:ss``, or ``h:mm:ss`` from an hour on."""
    seconds = round(seconds, 1 if tenths else 0)
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    tail = f"{rest:04.1f}" if tenths else f"{rest:02.0f}"
    return f"{hours}:{minutes:02d}:{tail}" if hours else f"{minutes}:{tail}"


def printable(text: str) -> str:
    """Return the text with escapes for characters that move a terminal's cursor or are no text."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _columns(text: str) -> int:
    """Count the terminal columns of a text: two for an ideograph, none for an accent."""
    return sum(
        0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )


def _cut(text: str, columns: int) -> str:
    if _columns(text) <= columns:
        return text
    while text and _columns(text) >= columns:
        text = text[:-1]
    return f"{text}…"


def _fill(text: str, columns: int) -> str:
    text = _cut(text, columns)
    return text + " " * (columns - _columns(text))
