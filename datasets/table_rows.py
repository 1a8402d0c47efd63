"""The rows of a CSV or TSV file, as spreadsheets and other programs write them."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections import Counter
from pathlib import Path
from typing import Literal

from maest.helpers.errors import InputError, Kind

Rows = tuple[list[str], list[list[str]], list[int]]  # names of columns, rows, their last lines


def refusal(
    path: Path, message: str, hint: str, kind: Kind = "invalid", line: int | None = None
) -> InputError:
    """The error for a table, or a line of it."""
    where = "" if line is None else f"line {line}: "
    return InputError(where + message, kind=kind, path=path, hint=hint)


def read_rows(path: Path, warnings: list[str]) -> Rows:
    """Read UTF-8 or UTF-16 text; ``warnings`` is added to.

    Raises:
        InputError: no such file, no text, no rows, or a row of another length than the first.
    """
    text = _read_text(path)
    named = re.match(r'"?sep=(.)\1*"?(?=[\r\n])', text, re.IGNORECASE)
    if named:  # Excel's own line; the others keep their numbers
        text = text[named.end() :]
    first = next((line for line in text.splitlines() if line.strip()), "")
    bare = re.sub(r'"[^"]*"', "", first)
    delimiter = "\t" if "\t" in bare else max(",;", key=bare.count)
    delimiter = named[1] if named else delimiter
    if delimiter != "\t" or '"' not in text:
        return _parse(path, text, delimiter)
    refused = None
    try:
        quoted = _parse(path, text, delimiter)
        # Two quote signs far apart may have swallowed what is between them.
        if not any("\t" in cell or "\n" in cell for row in quoted[1] for cell in row):
            return quoted
    except InputError as error:
        refused = error
    try:  # titles such as "Heroes" live, which no one has quoted
        plain = _parse(path, text, delimiter, quoting=csv.QUOTE_NONE)
    except InputError:
        if refused is not None:
            raise refused from None
        return quoted
    warnings.append("quote signs of the table do not come in pairs: they were taken as text")
    return plain


def _read_text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise refusal(path, "no such file", "Check the path of the table.", "missing") from None
    except OSError as error:
        hint = "Expected a table: a CSV or TSV file."
        raise refusal(path, f"cannot be read ({error.strerror})", hint, "access") from None
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
        raise refusal(path, what, hint, line=line) from None


def _parse(
    path: Path, text: str, delimiter: str, quoting: Literal[0, 3] = csv.QUOTE_MINIMAL
) -> Rows:
    content = io.StringIO(text, newline="")
    reader = csv.reader(content, delimiter=delimiter, quoting=quoting, strict=True)
    rows, lines = [], []
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append(row)
                lines.append(reader.line_num)
    except csv.Error as error:
        raise refusal(path, str(error), "Check its quotes.", line=reader.line_num) from None
    if len(rows) < 2:
        hint = "Expected a line of column names, and a row for each track."
        raise refusal(path, "the table has no rows", hint, "empty")
    header = [name.strip() for name in rows[0]]
    for name, count in Counter(header).items():
        if count > 1 or not name:
            what = f"{name!r} twice" if name else "an empty name"
            hint = "Expected distinct names, separated by commas, tabs or semicolons."
            raise refusal(path, f"{what} among the columns' names", hint, line=lines[0])
    for row, line in zip(rows[1:], lines[1:], strict=True):
        if len(row) != len(header):
            what = f"{len(row)} cells, expected {len(header)} as in the first line"
            hint = (
                f"A cell that has the delimiter ({delimiter!r}) in it must stand in double quotes."
            )
            if {"TRACK_ID", "PATH", "TAGS"}.issubset(header):
                hint = "This is a table of MTG-Jamendo: use datasets/jamendo/preprocess.py."
            raise refusal(path, what, hint, line=line)
    return header, rows[1:], lines[1:]
