"""Playlists that music players open."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from maest.helpers.files.atomic import atomic_path, refuse_others, write_error

_HEAD = "#EXTM3U\n#MAEST\n"  # the second line marks the files that this program may replace
# What a line of UTF-8 cannot say, or players would drop: line breaks, bytes that are no text,
# spaces at the ends.
_NO_LINE = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029\ud800-\udfff]|^\s|\s$")


class Song(Protocol):
    @property
    def path(self) -> Path: ...
    @property
    def seconds(self) -> float: ...
    @property
    def title(self) -> str: ...
    @property
    def artist(self) -> str: ...


def write_m3u8(path: str | Path, tracks: Iterable[Song]) -> int:
    """Write a playlist in UTF-8, atomically, and return the number of its tracks.

    Paths are relative to the playlist's folder, so that both can move together. Names that are no
    UTF-8, or have line breaks, become ``file:`` addresses, which are absolute.

    Raises InputError if a file of that name is not a playlist of ours ("exists"), or cannot be
    written ("access").
    """
    path, number = Path(path), 0
    folder = os.path.realpath(path.parent)
    lines = [_HEAD]
    for track in tracks:
        name = " - ".join(part for part in (track.artist, track.title) if part) or track.path.stem
        text = re.sub(r"[\s\ud800-\udfff]+", " ", name)
        lines.append(f"#EXTINF:{round(track.seconds) or -1},{text}\n{_line(track.path, folder)}\n")
        number += 1
    refuse_others(path, _HEAD)
    try:
        with atomic_path(path) as temporary:
            temporary.write_text("".join(lines), "utf-8")
    except OSError as error:
        raise write_error(path, error, "place for the playlist") from None
    return number


def _line(path: Path, folder: str) -> str:
    try:
        name = os.path.relpath(path, folder)
    except ValueError:  # another drive of Windows
        name = str(path)
    if _NO_LINE.search(name):
        return Path(os.path.abspath(path)).as_uri()
    return f"./{name}" if name.startswith("#") else name
