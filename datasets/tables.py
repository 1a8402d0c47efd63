"""Read and check a table of tracks: a CSV or TSV file, as spreadsheets write them.

A row holds path, labels, and perhaps a split, or a group (artist, album) to keep in one split.
"""

import math
import ntpath
import posixpath
import re
import shlex
import unicodedata
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from maest.datasets.audio_folder import mel_key
from maest.datasets.groundtruth import check_key
from maest.datasets.mel_store import store_keys
from maest.datasets.table_rows import Rows, bare, read_rows, refusal
from maest.helpers.errors import InputError
from maest.helpers.names import first_few, short_repr

# Names of columns, without case, spaces, hyphens and underscores; the first of each list wins.
RECOGNISED = {
    "path": "path file filename filepath audio audiopath audiofile mp3path track trackpath key",
    "labels": "labels label tags tag genres genre styles style",
    "split": "split set subset fold partition",
    "group": "group groupid artistid trackartistid artist artistname trackartist albumartist "
    "albumid album albumname albumtitle",
}
_NO_LABELS = {name for what in ("path", "split", "group") for name in RECOGNISED[what].split()}
_SPLITS = {"train": "train training", "validation": "validation valid val", "test": "test testing"}
SPLIT_NAMES = {name: split for split, names in _SPLITS.items() for name in names.split()}
_SEPARATORS = ",;|/"  # that may separate labels
_ONE, _FLAGS = {"1", "1.0", "true"}, {"1", "1.0", "true", "0", "0.0", "false", ""}  # in lower case


@dataclass(frozen=True)
class Table:
    """The content of a table of N tracks."""

    path: Path
    # "path", "labels" or "values", "split", "group", and "not used" → names of columns
    columns: dict[str, list[str]]
    keys: list[str]  # [N] paths of the log-mel files, relative to ``base_dir``
    lines: list[int]  # [N] the line in which a row ends, from 1
    labels: list[str]  # names, sorted
    marks: np.ndarray  # int64 [2, K]: a track and a label that it has, sorted and distinct
    amounts: np.ndarray  # float32 [K]: 1; between 0 and 1 of a soft label; NaN of an unknown one
    values: np.ndarray | None  # float64 [N, C]: targets of a regression, in place of labels
    splits: list[str] | None  # [N] "train", "validation" or "test"
    # [N] "" if unknown; a name spelled in several ways (case, spaces) becomes its first spelling
    groups: list[str] | None
    warnings: list[str]  # for the user, before training


def read_table(options: Namespace) -> Table:
    """Read a table of tracks: UTF-8 or UTF-16 text, with the names of the columns in line 1.

    ``options`` are those of ``groundtruth.py build``. Without an option, a column is recognised by
    its name (``RECOGNISED``). A column of labels holds names with a separator between them, or
    only 0, 1 (false, true) and blanks: then its name is the label. With neither named nor
    recognised, all such 0/1 columns are labels, unless named like a path, split or group. Columns
    named by ``labels_column`` may have values between 0 and 1. ``unknown``, texts of cells or None,
    makes them and blanks unknown; without it blanks are 0.

    Keys are paths with ``.mmap`` in place of an audio suffix; the store ``base_dir`` knows whether
    song.mmap is of song.flac or song.mp3. Absolute paths become relative to ``audio_dir``. If no
    path has a slash, backslashes separate folders.

    Raises InputError, naming the line, for a corrupt or ambiguous table.
    """
    if not options.separator:
        raise InputError("is empty", setting="--separator", hint="Give such as ;.")
    if options.values_column and options.labels_column:
        what, hint = "labels and values at once", "Give this or --labels-column."
        raise InputError(what, kind="conflict", setting="--values-column", hint=hint)
    if options.unknown is not None and (options.values_column or options.task == "single-label"):
        what, hint = "only multi-label tracks may have unknown targets", "Leave those rows out."
        raise InputError(what, kind="conflict", setting="--unknown", hint=hint)
    rows = read_rows(options.table)
    columns: dict[str, list[str]] = {}
    for what in ("path", "split", "group"):
        if given := getattr(options, f"{what}_column"):
            columns[what] = rows.named([given], f"--{what}-column")
        elif known := [rows.by_bare[n] for n in RECOGNISED[what].split() if n in rows.by_bare]:
            columns[what] = known[:1]
    if "path" not in columns:
        hint = "Name the column with the tracks' paths: --path-column NAME."
        raise refusal(rows.path, f"no column of paths among {rows.header}", hint, "missing")
    others = [name for name in rows.cells if [name] not in columns.values()]
    if options.ignore_split:
        columns.pop("split", None)

    labels, marks, values = list[str](), np.empty((2, 0), np.int64), None
    amounts, unknown = np.empty(0, np.float32), options.unknown
    unknown = set() if unknown is None else {"", *(text.strip().lower() for text in unknown)}
    if options.values_column:
        columns["values"] = rows.named(options.values_column, "--values-column")
        hint = "Write it with a point for the decimals, or leave the row out."
        numbers = (rows.convert(n, _number, "a number", hint) for n in columns["values"])
        values = np.stack([np.array(column) for column in numbers], axis=1)
    else:
        named = rows.named(options.labels_column, "--labels-column")
        columns["labels"] = named or _label_columns(rows, others, unknown)
        flags = {n: _flags(rows.cells[n], unknown, bool(named)) for n in columns["labels"]}
        labels, marks, amounts = _labels(rows, flags, options.separator, unknown)
    splits = groups = None
    if "split" in columns:
        expected = f"one of {', '.join(SPLIT_NAMES)}"
        hint = "To have the tracks split by group: --ignore-split."
        name = columns["split"][0]
        splits = rows.convert(name, lambda cell: SPLIT_NAMES[cell.lower()], expected, hint)
    if "group" in columns:
        first: dict[str, str] = {}
        groups = [first.setdefault(_fold(name), name) for name in rows.cells[columns["group"][0]]]
    used = set(chain(*columns.values()))
    columns["not used"] = [name for name in rows.cells if name not in used]
    keys = _keys(rows, columns["path"][0], options.audio_dir, options.base_dir)
    return Table(
        rows.path,
        columns,
        keys,
        rows.lines,
        labels,
        marks,
        amounts,
        values,
        splits,
        groups,
        rows.warnings,
    )


class LabelledPaths(NamedTuple):
    """A table of N files with labels of one's own."""

    paths: list[str]  # as written
    labels: list[str]  # [C] names, sorted
    targets: np.ndarray  # bool [N, C]
    warnings: list[str]


def read_labels(path: Path) -> LabelledPaths:
    """Read a table ``path,label[,label…]``: any number of labels in a row, or none.

    A column is one of labels by its name (label, label 2, tags, genre …); without such a name,
    columns of 0 and 1 are; without these, all are. A cell may hold several, with ``;`` between
    them. For the rest, and for what is refused, see :func:`read_table`.
    """
    rows = read_rows(path, ragged=True)
    known = [rows.by_bare[n] for n in RECOGNISED["path"].split() if n in rows.by_bare]
    others = [n for n in rows.cells if bare(n) not in _NO_LABELS and n not in known]
    if not (known and others):
        hint = "Begin it with a line of the columns' names: path,label."
        what = f"no column of {'labels' if known else 'paths'} among {rows.header}"
        raise refusal(path, what, hint, "missing")
    names = RECOGNISED["labels"].split()
    named = [n for n in others if bare(n).rstrip("0123456789") in names]
    flags = {name: _flags(rows.cells[name], set()) for name in named or others}
    if not named:
        flags = {name: own for name, own in flags.items() if own} or flags
    labels, marks, _ = _labels(rows, flags, ";", set(), "put ; in its place")
    targets = np.zeros((len(rows.lines), len(labels)), bool)
    targets[tuple(marks)] = True
    return LabelledPaths(list(rows.cells[known[0]]), labels, targets, rows.warnings)


def _fold(text: str) -> str:
    """Remove differences of case, spaces and Unicode's ways to write accents."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def some(names: Iterable[str]) -> str:
    return first_few(map(short_repr, names))


def _number(cell: str) -> float:
    if not abs(value := float(cell)) < 3e38:  # finite as float32, and not NaN
        raise ValueError(cell)
    return value


def _flags(cells: Iterable[str], unknown: set[str], soft: bool = False) -> dict[str, float]:
    """Cell → target of a column that is one label: 0 or 1, NaN, if ``soft`` between; else {}."""
    targets, distinct = dict[str, float](), set(cells)
    for cell in distinct:
        if cell.lower() in unknown:
            targets[cell] = math.nan
        elif cell.lower() in _FLAGS:
            targets[cell] = float(cell.lower() in _ONE)
        elif soft and re.fullmatch(r"0?\.\d+|\d(\.\d+)?e-\d+", cell.lower()):
            targets[cell] = float(cell)
        else:
            return {}
    return {} if distinct == {""} else targets


def _label_columns(rows: Rows, others: list[str], unknown: set[str]) -> list[str]:
    """Columns of labels by default: the recognised one, or all of 0 and 1."""
    if known := [name for name in others if bare(name) in RECOGNISED["labels"].split()]:
        if len(known) == 1:
            return known
        hint = f"Say which are: --labels-column {shlex.join(known)}."
        raise refusal(rows.path, f"{', '.join(known)} may all be labels", hint, "conflict")
    flags = [n for n in others if bare(n) not in _NO_LABELS and _flags(rows.cells[n], unknown)]
    if not flags:
        hint = "Name the one with the labels, or those with 0 and 1: --labels-column."
        raise refusal(rows.path, f"no column of labels among {rows.header}", hint, "missing")
    rows.warnings.append(
        f"no column of labels was named: {len(flags)} columns with only 0 and 1 were taken "
        f"({some(flags)}). To take others: --labels-column NAME ..."
    )
    return flags


def _labels(
    rows: Rows,
    columns: dict[str, dict[str, float]],
    separator: str,
    unknown: set[str],
    remedy: str = "",
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names of labels, marks [2, K] and amounts [K]; ``columns`` have their :func:`_flags`.

    ``remedy`` is against another separator, by default the option for it.
    """
    flags = {name: targets for name, targets in columns.items() if targets}
    texts = [rows.cells[name] for name in columns if name not in flags]
    taken = unknown or {""}
    blank = {n: sum(rows.cells[n].count(c) for c in own if c.lower() in taken)
             for n, own in flags.items()}  # fmt: skip
    if blank := {name: count for name, count in blank.items() if count}:
        text = f"{sum(blank.values())} {'cells' if unknown else 'blank cells'} were taken as "
        text += f"{'unknown' if unknown else '0'}, in columns {some(blank)}"
        rows.warnings.append(text)
    distinct = set().union(*texts)
    parts = {cell: {part.strip() for part in cell.split(separator)} - {""} for cell in distinct}
    written = set[str]().union(*parts.values())
    names = sorted(written | flags.keys())
    number, size = {name: i for i, name in enumerate(names)}, max(1, len(names))
    at = (
        i * size + number[n] for cells in texts for i, cell in enumerate(cells) for n in parts[cell]
    )
    marks = [np.fromiter(at, np.int64)]
    amounts = [np.ones(len(marks[0]), np.float32)]
    for name, targets in flags.items():
        cells = rows.cells[name]
        column = np.fromiter(map(targets.__getitem__, cells), np.float32, len(cells))
        marks.append(np.flatnonzero(column) * size + number[name])
        amounts.append(column[column != 0])

    for other in _SEPARATORS if not any(separator in c for c in distinct) else "":
        if whole := sorted(name for name in written if other in name):
            rows.warnings.append(
                f"{len(whole)} of {len(names)} labels have {other!r} in them ({some(whole)}), and "
                f"no cell has {separator!r}. If {other!r} is between labels: "
                f"{remedy or f'--separator {shlex.quote(other)}'}"
            )
    same = defaultdict(list)
    for name in names:
        same[_fold(name)].append(name)
    if alike := [" and ".join(map(short_repr, ways)) for ways in same.values() if len(ways) > 1]:
        rows.warnings.append(
            f"{len(alike)} labels are written in several ways, each of which is a label: "
            f"{first_few(alike)}"
        )
    # Of a label that is named in a cell too, the first mark counts: that of the name.
    places, first = np.unique(np.concatenate(marks), return_index=True)
    return names, np.stack(np.divmod(places, size)), np.concatenate(amounts)[first]


def _keys(
    rows: Rows, column: str, audio_dir: str | Path | None, base_dir: str | Path | None
) -> list[str]:
    names = rows.cells[column]
    from_windows = not any("/" in name for name in names)

    def relative(name: str) -> str:
        name = name.replace("\\", "/") if from_windows else name
        if audio_dir is None or not re.match("/|[A-Za-z]:/", name):
            return check_key(name)
        if re.match(r"[A-Za-z]:[\\/]", str(audio_dir)):
            return check_key(ntpath.relpath(name, audio_dir).replace("\\", "/"))
        return check_key(posixpath.relpath(name, audio_dir))

    expected = f"the path of a file below {audio_dir or 'a folder'}"
    hint = "Give relative paths, or the folder that they are below: --audio-dir DIR."
    files = rows.convert(column, relative, expected, hint)
    keys = store_keys(base_dir, files) if base_dir else [mel_key(name) for name in files]
    seen: dict[str, int] = {}
    for i, key in enumerate(keys):
        # A key stands for its log-mel file without the suffix too.
        stem = key.removesuffix(".mmap")
        if (before := seen.setdefault(stem, i)) != i:
            what = f"path {short_repr(names[i])}: line {rows.lines[before]} has the same log-mel "
            what += f"file, {stem + '.mmap'!r} (of {short_repr(names[before])})"
            hint = "Join the rows, rename one of the files, or give --base-dir MELS."
            raise refusal(rows.path, what, hint, "conflict", rows.lines[i])
    return keys
