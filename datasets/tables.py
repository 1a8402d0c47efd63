"""A table of tracks: a CSV or TSV file, read and checked.

A row is a track: its path, its labels, and, if known, the split it belongs to or the group (artist,
album) that must stay on one side. `datasets.build` makes ground truths of it.
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
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

from maest.datasets.collection import mel_key
from maest.datasets.groundtruth import check_key
from maest.datasets.mel_index import store_keys
from maest.helpers.errors import InputError
from maest.helpers.safe_pickle import short_repr

# Names of columns that are recognised, without case, spaces, hyphens and underscores; the first
# that a table has is taken.
PATH_COLUMNS = (
    "path", "file", "filename", "filepath", "audio", "audiopath", "audiofile", "mp3path", "track",
    "trackpath", "key",
)  # fmt: skip
LABEL_COLUMNS = ("labels", "label", "tags", "tag", "genres", "genre", "styles", "style")
SPLIT_COLUMNS = ("split", "set", "subset", "fold", "partition")
GROUP_COLUMNS = (
    "group", "groupid", "artistid", "trackartistid", "artist", "artistname", "trackartist",
    "albumartist", "albumid", "album", "albumname", "albumtitle",
)  # fmt: skip
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}


DELIMITERS = (",", ";", "\t")
_OTHER_SEPARATORS = (",", ";", "|", "/")  # that labels may have been meant to be cut at
_ONE, _ZERO = ("1", "1.0", "true"), ("0", "0.0", "false")  # in lower case
_FLAGS = frozenset((*_ONE, *_ZERO, ""))
_SHOWN = 5  # of a list in a message


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
    base_dir: str | Path | None = None,
) -> Table:
    """Read a table of tracks: UTF-8 or UTF-16 text, its first line the names of the columns.

    Commas, tabs or semicolons are between the columns: what the first line has most of, a tab
    before all; or what a line ``sep=;`` before it says. In a table with tabs, quote signs that do
    not come in pairs are part of the text.

    Columns that are not named here are recognised by their names (``PATH_COLUMNS`` and so on). A
    column of labels has names of labels, ``separator`` between them, or nothing but 0, 1 (false,
    true) and blanks: then its own name is a label, which the tracks with a 1 have. Without a column
    that is named or recognised, all of the latter kind are labels, but for those whose names are
    names of paths, splits or groups.

    Args:
        path: the file.
        path_column, split_column, group_column: names of columns.
        labels_column: names of one column or more; a track's labels are those in any of them.
        values_column: names of columns of real values, for a regression; there are no labels then.
        ignore_split: read no split, whatever columns there are.
        separator: between labels.
        audio_dir: absolute paths below this folder are taken as relative to it.
        base_dir: folder of the log-mel files, if they are made: it tells their names.

    Returns:
        the rows. An audio suffix of a path has become ``.mmap``: it names the log-mel file. Where
        no path has a slash, backslashes are slashes.

    Raises:
        InputError: no such file, no text, no such column, a row of another length, an empty or
            absolute path, two paths that name one log-mel file, the unknown name of a split, or a
            value that is no number.
    """
    path = Path(path)
    if not separator:
        raise InputError(
            "is empty", setting="--separator", hint="Give what stands between labels, such as ;."
        )
    if values_column and labels_column:
        raise InputError(
            "labels and values at once",
            kind="conflict",
            setting="--values-column",
            hint="Give this or --labels-column.",
        )
    warnings: list[str] = []
    header, rows, lines = _read_rows(path, warnings)
    columns = _Columns(path, header)

    @cache
    def cells(name: str) -> list[str]:
        i = header.index(name)
        return [row[i].strip() for row in rows]

    path_name = columns.one(path_column, PATH_COLUMNS, "--path-column")
    if path_name is None:
        raise InputError(
            f"no column of paths among {', '.join(header)}",
            kind="missing",
            path=path,
            hint="Name the column with the tracks' paths: --path-column NAME.",
        )
    split_name = columns.one(split_column, SPLIT_COLUMNS, "--split-column")
    group_name = columns.one(group_column, GROUP_COLUMNS, "--group-column")
    others = {path_name, split_name, group_name}
    if ignore_split:
        split_name = None
    taken = {"path": [path_name]}
    labels, values = [frozenset[str]()] * len(rows), None
    if values_column:
        own = taken["values"] = columns.several(values_column, "--values-column")
        numbers = (_values(cells(name), path, lines, name) for name in own)
        values = [list(row) for row in zip(*numbers, strict=True)]
    else:
        own = columns.labels(labels_column, others)
        if not own:
            own = [name for name in columns.unknown(others) if _is_flags(cells(name))]
            if not own:
                raise InputError(
                    f"no column of labels among {', '.join(header)}",
                    kind="missing",
                    path=path,
                    hint="Name the one with the labels, or those with 0 and 1: --labels-column.",
                )
            warnings.append(
                f"no column of labels was named: {len(own)} columns with only 0 and 1 were taken "
                f"({some(own)}). To take others: --labels-column NAME ..."
            )
        taken["labels"] = own
        labels = _labels({name: cells(name) for name in own}, separator, warnings)
    warnings += _warn_of_spellings(labels)
    splits = groups = None
    if split_name is not None:
        taken["split"] = [split_name]
        splits = [
            _split(cell, path, line, split_name)
            for cell, line in zip(cells(split_name), lines, strict=True)
        ]
    if group_name is not None:
        taken["group"] = [group_name]
        groups = _one_spelling(cells(group_name))
    return Table(
        path=path,
        columns=taken,
        unused=[name for name in header if not any(name in names for names in taken.values())],
        keys=_keys(path, cells(path_name), lines, audio_dir, base_dir),
        lines=lines,
        labels=labels,
        splits=splits,
        groups=groups,
        warnings=warnings,
        values=values,
    )


_Rows = tuple[list[str], list[list[str]], list[int]]  # names of columns, rows, their last lines


def _read_rows(path: Path, warnings: list[str]) -> _Rows:
    """Names of the columns, rows, and the line that each row ends in; ``warnings`` is added to."""
    text = _read_text(path)
    delimiter = None
    named = re.match(r'"?sep=(.)\1*"?(?=[\r\n])', text, re.IGNORECASE)
    if named:  # Excel's own line; the others keep their numbers
        delimiter, text = named[1], text[named.end() :]
    first = next((line for line in text.splitlines() if line.strip()), "")
    if not first:
        raise InputError(
            "the table is empty",
            kind="empty",
            path=path,
            hint="Expected a line of column names, and a row for each track.",
        )
    if delimiter is None:
        bare = re.sub(r'"[^"]*"', "", first)
        delimiter = "\t" if "\t" in bare else max(DELIMITERS, key=bare.count)
    if delimiter != "\t" or '"' not in text:
        return _parse(path, text, delimiter)
    try:
        quoted: _Rows | InputError = _parse(path, text, delimiter)
    except InputError as refused:
        quoted = refused
    # Two quote signs far apart may have swallowed what is between them.
    if not isinstance(quoted, InputError) and not any(
        "\t" in cell or "\n" in cell for row in quoted[1] for cell in row
    ):
        return quoted
    try:  # titles such as "Heroes" live, which no one has quoted
        plain = _parse(path, text, delimiter, quoted=False)
    except InputError:
        if isinstance(quoted, InputError):
            raise quoted from None
        return quoted
    warnings.append("quote signs of the table do not come in pairs: they were taken as text")
    return plain


def _read_text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError(
            "no such file", kind="missing", path=path, hint="Check the path of the table."
        ) from None
    except OSError as error:
        raise InputError(
            f"cannot be read ({error.strerror})",
            kind="access",
            path=path,
            hint="Expected a table: a CSV or TSV file.",
        ) from None
    encoding = "utf-8-sig"
    if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):  # Excel's "Unicode text"
        encoding = "utf-16"
    elif b"\0" in content[:2]:
        encoding = "utf-16-be" if content[:1] == b"\0" else "utf-16-le"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"line {line}: not UTF-8 text (byte {content[error.start]:#04x})",
            path=path,
            hint="Save the table as UTF-8 text, not as a spreadsheet.",
        ) from None


def _parse(path: Path, text: str, delimiter: str, quoted: bool = True) -> _Rows:
    content = io.StringIO(text, newline="")
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    reader = csv.reader(content, delimiter=delimiter, quoting=quoting, strict=True)
    rows, lines = [], []
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append(row)
                lines.append(reader.line_num)
    except csv.Error as error:
        raise InputError(
            f"line {reader.line_num}: {error}", path=path, hint="Check its quotes."
        ) from None
    header = [name.strip() for name in rows[0]]
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice or "" in header:
        found = f"{twice[0]!r} twice" if twice and twice[0] else "an empty name"
        raise InputError(
            f"line {lines[0]}: {found} among the columns' names",
            path=path,
            hint="Expected distinct names, separated by commas, tabs or semicolons.",
        )
    for row, line in zip(rows[1:], lines[1:], strict=True):
        if len(row) != len(header):
            raise InputError(
                f"line {line}: {len(row)} cells, expected {len(header)} as in the first line",
                path=path,
                hint="This is a table of MTG-Jamendo: use datasets/jamendo/preprocess.py."
                if {"TRACK_ID", "PATH", "TAGS"}.issubset(header)
                else f"A cell that has the delimiter ({delimiter!r}) in it must stand in double "
                "quotes.",
            )
    if len(rows) == 1:
        raise InputError(
            "column names and no rows",
            kind="empty",
            path=path,
            hint="Expected a row for each track.",
        )
    return header, rows[1:], lines[1:]


# ---- columns -------------------------------------------------------------------------------------


def _bare(name: str) -> str:
    """``Artist Name``, ``artist_name``, ``artistName`` → ``artistname``."""
    return re.sub(r"[\s_-]", "", name).casefold()


class _Columns:
    """The columns of a table, by their names."""

    def __init__(self, path: Path, header: list[str]) -> None:
        self.path, self.header = path, header
        self.by_bare = {_bare(name): name for name in reversed(header)}

    def one(self, given: str | None, known: Sequence[str], option: str) -> str | None:
        """The column that was named, or else one that has a known name; None: there is none."""
        if given is not None:
            return self.named(given, option)
        return next((self.by_bare[name] for name in known if name in self.by_bare), None)

    def named(self, given: str, option: str) -> str:
        """The column of that name. Raises InputError where there is none."""
        name = given if given in self.header else self.by_bare.get(_bare(given))
        if name is None:
            raise InputError(
                f"no column {given!r}",
                kind="unknown",
                path=self.path,
                setting=option,
                hint=f"The columns are {', '.join(self.header)}.",
            )
        return name

    def several(self, given: Sequence[str], option: str) -> list[str]:
        """Those that were named, each once."""
        return list(dict.fromkeys(self.named(name, option) for name in given))

    def labels(self, given: Sequence[str], taken: Collection[str | None]) -> list[str]:
        """Those that were named, or else the one that has the name of labels, if there is one."""
        if given:
            return self.several(given, "--labels-column")
        found = [name for name in self.header if _bare(name) in LABEL_COLUMNS and name not in taken]
        if len(found) > 1:
            raise InputError(
                f"the columns {', '.join(found)} may all be labels",
                kind="conflict",
                path=self.path,
                hint=f"Say which are: --labels-column {shlex.join(found)}.",
            )
        return found

    def unknown(self, taken: Collection[str | None]) -> list[str]:
        """Those whose names say nothing."""
        known = {*PATH_COLUMNS, *SPLIT_COLUMNS, *GROUP_COLUMNS}
        return [name for name in self.header if name not in taken and _bare(name) not in known]


def _is_flags(cells: list[str]) -> bool:
    """Whether there is nothing but 0, 1 and blanks, and one 0 or 1."""
    return any(cells) and {cell.lower() for cell in set(cells)} <= _FLAGS


def _labels(
    columns: dict[str, list[str]], separator: str, warnings: list[str]
) -> list[frozenset[str]]:
    """The labels of each row; ``warnings`` is added to.

    Args:
        columns: name → cells, of the columns of labels.
        separator: between labels in a cell.
        warnings: of blank cells among flags, and of separators.
    """
    flags = {name: cells for name, cells in columns.items() if _is_flags(cells)}
    blank = {name: cells.count("") for name, cells in flags.items() if "" in cells}
    if blank:
        warnings.append(
            f"{sum(blank.values())} blank cells were taken as 0, in columns {some(list(blank))}"
        )
    texts = [cells for name, cells in columns.items() if name not in flags]
    names = [
        frozenset(filter(None, (part.strip() for cell in row for part in cell.split(separator))))
        for row in zip(*texts, strict=True)
    ] or [frozenset()] * len(next(iter(columns.values())))
    if texts and not any(separator in cell for cells in texts for cell in cells):
        warnings += _warn_of_separators(names, separator)
    return [
        own | {name for name, cells in flags.items() if cells[i].lower() in _ONE}
        for i, own in enumerate(names)
    ]


def _values(cells: list[str], path: Path, lines: list[int], column: str) -> list[float]:
    values = []
    for cell, line in zip(cells, lines, strict=True):
        try:
            values.append(float(cell))
        except ValueError:
            values.append(math.nan)
        if not math.isfinite(values[-1]):
            raise InputError(
                f"line {line}: {short_repr(cell)} in column {column!r}: expected a number",
                path=path,
                hint="Write it with a point for the decimals, or leave the row out.",
            )
    return values


# ---- what may be meant otherwise -----------------------------------------------------------------


def _fold(text: str) -> str:
    """The same for whatever differs in upper and lower case, spaces and kinds of accents only."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def _one_spelling(names: Sequence[str]) -> list[str]:
    """Each name as it was first written; those that :func:`_fold` makes equal are one."""
    first: dict[str, str] = {}
    return [first.setdefault(_fold(name), name.strip()) for name in names]


def some(names: Sequence[str]) -> str:
    """The first few of some names, quoted."""
    return ", ".join(map(short_repr, names[:_SHOWN])) + ", ..." * (len(names) > _SHOWN)


def _warn_of_separators(labels: list[frozenset[str]], separator: str) -> list[str]:
    """Labels with another separator in them, where the one that was given never occurs."""
    names = sorted(frozenset[str]().union(*labels))
    found = []
    for other in _OTHER_SEPARATORS:
        whole = [name for name in names if other in name]
        if whole:
            found.append(
                f"{len(whole)} of {len(names)} labels have {other!r} in them ({some(whole)}), and "
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
    shown = "; ".join(alike[:_SHOWN]) + "; ..." * (len(alike) > _SHOWN)
    return [
        f"{len(alike)} labels are written in several ways, and each way is a label of its own: "
        f"{shown}. Write them alike if they are the same"
    ]


# ---- cells ---------------------------------------------------------------------------------------


def _split(cell: str, path: Path, line: int, column: str) -> str:
    split = SPLIT_NAMES.get(cell.lower())
    if split is None:
        raise InputError(
            f"line {line}: {cell!r} in column {column!r}, expected one of {', '.join(SPLIT_NAMES)}",
            path=path,
            hint="To have the tracks split by group: --ignore-split.",
        )
    return split


def _keys(
    path: Path,
    names: list[str],
    lines: list[int],
    audio_dir: str | Path | None,
    base_dir: str | Path | None,
) -> list[str]:
    if not any("/" in name for name in names):  # a table from Windows
        names = [name.replace("\\", "/") for name in names]
    root = None if audio_dir is None else _root(str(audio_dir))
    relative = []
    for name, line in zip(names, lines, strict=True):
        try:
            relative.append(check_key(_relative(name, root)))
        except InputError as error:
            hint = error.hint
            if _is_absolute(name) and root is None:
                hint = "To take paths below a folder as relative to it: --audio-dir DIR."
            raise InputError(
                f"line {line}: path {short_repr(name)}: {error.message}", path=path, hint=hint
            ) from None
    # The store knows which of song.flac and song.mp3 song.mmap was made from.
    keys = store_keys(base_dir, relative) if base_dir else [mel_key(name) for name in relative]
    seen: dict[str, int] = {}
    for i, key in enumerate(keys):
        # A log-mel file is found without its suffix too.
        stem = key.removesuffix(".mmap").removesuffix(".npy")
        before = seen.setdefault(stem, i)
        if before == i:
            continue
        same, hint = "the same path", "Expected a row for each track: join the two."
        if relative[before] != relative[i]:
            same = (
                f"{short_repr(names[before])}, which has the same log-mel file {stem + '.mmap'!r},"
            )
            hint = "Rename one of the files, or give the log-mel files' folder: --base-dir MELS."
        raise InputError(
            f"line {lines[i]}: path {short_repr(names[i])}: {same} is in line {lines[before]}",
            kind="conflict",
            path=path,
            hint=hint,
        )
    return keys


def _is_absolute(name: str) -> bool:
    return name.startswith("/") or bool(re.match("[A-Za-z]:/", name))


def _root(folder: str) -> str:
    """A folder's absolute path, with slashes; one of Windows stays."""
    if re.match(r"[A-Za-z]:[\\/]", folder):
        return posixpath.normpath(folder.replace("\\", "/"))
    return Path(os.path.abspath(folder)).as_posix()


def _relative(name: str, root: str | None) -> str:
    """A path relative to the folder ``root``, if it is an absolute one."""
    if root is None or not _is_absolute(name):
        return name
    whole = posixpath.normpath(name)
    if whole.startswith("//"):  # which normpath leaves
        whole = whole[1:]
    prefix = root.rstrip("/") + "/"
    if not whole.startswith(prefix) or name.endswith("/"):
        raise InputError(
            f"an absolute path, and not of a file in {root}",
            hint="Give the folder that the paths begin with: --audio-dir DIR.",
        )
    return whole[len(prefix) :]
