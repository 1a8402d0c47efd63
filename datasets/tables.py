"""A table of tracks: a CSV or TSV file, read and checked.

A row is a track: its path, its labels, and, if known, the split it belongs to or the group (artist,
album) that must stay on one side. `datasets.build` makes ground truths of it.
"""

from __future__ import annotations

import math
import os
import posixpath
import re
import shlex
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath

from maest.datasets.collection import mel_key
from maest.datasets.groundtruth import check_key
from maest.datasets.mel_index import store_keys
from maest.datasets.table_rows import read_rows, refusal
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
_SEPARATORS = (",", ";", "|", "/")  # that labels may have been meant to be cut at
_ONE, _FLAGS = {"1", "1.0", "true"}, {"1", "1.0", "true", "0", "0.0", "false", ""}  # in lower case
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
    names of paths, splits or groups. ``values_column``: real values instead, for a regression.

    An audio suffix of a path becomes ``.mmap``: it names the log-mel file; ``base_dir``, their
    folder, knows which of song.flac and song.mp3 song.mmap was made from. Absolute paths below
    ``audio_dir`` are taken as relative to it. Where no path has a slash, backslashes are slashes.

    Raises:
        InputError: no such file, no text, no such column, a row of another length, an empty or
            absolute path, two paths that name one log-mel file, the unknown name of a split, or a
            value that is no number.
    """
    path = Path(path)
    if not separator:
        hint = "Give what stands between labels, such as ;."
        raise InputError("is empty", setting="--separator", hint=hint)
    if values_column and labels_column:
        hint = "Give this or --labels-column."
        what = "labels and values at once"
        raise InputError(what, kind="conflict", setting="--values-column", hint=hint)
    warnings: list[str] = []
    header, rows, lines = read_rows(path, warnings)
    by_bare = {_bare(name): name for name in reversed(header)}
    among = f"among {', '.join(header)}"

    def cells(name: str) -> list[str]:
        i = header.index(name)
        return [row[i].strip() for row in rows]

    def named(given: str, option: str) -> str:
        name = given if given in header else by_bare.get(_bare(given))
        if name is None:
            hint = f"The columns are {', '.join(header)}."
            what = f"no column {given!r}"
            raise InputError(what, kind="unknown", path=path, setting=option, hint=hint)
        return name

    def find(given: str | None, known: Sequence[str], option: str) -> str | None:
        if given is not None:
            return named(given, option)
        return next((by_bare[name] for name in known if name in by_bare), None)

    path_name = find(path_column, PATH_COLUMNS, "--path-column")
    if path_name is None:
        hint = "Name the column with the tracks' paths: --path-column NAME."
        raise refusal(path, f"no column of paths {among}", hint, "missing")
    split_name = find(split_column, SPLIT_COLUMNS, "--split-column")
    group_name = find(group_column, GROUP_COLUMNS, "--group-column")
    others = [name for name in header if name not in (path_name, split_name, group_name)]
    if ignore_split:
        split_name = None

    columns = {"path": [path_name]}
    labels, values = [frozenset[str]()] * len(rows), None
    if values_column:
        columns["values"] = list(dict.fromkeys(named(n, "--values-column") for n in values_column))
        numbers = (_values(cells(name), path, lines, name) for name in columns["values"])
        values = [list(row) for row in zip(*numbers, strict=True)]
    else:
        own = list(dict.fromkeys(named(name, "--labels-column") for name in labels_column))
        own = own or [name for name in others if _bare(name) in LABEL_COLUMNS]
        if len(own) > 1 and not labels_column:
            hint = f"Say which are: --labels-column {shlex.join(own)}."
            raise refusal(path, f"the columns {', '.join(own)} may all be labels", hint, "conflict")
        if not own:
            known = {*PATH_COLUMNS, *SPLIT_COLUMNS, *GROUP_COLUMNS}
            own = [n for n in others if _bare(n) not in known and _is_flags(cells(n))]
            warnings.append(
                f"no column of labels was named: {len(own)} columns with only 0 and 1 were taken "
                f"({some(own)}). To take others: --labels-column NAME ..."
            )
        if not own:
            hint = "Name the one with the labels, or those with 0 and 1: --labels-column."
            raise refusal(path, f"no column of labels {among}", hint, "missing")
        columns["labels"] = own
        labels = _labels({name: cells(name) for name in own}, separator, warnings)
    splits = groups = None
    if split_name is not None:
        columns["split"] = [split_name]
        splits = _splits(cells(split_name), path, lines, split_name)
    if group_name is not None:
        columns["group"] = [group_name]
        first: dict[str, str] = {}
        groups = [first.setdefault(_fold(name), name) for name in cells(group_name)]
    taken = {name for names in columns.values() for name in names}
    return Table(
        path=path,
        columns=columns,
        unused=[name for name in header if name not in taken],
        keys=_keys(path, cells(path_name), lines, audio_dir, base_dir),
        lines=lines,
        labels=labels,
        splits=splits,
        groups=groups,
        warnings=warnings,
        values=values,
    )


# ---- cells ---------------------------------------------------------------------------------------


def _bare(name: str) -> str:
    """``Artist Name``, ``artist_name``, ``artistName`` → ``artistname``."""
    return re.sub(r"[\s_-]", "", name).casefold()


def _fold(text: str) -> str:
    """The same for whatever differs in upper and lower case, spaces and kinds of accents only."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def some(names: Sequence[str]) -> str:
    """The first few of some names, quoted."""
    return ", ".join(map(short_repr, names[:_SHOWN])) + ", ..." * (len(names) > _SHOWN)


def _is_flags(cells: list[str]) -> bool:
    """Whether there is nothing but 0, 1 and blanks, and one 0 or 1."""
    return any(cells) and {cell.lower() for cell in set(cells)} <= _FLAGS


def _labels(
    columns: dict[str, list[str]], separator: str, warnings: list[str]
) -> list[frozenset[str]]:
    """The labels of each row, of columns' cells; ``warnings`` is added to."""
    flags = {name: cells for name, cells in columns.items() if _is_flags(cells)}
    blank = {name: cells.count("") for name, cells in flags.items() if "" in cells}
    if blank:
        warnings.append(
            f"{sum(blank.values())} blank cells were taken as 0, in columns {some(list(blank))}"
        )
    texts = [cells for name, cells in columns.items() if name not in flags]
    labels = []
    for i in range(len(next(iter(columns.values())))):
        parts = {part.strip() for cells in texts for part in cells[i].split(separator)} - {""}
        parts |= {name for name, cells in flags.items() if cells[i].lower() in _ONE}
        labels.append(frozenset(parts))
    names = sorted(frozenset[str]().union(*labels))
    for other in _SEPARATORS:
        whole = [name for name in names if other in name and name not in flags]
        if whole and not any(separator in cell for cells in texts for cell in cells):
            warnings.append(
                f"{len(whole)} of {len(names)} labels have {other!r} in them ({some(whole)}), and "
                f"no cell has {separator!r}. If {other!r} is between labels: --separator "
                f"{shlex.quote(other)}"
            )
    same: dict[str, list[str]] = {}
    for name in names:
        same.setdefault(_fold(name), []).append(name)
    alike = [" and ".join(map(short_repr, names)) for names in same.values() if len(names) > 1]
    if alike:
        warnings.append(
            f"{len(alike)} labels are written in several ways, and each way is a label of its own: "
            f"{'; '.join(alike[:_SHOWN])}{'; ...' * (len(alike) > _SHOWN)}"
        )
    return labels


def _values(cells: list[str], path: Path, lines: list[int], column: str) -> list[float]:
    values = []
    for cell, line in zip(cells, lines, strict=True):
        try:
            values.append(float(cell))
        except ValueError:
            values.append(math.nan)
        if not math.isfinite(values[-1]):
            what = f"{short_repr(cell)} in column {column!r}: expected a number"
            hint = "Write it with a point for the decimals, or leave the row out."
            raise refusal(path, what, hint, line=line)
    return values


def _splits(cells: list[str], path: Path, lines: list[int], column: str) -> list[str]:
    for cell, line in zip(cells, lines, strict=True):
        if cell.lower() not in SPLIT_NAMES:
            what = f"{cell!r} in column {column!r}, expected one of {', '.join(SPLIT_NAMES)}"
            hint = "To have the tracks split by group: --ignore-split."
            raise refusal(path, what, hint, line=line)
    return [SPLIT_NAMES[cell.lower()] for cell in cells]


def _keys(
    path: Path,
    names: list[str],
    lines: list[int],
    audio_dir: str | Path | None,
    base_dir: str | Path | None,
) -> list[str]:
    if not any("/" in name for name in names):  # a table from Windows
        names = [name.replace("\\", "/") for name in names]
    relative = []
    for name, line in zip(names, lines, strict=True):
        absolute = bool(re.match("/|[A-Za-z]:/", name))
        try:
            below = _below(name, str(audio_dir)) if absolute and audio_dir is not None else name
            relative.append(check_key(below))
        except ValueError as error:
            hint = error.hint if isinstance(error, InputError) else ""
            if absolute:
                hint = "To take paths below a folder as relative to it: --audio-dir DIR."
            reason = error.message if isinstance(error, InputError) else error
            raise refusal(path, f"path {short_repr(name)}: {reason}", hint, line=line) from None
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
            same = f"{short_repr(names[before])}, of the same log-mel file {stem + '.mmap'!r},"
            hint = "Rename one of the files, or give the log-mel files' folder: --base-dir MELS."
        what = f"path {short_repr(names[i])}: {same} is in line {lines[before]}"
        raise refusal(path, what, hint, "conflict", lines[i])
    return keys


def _below(name: str, folder: str) -> str:
    """An absolute path relative to a folder. Raises ValueError if it is not below."""
    whole = re.sub("^/+", "/", posixpath.normpath(name))  # normpath leaves two
    below: PurePath = PureWindowsPath(whole)
    if not re.match(r"[A-Za-z]:[\\/]", folder):
        below, folder = PurePosixPath(whole), os.path.abspath(folder)
    return below.relative_to(folder).as_posix() + "/" * name.endswith("/")
