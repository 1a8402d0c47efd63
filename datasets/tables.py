"""A table of tracks: a CSV or TSV file, read and checked.

A row is a track: its path, its labels, and, if known, the split it belongs to or the group (artist,
album) that must stay on one side. `datasets.build` makes ground truths of it.
"""

from __future__ import annotations

import csv
import io
import math
import os
import posixpath
import re
import shlex
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from datasets.collection import mel_key
from datasets.groundtruth import GroundTruthError, check_key
from helpers.safe_pickle import short_repr

# Names of columns that are recognised, in lower case; the first that a table has is taken.
PATH_COLUMNS = (
    "path", "file", "filename", "file_name", "file_path", "filepath", "audio", "audio_path",
    "mp3_path", "track", "track_path", "key",
)  # fmt: skip
LABEL_COLUMNS = ("labels", "label", "tags", "tag", "genres", "genre", "styles", "style")
SPLIT_COLUMNS = ("split", "set", "subset", "fold", "partition")
GROUP_COLUMNS = ("group", "artist_id", "artist", "album_id", "album")
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}


DELIMITERS = (",", ";", "\t")
_OTHER_SEPARATORS = (",", ";", "|", "/")  # that labels may have been meant to be cut at
_ONE, _ZERO = ("1", "1.0"), ("0", "0.0")  # the latter of each as pandas writes them
_SHOWN = 3  # of a list in a message


class TableError(GroundTruthError):
    """A table that is refused; the message names the file, the line and the reason."""


@dataclass(frozen=True)
class Table:
    """What a table says, a list entry for each row.

    Attributes:
        path: the file.
        columns: what it was read from: "path", "labels" or "values", "split", "group" → names of
            columns.
        unused: columns that were not read.
        keys: paths of the log-mel files, relative to ``base_dir``.
        lines: where the rows end in the file, from 1.
        labels: names of each track's labels; of a table of values none.
        splits: "train", "validation" or "test", or None if the table has no split.
        groups: each track's group, "" where it is not known, or None if the table has none. One
            that is written in several ways (upper and lower case, spaces) has the first of them.
        warnings: what a person should look at before training.
        values: each track's real values (a regression), in the order of their columns; or None.
    """

    path: Path
    columns: dict[str, list[str]]
    unused: list[str]
    keys: list[str]
    lines: list[int]
    labels: list[frozenset[str]]
    splits: list[str] | None
    groups: list[str] | None
    warnings: list[str] = field(default_factory=list)
    values: list[list[float]] | None = None


# ---- reading -------------------------------------------------------------------------------------


def read_table(
    path: str | Path,
    *,
    path_column: str | None = None,
    labels_column: Sequence[str] = (),
    values_column: Sequence[str] = (),
    split_column: str | None = None,
    group_column: str | None = None,
    ignore_split: bool = False,
    separator: str = ";",
    audio_dir: str | Path | None = None,
) -> Table:
    """Read a table of tracks: UTF-8 text, its first line the names of the columns.

    Commas, tabs or semicolons are between the columns: what the first line has most of, a tab
    before all. In a table with tabs, quote signs that do not come in pairs are part of the text.

    Columns that are not named here are recognised by their names (``PATH_COLUMNS`` and so on), in
    upper or lower case. Labels stand in one column, or several, ``separator`` between them. A
    table without such a column has one column a label instead: those whose cells are all 0, 1 or
    blank (which counts as 0). So are several ``labels_column`` if all of them are of this kind.

    Args:
        path: the file.
        path_column, split_column, group_column: names of columns.
        labels_column: names of one column or more; a track's labels are those in any of them.
        values_column: names of columns of real values, for a regression; there are no labels then.
        ignore_split: read no split, whatever columns there are.
        separator: between labels.
        audio_dir: absolute paths below this folder are taken as relative to it.

    Returns:
        the rows. An audio suffix of a path has become ``.mmap``: it names the log-mel file.

    Raises:
        TableError: no such file, no text, no such column, a row of another length, an empty or
            absolute path, two paths that name one log-mel file, the unknown name of a split, or a
            value that is no number.
    """
    path = Path(path)
    if not separator:
        raise TableError("--separator is empty: expected what stands between labels, such as ;")
    warnings: list[str] = []
    header, rows, lines = _read_rows(path, warnings)
    place = {name: i for i, name in enumerate(header)}
    path_name = _find(path, header, path_column, PATH_COLUMNS, "--path-column")
    if path_name is None:
        raise TableError(
            f"{path}: none of the columns ({', '.join(header)}) is named {', '.join(PATH_COLUMNS)}:"
            " name the one with the tracks' paths with --path-column"
        )
    split_name = None
    if not ignore_split:
        split_name = _find(path, header, split_column, SPLIT_COLUMNS, "--split-column")
    group_name = _find(path, header, group_column, GROUP_COLUMNS, "--group-column")
    if values_column and labels_column:
        raise TableError("--values-column and --labels-column: give one of them")
    value_names = [_find(path, header, n, (), "--values-column") for n in values_column]
    label_names = value_names or _find_labels(path, header, labels_column)
    taken = {path_name, split_name, group_name, *label_names}
    labels, values = [frozenset()] * len(rows), None
    matrix = _label_columns(header, rows, label_names) if len(label_names) > 1 else []
    if value_names:
        values = [
            [_value(row[place[name]], path, line, name) for name in value_names]
            for row, line in zip(rows, lines, strict=True)
        ]
    elif label_names and len(matrix) < len(label_names):
        own = [[row[place[name]] for name in label_names] for row in rows]
        labels = [_names(cells, separator) for cells in own]
        warnings += _warn_of_separators(labels, own, separator)
    else:
        label_names = matrix or _label_columns(header, rows, [n for n in header if n not in taken])
        if not label_names:
            raise TableError(
                f"{path}: none of the columns ({', '.join(header)}) is named "
                f"{', '.join(LABEL_COLUMNS)}, and none has only 0 and 1 in it (a column a label). "
                "Name the one with the labels with --labels-column"
            )
        labels = _read_matrix(header, rows, label_names, warnings)
        taken |= set(label_names)
    warnings += _warn_of_spellings(labels)
    columns = {"path": [path_name], "values" if value_names else "labels": label_names}
    splits = groups = None
    if split_name is not None:
        columns["split"] = [split_name]
        splits = [
            _split(row[place[split_name]], path, line, split_name)
            for row, line in zip(rows, lines, strict=True)
        ]
    if group_name is not None:
        columns["group"] = [group_name]
        groups = _one_spelling([row[place[group_name]] for row in rows])
    return Table(
        path=path,
        columns=columns,
        unused=[name for name in header if name not in taken],
        keys=_keys(path, [row[place[path_name]].strip() for row in rows], lines, audio_dir),
        lines=lines,
        labels=labels,
        splits=splits,
        groups=groups,
        warnings=warnings,
        values=values,
    )


def _read_rows(path: Path, warnings: list[str]) -> tuple[list[str], list[list[str]], list[int]]:
    """Names of the columns, rows, and the line that each row ends in; ``warnings`` is added to."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TableError(f"{path}: cannot be read ({error.strerror}). Expected a table") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise TableError(
            f"{path}: line {line}: found the byte {content[error.start]:#04x}, which is no UTF-8. "
            "Save the table as UTF-8 text (not as a spreadsheet)"
        ) from None
    first = next((line for line in text.splitlines() if line.strip()), "")
    if not first:
        raise TableError(f"{path}: the table is empty; expected a line of column names, and rows")
    bare = re.sub(r'"[^"]*"', "", first)
    delimiter = "\t" if "\t" in bare else max(DELIMITERS, key=bare.count)
    if delimiter != "\t" or '"' not in text:
        return _parse(path, text, delimiter)
    try:
        found, error = _parse(path, text, delimiter), None
        if not any("\t" in cell or "\n" in cell for row in found[1] for cell in row):
            return found  # else two quote signs far apart may have swallowed what is between them
    except TableError as refused:
        found, error = None, refused
    try:  # titles such as "Heroes" live, which no one has quoted
        found = _parse(path, text, delimiter, quoting=csv.QUOTE_NONE)
    except TableError:
        if error is not None:
            raise error from None
        return found
    warnings.append("quote signs of the table do not come in pairs: they were taken as text")
    return found


def _parse(
    path: Path, text: str, delimiter: str, quoting: int = csv.QUOTE_MINIMAL
) -> tuple[list[str], list[list[str]], list[int]]:
    content = io.StringIO(text, newline="")
    reader = csv.reader(content, delimiter=delimiter, quoting=quoting, strict=True)
    rows, lines = [], []
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append(row)
                lines.append(reader.line_num)
    except csv.Error as error:
        raise TableError(f"{path}: line {reader.line_num}: {error}. Check its quotes") from None
    header = [name.strip() for name in rows[0]]
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice or "" in header:
        found = f"{twice[0]!r} twice" if twice and twice[0] else "an empty name"
        raise TableError(
            f"{path}: line {lines[0]}: found {found} among the columns' names; expected distinct "
            "names, separated by commas, tabs or semicolons"
        )
    for row, line in zip(rows[1:], lines[1:], strict=True):
        if len(row) != len(header):
            raise TableError(
                f"{path}: line {line}: found {len(row)} cells, expected {len(header)} as in the "
                f"first line. A cell that has the delimiter ({delimiter!r}) in it must stand in "
                "double quotes"
            )
    if len(rows) == 1:
        raise TableError(f"{path}: has column names and no rows; expected a row for each track")
    return header, rows[1:], lines[1:]


def _find(
    path: Path, header: list[str], given: str | None, known: Sequence[str], option: str
) -> str | None:
    if given is not None:
        if given not in header:
            raise TableError(
                f"{path}: no column {given!r} ({option}); the columns are {', '.join(header)}"
            )
        return given
    by_lower = {name.lower(): name for name in reversed(header)}
    return next((by_lower[name] for name in known if name in by_lower), None)


def _find_labels(path: Path, header: list[str], given: Sequence[str]) -> list[str]:
    if given:
        return [_find(path, header, name, (), "--labels-column") for name in given]
    found = [name for name in header if name.lower() in LABEL_COLUMNS]
    if len(found) > 1:
        raise TableError(
            f"{path}: the columns {', '.join(found)} may all be labels. Say which is, or are: "
            f"--labels-column {shlex.join(found)}"
        )
    return found


def _value(cell: str, path: Path, line: int, column: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise TableError(
            f"{path}: line {line}: {short_repr(cell)} in column {column!r}: expected a number, "
            "with a point for the decimals. Correct it, or leave the row out"
        )
    return value


def _names(cells: list[str], separator: str) -> frozenset[str]:
    parts = (part.strip() for cell in cells for part in cell.split(separator))
    return frozenset(filter(None, parts))


def _label_columns(header: list[str], rows: list[list[str]], names: list[str]) -> list[str]:
    """Those of some columns that have nothing but 0, 1 and blanks in them, and one 0 or 1."""
    allowed = {*_ONE, *_ZERO, ""}
    found = []
    for name in names:
        i = header.index(name)
        if all(row[i].strip() in allowed for row in rows) and any(row[i].strip() for row in rows):
            found.append(name)
    return found


def _read_matrix(
    header: list[str], rows: list[list[str]], names: list[str], warnings: list[str]
) -> list[frozenset[str]]:
    """One column a label. ``warnings`` is added to."""
    place = {name: header.index(name) for name in names}
    blank = [name for name, i in place.items() if any(not row[i].strip() for row in rows)]
    if blank:
        cells = sum(not row[place[name]].strip() for name in blank for row in rows)
        warnings.append(f"{cells} blank cells were taken as 0, in columns {_some(blank)}")
    return [frozenset(name for name, i in place.items() if row[i].strip() in _ONE) for row in rows]


# ---- what may be meant otherwise -----------------------------------------------------------------


def _fold(text: str) -> str:
    """The same for whatever differs in upper and lower case, spaces and kinds of accents only."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def _one_spelling(names: Sequence[str]) -> list[str]:
    """Each name as it was first written; those that :func:`_fold` makes equal are one."""
    first: dict[str, str] = {}
    return [first.setdefault(_fold(name), name.strip()) for name in names]


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(short_repr, names[:_SHOWN])) + ", ..." * (len(names) > _SHOWN)


def _warn_of_separators(
    labels: list[frozenset[str]], cells: list[list[str]], separator: str
) -> list[str]:
    """Labels with another separator in them, where the separator that was given never occurs."""
    if any(separator in cell for row in cells for cell in row):
        return []
    names = sorted(frozenset().union(*labels))
    found = []
    for other in _OTHER_SEPARATORS:
        whole = [name for name in names if other in name]
        if whole:
            found.append(
                f"{len(whole)} of {len(names)} labels have {other!r} in them ({_some(whole)}), and "
                f"no cell has the separator {separator!r}: each was taken as one label. If "
                f"{other!r} stands between labels: --separator {shlex.quote(other)}"
            )
    return found


def _warn_of_spellings(labels: list[frozenset[str]]) -> list[str]:
    same: dict[str, list[str]] = {}
    for name in sorted(frozenset().union(*labels)):
        same.setdefault(_fold(name), []).append(name)
    alike = [" and ".join(map(short_repr, names)) for names in same.values() if len(names) > 1]
    if not alike:
        return []
    some = "; ".join(alike[:_SHOWN]) + "; ..." * (len(alike) > _SHOWN)
    return [
        f"{len(alike)} labels are written in several ways, and each way is a label of its own: "
        f"{some}. Write them alike if they are the same"
    ]


# ---- cells ---------------------------------------------------------------------------------------


def _split(cell: str, path: Path, line: int, column: str) -> str:
    split = SPLIT_NAMES.get(cell.strip().lower())
    if split is None:
        raise TableError(
            f"{path}: line {line}: found {cell!r} in column {column!r}, expected one of "
            f"{', '.join(SPLIT_NAMES)}. (To have the tracks split by group: --ignore-split)"
        )
    return split


def _keys(
    path: Path, names: list[str], lines: list[int], audio_dir: str | Path | None
) -> list[str]:
    root = None if audio_dir is None else Path(os.path.abspath(audio_dir)).as_posix()
    keys: list[str] = []
    seen: dict[str, tuple[str, int]] = {}
    for name, line in zip(names, lines, strict=True):
        try:
            key = mel_key(check_key(_relative(name, root)))
        except GroundTruthError as error:
            hint = ""
            if name.startswith("/") and root is None:
                hint = ". --audio-dir DIR takes paths below DIR as relative to it"
            raise TableError(
                f"{path}: line {line}: path {short_repr(name)}: {error}{hint}"
            ) from None
        # A log-mel file is found without its suffix too.
        stem = key.removesuffix(".mmap").removesuffix(".npy")
        before, where = seen.setdefault(stem, (name, line))
        if where != line:
            same = (
                "the same path"
                if posixpath.normpath(before) == posixpath.normpath(name)
                else f"{short_repr(before)}, which has the same log-mel file "
                f"{short_repr(f'{stem}.mmap')},"
            )
            raise TableError(
                f"{path}: line {line}: path {short_repr(name)}: {same} is in line {where}. "
                "Expected a row for each track: join the two, or rename one of the files"
            )
        keys.append(key)
    return keys


def _relative(name: str, root: str | None) -> str:
    """A path relative to the folder ``root``, if it is an absolute one."""
    if root is None or not name.startswith("/"):
        return name
    whole = posixpath.normpath(name)
    if whole.startswith("//"):  # which normpath leaves
        whole = whole[1:]
    prefix = root.rstrip("/") + "/"
    if not whole.startswith(prefix) or name.endswith("/"):
        raise GroundTruthError(f"found an absolute path, expected one of a file in {root}")
    return whole[len(prefix) :]
