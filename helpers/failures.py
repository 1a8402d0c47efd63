"""The list of what failed, with reasons, that a run leaves beside its results."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from maest.helpers.files import write_rows


def write_failures(
    path: str | Path, failed: Mapping[str, str], column: str = "key", value: str = "reason"
) -> Path | None:
    """Write a CSV with a row for each failure, key and reason, sorted by key; give its path.

    Without failures it is removed (None); one that says the same already stays. Keys come back from
    :func:`read_failures` as they were, newlines and bytes that are no UTF-8 (surrogate escapes)
    included. What cannot be the name of a file is written as a backslash escape.

    Raises:
        OSError: it cannot be written.
    """
    path = Path(path)
    if not failed:
        if path.exists():  # a read-only disk refuses even to remove what is not there
            path.unlink(missing_ok=True)
        return None
    rows = sorted((encodable(key), encodable(why)) for key, why in failed.items())
    if list(read_failures(path, column, value).items()) != rows:
        write_rows(path, (column, value), rows)
    return path


def read_failures(path: str | Path, column: str = "key", value: str = "reason") -> dict[str, str]:
    """What :func:`write_failures` wrote; nothing if there is no such file, or another."""
    try:
        with Path(path).open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            return {row[column]: row[value] for row in csv.DictReader(file)}
    except (FileNotFoundError, KeyError, csv.Error):
        return {}


def encodable(text: str) -> str:
    """The text as UTF-8 with ``errors="surrogateescape"`` takes it.

    Surrogates that stand for no byte become backslash escapes.
    """
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return valid_utf8(text)
    return text


def valid_utf8(text: str) -> str:
    """The text without surrogates: they become backslash escapes (``\\udcff``)."""
    return text.encode("utf-8", "backslashreplace").decode()
