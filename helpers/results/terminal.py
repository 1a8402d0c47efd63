"""A track's predictions as a table in a terminal."""

from collections.abc import Sequence
from itertools import pairwise, zip_longest
from typing import Any

from tqdm.utils import disp_len, disp_trim

from maest.helpers.names import printable
from maest.helpers.results.predictions import NO_TAG, output_name

_LABELS_A_PATCH = 3
_PATCHES = 60  # rows
_BAR = 20  # characters
_WHOLE_SECONDS = 2.0  # patches that start closer together are shown with tenths of seconds


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
    lines += ["", *(_grid(list(zip(names, values, strict=True))) if names else [f"  {NO_TAG}"])]
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


def _cut(text: str, columns: int) -> str:
    return text if disp_len(text) <= columns else f"{disp_trim(text, max(0, columns - 1))}…"
