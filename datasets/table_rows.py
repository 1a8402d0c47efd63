"""Rows and columns of a CSV or TSV file, as spreadsheets write them."""

import csv
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Literal, TypeVar

from maest.helpers.errors import InputError, Kind
from maest.helpers.files.atomic import read_bytes
from maest.helpers.names import short_repr

Value = TypeVar("Value")


def bare(name: str) -> str:
    """``Artist Name``, ``artist_name``, ``artistName`` → ``artistname``."""
    return re.sub(r"[\s_-]", "", name).casefold()


class Rows:
    def __init__(self, path: Path, rows: list[list[str]], lines: list[int]) -> None:
        self.path, self.lines = path, lines[1:]  # in which the rows end, from 1
        # Interned, as a large table has the same few cells again and again.
        columns = zip(*(map(sys.intern, map(str.strip, row)) for row in rows), strict=True)
        self.cells = {column[0]: column[1:] for column in columns}  # name of a column → [N]
        self.by_bare = {bare(name): name for name in reversed(self.cells)}
        self.header = ", ".join(self.cells)
        self.warnings: list[str] = []

    def named(self, names: Sequence[str], option: str) -> list[str]:
        """Names of the columns that an option names, each once."""
        columns = [n if n in self.cells else self.by_bare.get(bare(n), "") for n in names]
        if "" in columns:
            what, hint = f"no column {names[columns.index('')]!r}", f"Give one of: {self.header}."
            raise InputError(what, kind="unknown", path=self.path, setting=option, hint=hint)
        return list(dict.fromkeys(columns))

    def convert(
        self, column: str, read: Callable[[str], Value], expected: str, hint: str
    ) -> list[Value]:
        """Apply ``read`` to each cell; its KeyError or ValueError becomes an InputError."""
        values = []
        for cell, line in zip(self.cells[column], self.lines, strict=True):
            try:
                values.append(read(cell))
            except (KeyError, ValueError):
                what = f"{short_repr(cell)} in column {column!r}, expected {expected}"
                raise refusal(self.path, what, hint, line=line) from None
        return values


def refusal(
    path: Path, message: str, hint: str, kind: Kind = "invalid", line: int | None = None
) -> InputError:
    where = "" if line is None else f"line {line}: "
    return InputError(where + message, kind=kind, path=path, hint=hint)


def read_rows(path: Path, ragged: bool = False) -> Rows:
    """Cut columns as a line ``sep=;`` says, or at tabs, or at the more frequent of , and ;.

    ``ragged`` rows have any number of cells; a column without a name goes on with the one before,
    as "label 2".
    """
    wanted = "Expected a table: a CSV or TSV file, as UTF-8 or UTF-16 text."
    content = read_bytes(path, missing="Check the path of the table.", access=wanted)
    try:
        text = content.decode(json.detect_encoding(content))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        what = f"not UTF-8 text (byte {content[error.start]:#04x})"
        raise refusal(path, what, wanted, line=line) from None
    named = re.match(r'"?sep=(.)\1*"?(?=[\r\n])', text, re.IGNORECASE)
    text = text[named.end() :] if named else text  # Excel's line; the rest keeps its line numbers
    first = next((line for line in text.splitlines() if line.strip()), "")
    unquoted = re.sub(r'"[^"]*"', "", first)
    delimiter = "\t" if "\t" in unquoted else max(",;", key=unquoted.count)
    delimiter = named[1] if named else delimiter
    plain = None
    if delimiter == "\t" and '"' in text:
        with suppress(InputError):  # titles such as "Heroes" live, not quoted as a cell
            plain = _parse(path, text, delimiter, ragged, csv.QUOTE_NONE)
    try:
        quoted = _parse(path, text, delimiter, ragged)
        # Two quote signs far apart may have swallowed the cells between them.
        if plain is None or not any(re.search(r"[\t\n]", cell) for cell in chain(*quoted[0])):
            return Rows(path, *quoted)
    except InputError:
        if plain is None:
            raise
    rows = Rows(path, *plain)
    rows.warnings.append("quote signs of the table do not come in pairs: they were taken as text")
    return rows


def _parse(
    path: Path,
    text: str,
    delimiter: str,
    ragged: bool,
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL,
) -> tuple[list[list[str]], list[int]]:
    """Rows that are not empty, the header first, and the lines in which they end."""
    content = io.StringIO(text, newline="")
    reader = csv.reader(content, delimiter=delimiter, quoting=quoting, strict=True)
    rows, lines = [], []
    try:
        for row in reader:
            if any(map(str.strip, row)):
                rows.append(row)
                lines.append(reader.line_num)
    except csv.Error as error:
        raise refusal(path, str(error), "Check its quotes.", line=reader.line_num) from None
    hint = "Expected a line of distinct column names, and a row for each track."
    if len(rows) < 2:
        raise refusal(path, "the table has no rows", hint, "empty")
    if ragged:
        width = max(map(len, rows))
        rows = [row + [""] * (width - len(row)) for row in rows]
        rows[0] = _numbered(rows[0])
    header = [name.strip() for name in rows[0]]
    if bad := [name for name, count in Counter(header).items() if count > 1 or not name]:
        raise refusal(path, f"{bad[0]!r} is no name, or twice a name", hint, line=lines[0])
    for row, line in zip(rows, lines, strict=True):
        if len(row) != len(header):
            what = f"{len(row)} cells, expected {len(header)} as in the first line"
            hint = f"A cell with the delimiter ({delimiter!r}) in it must stand in double quotes."
            if {"TRACK_ID", "PATH", "TAGS"}.issubset(header):
                hint = "This is a table of MTG-Jamendo: use datasets/jamendo/preprocess.py."
            raise refusal(path, what, hint, line=line)
    return rows, lines


def _numbered(header: list[str]) -> list[str]:
    """``path``, ``label``, blank → ``path``, ``label``, ``label 2``; the same for equal names."""
    seen, names, last = Counter[str](), [], ""
    for name in header:
        last = name.strip() or last
        seen[last] += 1
        names.append(last if seen[last] == 1 else f"{last} {seen[last]}")
    return names
