"""Predictions of tracks as JSON, CSV and picture, and as a table in a terminal.

A classifier's outputs are activations, 0 to 1 (`Maest.activations`); the ``top`` labels are kept,
highest first. A regression's are values of any size; all targets are kept, in the model's order.
JSON entries and CSV columns are named ``activation`` or ``value`` accordingly.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain, pairwise, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.utils import disp_len, disp_trim

from maest.helpers.errors import InputError
from maest.helpers.files.atomic import encodable, read_bytes, valid_utf8, write_json, write_rows
from maest.helpers.results.tracks import TrackResult

SEPARATOR = "; "  # between the warnings in a table's cell
_LABELS_A_PATCH = 3  # in the table
_PATCHES = 60  # rows of the table
_BAR = 20  # characters
_WHOLE_SECONDS = 2.0  # patches that start closer together are shown with tenths of seconds


def output_name(task: str) -> str:
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
    output = output_name(task)

    def part(start: float, end: float, values: np.ndarray) -> dict[str, Any]:
        entries = [
            {"label": names[i], output: round(float(values[i]), 6)} for i in best(values, top, task)
        ]
        return {"start": start, "end": end, "labels": entries}

    whole = part(0.0, round(result.seconds, 3), result.activations)
    spans = zip(result.times.round(3).tolist(), result.patch_activations, strict=True)
    patches = [part(start, end, values) for (start, _, end), values in spans]
    prediction = {
        "track": valid_utf8(result.key),
        "seconds": whole["end"],
        "warnings": list(result.warnings),
        "task": task,
        "labels": whole["labels"],
        "patches": patches,
    }
    header = ("scope", "start", "end", "rank", "label", output, "warnings")
    warnings = SEPARATOR.join(result.warnings)
    rows = (
        (scope, f"{p['start']:.3f}", f"{p['end']:.3f}", rank, *_cells(entry, output), why)
        for scope, p, why in (("track", whole, warnings), *(("patch", p, "") for p in patches))
        for rank, entry in enumerate(p["labels"], 1)
    )
    write_rows(path_json.with_suffix(".csv"), header, rows)
    write_json(path_json, prediction)


def _cells(entry: dict[str, Any], output: str) -> tuple[str, str]:
    return entry["label"], f"{entry[output]:.6f}"


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
    path: Path, result: TrackResult, labels: Sequence[str] | None, top: int, task: str
) -> None:
    """Draw the activations of the best labels over time, above the log-mel, as PNG."""
    from maest.helpers.reports.activation_plot import activation_plot  # imports matplotlib

    assert result.activations is not None
    names = label_names(labels, len(result.activations))
    shown = {int(i): names[i] for i in best(result.activations, top, task)}
    activation_plot(path, result, shown, output_name(task))


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
    output, width = (output_name(first[1]["task"]), len(first[1]["labels"])) if first else ("", 0)
    columns = (f"{name}_{i}" for i in range(1, width + 1) for name in ("label", output))
    rows = (
        (
            *(encodable(key), f"{track['seconds']:.3f}"),
            *(cell for entry in track["labels"] for cell in _cells(entry, output)),
            SEPARATOR.join(track["warnings"]),
        )
        for key, track in chain([first] if first else (), tracks)
        if (output_name(track["task"]), len(track["labels"])) == (output, width)
    )
    write_rows(path_csv, ("track", "seconds", *columns, "warnings"), rows)
    return first is not None


# ---- in a terminal -------------------------------------------------------------------------------


def table(prediction: dict[str, Any], width: int = 80) -> str:
    """Return a track's predictions as text: warnings, top labels, first labels per patch.

    ``prediction`` is that of :func:`read_predictions`; lines have at most ``width``, or 40,
    columns.
    """
    width, output = max(width, 40), output_name(prediction["task"])
    lines = [printable(f"{_clock(prediction['seconds'])}  {prediction['track']}")]
    lines += [printable(f"  {why}: its labels mean little") for why in prediction["warnings"]]
    names = [_cut(printable(entry["label"]), width - 31) for entry in prediction["labels"]]
    values = [_bar(entry[output], output) for entry in prediction["labels"]]
    lines += ["", *_grid(list(zip(names, values, strict=True)))]
    patches = prediction["patches"]
    lines += ["", *_grid(_patch_rows(patches[:_PATCHES], output, width))]
    if len(patches) > _PATCHES:
        lines.append(f"  … and {len(patches) - _PATCHES} more patches: see the CSV")
    return "\n".join(_cut(line.rstrip(), width) for line in lines)


def _bar(value: float, output: str) -> str:
    if output != "activation":
        return f"{value:>11.5g}"
    filled = round(_BAR * min(max(value, 0), 1))
    return f"{value:5.3f}  {'█' * filled}{'·' * (_BAR - filled)}"


def _patch_rows(patches: list[dict[str, Any]], output: str, width: int) -> list[list[str]]:
    steps = [later["start"] - sooner["start"] for sooner, later in pairwise(patches)]
    tenths = min(steps, default=_WHOLE_SECONDS) < _WHOLE_SECONDS
    spans = [f"{_clock(p['start'], tenths)}–{_clock(p['end'], tenths)}" for p in patches]
    # Columns for a label and its number
    room = (width - max(map(len, spans), default=0) - 2) // _LABELS_A_PATCH - 2

    def cell(entry: dict[str, Any]) -> str:
        number = f" {entry[output]:{'.2f' if output == 'activation' else '.3g'}}"
        name = printable(entry["label"])
        if disp_len(name + number) > room:  # of Discogs' "genre---style", the style
            name = name.rpartition("---")[2]
        return _cut(_cut(name, room - len(number)) + number, room)

    labels = ([cell(entry) for entry in patch["labels"][:_LABELS_A_PATCH]] for patch in patches)
    return [[span, *cells] for span, cells in zip(spans, labels, strict=True)]


def _grid(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return lines whose columns are as wide as their widest cells."""
    widths = [max(map(disp_len, column)) for column in zip_longest(*rows, fillvalue="")]
    padded = (
        (cell + " " * (width - disp_len(cell)) for cell, width in zip(row, widths, strict=False))
        for row in rows
    )
    return [f"  {'  '.join(cells)}" for cells in padded]


def _clock(seconds: float, tenths: bool = False) -> str:
    """Return ``m:ss``, or ``h:mm:ss`` from an hour on."""
    minutes, rest = divmod(round(seconds, 1 if tenths else 0), 60)
    hours, minutes = divmod(int(minutes), 60)
    tail = f"{rest:04.1f}" if tenths else f"{rest:02.0f}"
    return f"{hours}:{minutes:02d}:{tail}" if hours else f"{minutes}:{tail}"


def printable(text: str) -> str:
    """Return the text with escapes for characters that move a terminal's cursor or are no text.

    Accents join their letters, so that each character takes one column, or two.
    """
    text = unicodedata.normalize("NFC", text)
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _cut(text: str, columns: int) -> str:
    return text if disp_len(text) <= columns else f"{disp_trim(text, max(0, columns - 1))}…"
