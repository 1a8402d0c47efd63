"""A table of tracks: a CSV or TSV file, read and checked.

A row is a track: its path, its labels, and, if known, the split it belongs to or the group (artist,
album) that must stay on one side. `datasets.build` makes ground truths of it.
"""

from __future__ import annotations

import csv
import io
import posixpath
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
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


class TableError(GroundTruthError):
    """A table that is refused; the message names the file, the line and the reason."""


@dataclass(frozen=True)
class Table:
    """What a table says, a list entry for each row.

    Attributes:
        path: the file.
        columns: what it was read from: "path", "labels", "split", "group" → names of columns.
        unused: columns that were not read.
        keys: paths of the log-mel files, relative to ``base_dir``.
        lines: where the rows end in the file, from 1.
        labels: names of each track's labels.
        splits: "train", "validation" or "test", or None if the table has no split.
        groups: each track's group, "" where it is not known, or None if the table has none.
    """

    path: Path
    columns: dict[str, list[str]]
    unused: list[str]
    keys: list[str]
    lines: list[int]
    labels: list[frozenset[str]]
    splits: list[str] | None
    groups: list[str] | None


# ---- reading -------------------------------------------------------------------------------------


def read_table(
    path: str | Path,
    *,
    path_column: str | None = None,
    labels_column: Sequence[str] = (),
    split_column: str | None = None,
    group_column: str | None = None,
    ignore_split: bool = False,
    separator: str = ";",
) -> Table:
    """Read a table of tracks: UTF-8 text, comma- or tab-separated, its first line the names.

    Columns that are not named here are recognised by their names (``PATH_COLUMNS`` and so on), in
    upper or lower case. Labels stand in one column, or several, ``separator`` between them. A
    table without such a column has one column a label instead: those whose cells are all 0 or 1.

    Args:
        path: the file.
        path_column, split_column, group_column: names of columns.
        labels_column: names of one column or more; a track's labels are those in any of them.
        ignore_split: read no split, whatever columns there are.
        separator: between labels.

    Returns:
        the rows. An audio suffix of a path has become ``.mmap``: it names the log-mel file.

    Raises:
        TableError: no such file, no text, no such column, a row of another length, an empty or
            absolute path, a path that is there twice, or the unknown name of a split.
    """
    path = Path(path)
    if not separator:
        raise TableError("--separator is empty: expected what stands between labels, such as ;")
    header, rows, lines = _read_rows(path)
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
    label_names = _find_labels(path, header, labels_column)
    taken = {path_name, split_name, group_name, *label_names}
    if label_names:
        own = [[row[place[name]] for name in label_names] for row in rows]
        labels = [_names(cells, separator) for cells in own]
    else:
        label_names, labels = _read_matrix(path, header, rows, taken)
        taken |= set(label_names)
    columns = {"path": [path_name], "labels": label_names}
    splits = groups = None
    if split_name is not None:
        columns["split"] = [split_name]
        splits = [
            _split(row[place[split_name]], path, line, split_name)
            for row, line in zip(rows, lines, strict=True)
        ]
    if group_name is not None:
        columns["group"] = [group_name]
        groups = [row[place[group_name]].strip() for row in rows]
    return Table(
        path=path,
        columns=columns,
        unused=[name for name in header if name not in taken],
        keys=_keys(path, [row[place[path_name]].strip() for row in rows], lines),
        lines=lines,
        labels=labels,
        splits=splits,
        groups=groups,
    )


def _read_rows(path: Path) -> tuple[list[str], list[list[str]], list[int]]:
    """Names of the columns, rows, and the line that each row ends in."""
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
    delimiter = "\t" if "\t" in first else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
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
            "names, separated by commas or tabs"
        )
    for row, line in zip(rows[1:], lines[1:], strict=True):
        if len(row) != len(header):
            raise TableError(
                f"{path}: line {line}: found {len(row)} cells, expected {len(header)} as in the "
                "first line. A cell that has the delimiter in it must stand in double quotes"
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


def _names(cells: list[str], separator: str) -> frozenset[str]:
    parts = (part.strip() for cell in cells for part in cell.split(separator))
    return frozenset(filter(None, parts))


def _read_matrix(
    path: Path, header: list[str], rows: list[list[str]], taken: set[str | None]
) -> tuple[list[str], list[frozenset[str]]]:
    """One column a label: the columns that have nothing but 0 and 1 in them."""
    names = {
        i: name
        for i, name in enumerate(header)
        if name not in taken and all(row[i].strip() in ("0", "1") for row in rows)
    }
    if not names:
        raise TableError(
            f"{path}: none of the columns ({', '.join(header)}) is named "
            f"{', '.join(LABEL_COLUMNS)}, and none has only 0 and 1 in it (a column a label). "
            "Name the one with the labels with --labels-column"
        )
    labels = [frozenset(name for i, name in names.items() if row[i].strip() == "1") for row in rows]
    return list(names.values()), labels


def _split(cell: str, path: Path, line: int, column: str) -> str:
    split = SPLIT_NAMES.get(cell.strip().lower())
    if split is None:
        raise TableError(
            f"{path}: line {line}: found {cell!r} in column {column!r}, expected one of "
            f"{', '.join(SPLIT_NAMES)}. (To have the tracks split by group: --ignore-split)"
        )
    return split


def _keys(path: Path, names: list[str], lines: list[int]) -> list[str]:
    keys: list[str] = []
    seen: dict[str, tuple[str, int]] = {}
    for name, line in zip(names, lines, strict=True):
        try:
            key = mel_key(check_key(name))
        except GroundTruthError as error:
            raise TableError(f"{path}: line {line}: path {short_repr(name)}: {error}") from None
        before, where = seen.setdefault(key, (name, line))
        if where != line:
            same = (
                "the same path"
                if posixpath.normpath(before) == posixpath.normpath(name)
                else (f"{short_repr(before)}, which has the same log-mel file {short_repr(key)}")
            )
            raise TableError(
                f"{path}: line {line}: path {short_repr(name)}: {same} is in line {where}. "
                "Expected a row for each track: join the two, or rename one of the files"
            )
        keys.append(key)
    return keys
