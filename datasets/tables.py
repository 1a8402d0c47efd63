"""Read and check a table of tracks: a CSV or TSV file, as spreadsheets write them.

A row holds path, labels, and perhaps a split, or a group (artist, album) to keep in one split.
"""

from __future__ import annotations

import codecs
import csv
import io
import math
import os
import posixpath
import re
import shlex
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Literal, TypeVar

from maest.datasets.collection import mel_key
from maest.datasets.groundtruth import check_key
from maest.datasets.mel_store import store_keys
from maest.helpers.errors import InputError, Kind
from maest.helpers.files.atomic import read_bytes
from maest.helpers.files.safe_pickle import short_repr
from maest.helpers.names import first_few

Value = TypeVar("Value")

# Names of columns, without case, spaces, hyphens and underscores; the first of each list wins.
RECOGNISED = {
    "path": "path file filename filepath audio audiopath audiofile mp3path track trackpath key",
    "labels": "labels label tags tag genres genre styles style",
    "split": "split set subset fold partition",
    "group": "group groupid artistid trackartistid artist artistname trackartist albumartist "
    "albumid album albumname albumtitle",
}
_NO_LABELS = {name for what in ("path", "split", "group") for name in RECOGNISED[what].split()}
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_SEPARATORS = (",", ";", "|", "/")  # that may separate labels
_ONE, _FLAGS = {"1", "1.0", "true"}, {"1", "1.0", "true", "0", "0.0", "false", ""}  # in lower case


@dataclass(frozen=True)
class Table:
    """The content of a table; the lists have an entry for each row, unless they say otherwise."""

    path: Path
    columns: dict[str, list[str]]  # "path", "labels" or "values", "split", "group" → their names
    unused: list[str]  # names of the columns that were not read
    keys: list[str]  # paths of the log-mel files, relative to ``base_dir``
    lines: list[int]  # the line in which a row ends, from 1
    labels: list[frozenset[str]]  # names; empty sets in a table of values
    splits: list[str] | None  # "train", "validation" or "test"; None without such a column
    # "" if unknown; a name spelled in several ways (case, spaces) becomes its first spelling
    groups: list[str] | None
    values: list[list[float]] | None = None  # targets of a regression, in the order of the columns
    warnings: list[str] = field(default_factory=list)  # for the user, before training


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
    base_dir: str | Path | None = None,
) -> Table:
    """Read a table of tracks: UTF-8 or UTF-16 text, with the names of the columns in line 1.

    Without an argument, a column is recognised by its name (``RECOGNISED``). A column of labels
    holds names with ``separator`` between them, or only 0, 1 (false, true) and blanks: then its
    name is the label. With neither named nor recognised, all such 0/1 columns are labels, unless
    named like a path, split or group. ``values_column`` names targets of a regression instead.

    Keys are paths with ``.mmap`` in place of an audio suffix; the store ``base_dir`` knows whether
    song.mmap is of song.flac or song.mp3. Absolute paths become relative to ``audio_dir``. If no
    path has a slash, backslashes separate folders.

    Raises InputError, naming the line, for a corrupt or ambiguous table.
    """
    if not separator:
        raise InputError("is empty", setting="--separator", hint="Give such as ;.")
    if values_column and labels_column:
        what, hint = "labels and values at once", "Give this or --labels-column."
        raise InputError(what, kind="conflict", setting="--values-column", hint=hint)
    rows = _read_rows(Path(path))
    columns: dict[str, list[str]] = {}
    for what, given in (("path", path_column), ("split", split_column), ("group", group_column)):
        if given is not None:
            columns[what] = rows.named([given], f"--{what}-column")
        elif known := [rows.by_bare[n] for n in RECOGNISED[what].split() if n in rows.by_bare]:
            columns[what] = known[:1]
    if "path" not in columns:
        hint = "Name the column with the tracks' paths: --path-column NAME."
        what = f"no column of paths among {', '.join(rows.header)}"
        raise _refusal(rows.path, what, hint, "missing")
    others = [name for name in rows.header if [name] not in columns.values()]
    if ignore_split:
        columns.pop("split", None)

    labels, values = [frozenset[str]()] * len(rows.lines), None
    if values_column:
        columns["values"] = rows.named(values_column, "--values-column")
        hint = "Write it with a point for the decimals, or leave the row out."
        numbers = (rows.convert(n, _finite, "a number", hint) for n in columns["values"])
        values = [list(row) for row in zip(*numbers, strict=True)]
    else:
        named = rows.named(labels_column, "--labels-column")
        columns["labels"] = named or _label_columns(rows, others)
        labels = _labels(rows, columns["labels"], separator)
    splits = groups = None
    if "split" in columns:
        hint = "To have the tracks split by group: --ignore-split."
        expected = f"one of {', '.join(SPLIT_NAMES)}"
        name = columns["split"][0]
        splits = rows.convert(name, lambda cell: SPLIT_NAMES[cell.lower()], expected, hint)
    if "group" in columns:
        first: dict[str, str] = {}
        groups = [first.setdefault(_fold(name), name) for name in rows.cells(columns["group"][0])]
    taken = {name for names in columns.values() for name in names}
    unused = [name for name in rows.header if name not in taken]
    keys = _keys(rows, columns["path"][0], audio_dir, base_dir)
    return Table(
        rows.path, columns, unused, keys, rows.lines, labels, splits, groups, values, rows.warnings
    )


def _bare(name: str) -> str:
    """``Artist Name``, ``artist_name``, ``artistName`` → ``artistname``."""
    return re.sub(r"[\s_-]", "", name).casefold()


def _fold(text: str) -> str:
    """Remove differences of case, spaces and Unicode's ways to write accents."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def some(names: Iterable[str]) -> str:
    return first_few(map(short_repr, names))


def _finite(cell: str) -> float:
    if not math.isfinite(value := float(cell)):
        raise ValueError(cell)
    return value


def _is_flags(cells: list[str]) -> bool:
    return any(cells) and {cell.lower() for cell in set(cells)} <= _FLAGS


def _label_columns(rows: _Rows, others: list[str]) -> list[str]:
    """Columns of labels by default: the recognised one, or all of 0 and 1."""
    known = [name for name in others if _bare(name) in RECOGNISED["labels"].split()]
    if len(known) > 1:
        hint = f"Say which are: --labels-column {shlex.join(known)}."
        what = f"the columns {', '.join(known)} may all be labels"
        raise _refusal(rows.path, what, hint, "conflict")
    flags = [n for n in others if _bare(n) not in _NO_LABELS and _is_flags(rows.cells(n))]
    if not known and not flags:
        hint = "Name the one with the labels, or those with 0 and 1: --labels-column."
        what = f"no column of labels among {', '.join(rows.header)}"
        raise _refusal(rows.path, what, hint, "missing")
    if not known:
        rows.warnings.append(
            f"no column of labels was named: {len(flags)} columns with only 0 and 1 were taken "
            f"({some(flags)}). To take others: --labels-column NAME ..."
        )
    return known or flags


def _labels(rows: _Rows, names: list[str], separator: str) -> list[frozenset[str]]:
    columns = {name: rows.cells(name) for name in names}
    flags = {name: cells for name, cells in columns.items() if _is_flags(cells)}
    texts = [cells for name, cells in columns.items() if name not in flags]
    if blank := {name: cells.count("") for name, cells in flags.items() if "" in cells}:
        count = sum(blank.values())
        rows.warnings.append(f"{count} blank cells were taken as 0, in columns {some(blank)}")
    labels = []
    for i in range(len(rows.lines)):
        parts = {part.strip() for cells in texts for part in cells[i].split(separator)} - {""}
        parts |= {name for name, cells in flags.items() if cells[i].lower() in _ONE}
        labels.append(frozenset(parts))
    names = sorted(frozenset[str]().union(*labels))
    for other in _SEPARATORS:
        whole = [name for name in names if other in name and name not in flags]
        if whole and not any(separator in cell for cells in texts for cell in cells):
            rows.warnings.append(
                f"{len(whole)} of {len(names)} labels have {other!r} in them ({some(whole)}), and "
                f"no cell has {separator!r}. If {other!r} is between labels: --separator "
                f"{shlex.quote(other)}"
            )
    same: dict[str, list[str]] = {}
    for name in names:
        same.setdefault(_fold(name), []).append(name)
    if alike := [" and ".join(map(short_repr, own)) for own in same.values() if len(own) > 1]:
        rows.warnings.append(
            f"{len(alike)} labels are written in several ways, and each way is a label of its own: "
            f"{first_few(alike)}"
        )
    return labels


def _keys(
    rows: _Rows, column: str, audio_dir: str | Path | None, base_dir: str | Path | None
) -> list[str]:
    names = rows.cells(column)
    from_windows = not any("/" in name for name in names)

    def relative(name: str) -> str:
        name = name.replace("\\", "/") if from_windows else name
        if audio_dir is not None and re.match("/|[A-Za-z]:/", name):
            name = _below(name, str(audio_dir))
        return check_key(name)

    expected = f"the path of a file below {audio_dir or 'a folder'}"
    hint = "Give relative paths, or the folder that they are below: --audio-dir DIR."
    files = rows.convert(column, relative, expected, hint)
    keys = store_keys(base_dir, files) if base_dir else [mel_key(name) for name in files]
    seen: dict[str, int] = {}
    for i, key in enumerate(keys):
        # A key stands for its log-mel file without the suffix too.
        stem = key.removesuffix(".mmap").removesuffix(".npy")
        before = seen.setdefault(stem, i)
        if before != i:
            twin = f"{short_repr(names[before])}, of the same log-mel file {stem + '.mmap'!r},"
            what = f"path {short_repr(names[i])}: {twin} is in line {rows.lines[before]}"
            hint = "Join the rows, or rename one of the files, or give the log-mel files' folder: "
            raise _refusal(rows.path, what, f"{hint}--base-dir MELS.", "conflict", rows.lines[i])
    return keys


def _below(name: str, folder: str) -> str:
    """Make an absolute path relative to a folder; ValueError if it is not below it."""
    whole = re.sub("^/+", "/", posixpath.normpath(name))  # normpath leaves two
    below: PurePath = PureWindowsPath(whole)
    if not re.match(r"[A-Za-z]:[\\/]", folder):
        below, folder = PurePosixPath(whole), os.path.abspath(folder)
    return below.relative_to(folder).as_posix() + "/" * name.endswith("/")


# ---- rows ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rows:
    path: Path
    header: list[str]
    rows: list[list[str]]
    lines: list[int]  # in which the rows end, from 1
    warnings: list[str] = field(default_factory=list)

    @property
    def by_bare(self) -> dict[str, str]:
        return {_bare(name): name for name in reversed(self.header)}

    def cells(self, column: str) -> list[str]:
        i = self.header.index(column)
        return [row[i].strip() for row in self.rows]

    def named(self, names: Sequence[str], option: str) -> list[str]:
        """The header's names of the columns that an option names, each once."""
        own = [n if n in self.header else self.by_bare.get(_bare(n), "") for n in names]
        if "" in own:
            what = f"no column {names[own.index('')]!r}"
            hint = f"Give one of: {', '.join(self.header)}."
            raise InputError(what, kind="unknown", path=self.path, setting=option, hint=hint)
        return list(dict.fromkeys(own))

    def convert(
        self, column: str, read: Callable[[str], Value], expected: str, hint: str
    ) -> list[Value]:
        """Apply ``read`` to each cell; its KeyError or ValueError becomes an InputError."""
        values = []
        for cell, line in zip(self.cells(column), self.lines, strict=True):
            try:
                values.append(read(cell))
            except (KeyError, ValueError):
                what = f"{short_repr(cell)} in column {column!r}, expected {expected}"
                raise _refusal(self.path, what, hint, line=line) from None
        return values


def _refusal(
    path: Path, message: str, hint: str, kind: Kind = "invalid", line: int | None = None
) -> InputError:
    where = "" if line is None else f"line {line}: "
    return InputError(where + message, kind=kind, path=path, hint=hint)


def _read_rows(path: Path) -> _Rows:
    """Cut columns as a line ``sep=;`` says, or at tabs, or at the more frequent of , and ;."""
    text = _read_text(path)
    named = re.match(r'"?sep=(.)\1*"?(?=[\r\n])', text, re.IGNORECASE)
    text = text[named.end() :] if named else text  # Excel's line; the rest keeps its line numbers
    first = next((line for line in text.splitlines() if line.strip()), "")
    bare = re.sub(r'"[^"]*"', "", first)
    delimiter = "\t" if "\t" in bare else max(",;", key=bare.count)
    delimiter = named[1] if named else delimiter
    plain = None
    if delimiter == "\t" and '"' in text:
        with suppress(InputError):  # titles such as "Heroes" live, not quoted as a cell
            plain = _parse(path, text, delimiter, quoting=csv.QUOTE_NONE)
    try:
        quoted = _parse(path, text, delimiter)
        # Two quote signs far apart may have swallowed the cells between them.
        if plain is None or not any(set("\t\n") & set(c) for row in quoted.rows for c in row):
            return quoted
    except InputError:
        if plain is None:
            raise
    plain.warnings.append("quote signs of the table do not come in pairs: they were taken as text")
    return plain


def _read_text(path: Path) -> str:
    expected = "Expected a table: a CSV or TSV file."
    content = read_bytes(path, missing="Check the path of the table.", access=expected)
    encoding = "utf-8-sig"
    if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):  # Excel's "Unicode text"
        encoding = "utf-16"
    elif b"\0" in content[:2]:
        encoding = "utf-16-be" if content[:1] == b"\0" else "utf-16-le"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        what = f"not UTF-8 text (byte {content[error.start]:#04x})"
        hint = "Save the table as UTF-8 text, not as a spreadsheet."
        raise _refusal(path, what, hint, line=line) from None


def _parse(
    path: Path, text: str, delimiter: str, quoting: Literal[0, 3] = csv.QUOTE_MINIMAL
) -> _Rows:
    content = io.StringIO(text, newline="")
    reader = csv.reader(content, delimiter=delimiter, quoting=quoting, strict=True)
    rows, lines = [], []
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append(row)
                lines.append(reader.line_num)
    except csv.Error as error:
        raise _refusal(path, str(error), "Check its quotes.", line=reader.line_num) from None
    if len(rows) < 2:
        hint = "Expected a line of column names, and a row for each track."
        raise _refusal(path, "the table has no rows", hint, "empty")
    header = [name.strip() for name in rows[0]]
    name, count = Counter(header).most_common(1)[0]
    if count > 1 or "" in header:
        what = f"{name!r} twice, or an empty name, among the columns' names"
        hint = "Expected distinct names, separated by commas, tabs or semicolons."
        raise _refusal(path, what, hint, line=lines[0])
    for row, line in zip(rows[1:], lines[1:], strict=True):
        if len(row) != len(header):
            what = f"{len(row)} cells, expected {len(header)} as in the first line"
            hint = f"A cell with the delimiter ({delimiter!r}) in it must stand in double quotes."
            if {"TRACK_ID", "PATH", "TAGS"}.issubset(header):
                hint = "This is a table of MTG-Jamendo: use datasets/jamendo/preprocess.py."
            raise _refusal(path, what, hint, line=line)
    return _Rows(path, header, rows[1:], lines[1:])
