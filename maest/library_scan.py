"""Compare a folder with a library: what is new, changed, moved, gone, or offline.

A file that is missing is offline where its drive is not mounted, its folder cannot be read, or the
whole folder is missing or without any music, as a drive's is that is not there; else it is gone.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from maest.datasets.audio_folder import find_audio
from maest.helpers.audio.packets import Packets, read_packets
from maest.helpers.errors import InputError
from maest.helpers.files import drives
from maest.helpers.files.atomic import valid_utf8
from maest.library_file import transaction

Progress = Callable[[list[Any]], Iterable[Any]]  # yields the items of a list, and shows how far
_TAGS = {"title": "title", "artist": "artist", "album": "album", "album_artist": "albumartist"}


@dataclass
class Scan:
    """Paths are absolute; each list is in the order of the paths' bytes."""

    folder: Path
    unchanged: int = 0  # same size and date; not read
    new: list[Path] = field(default_factory=list)
    changed: list[Path] = field(default_factory=list)  # another sound
    retagged: list[Path] = field(default_factory=list)  # the same sound in a file written anew
    moved: list[tuple[Path, Path]] = field(default_factory=list)  # from, to
    copies: list[Path] = field(default_factory=list)  # new files of a sound that was known
    gone: list[Path] = field(default_factory=list)
    offline: list[Path] = field(default_factory=list)  # on a drive or in a folder that is not there
    unreadable: dict[Path, str] = field(default_factory=dict)  # files and folders → reason


def below(folder: str | Path) -> tuple[bytes, bytes]:
    """Return the first path below a folder, and the first behind those, in the order of bytes."""
    inside = os.path.join(os.fsencode(os.path.realpath(folder)), b"")
    return inside, inside[:-1] + bytes([inside[-1] + 1])


def track_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Return title, artist, album and album_artist of a file's tags; "" without one."""
    return {ours: tags.get(ours) or tags.get(name, "") for ours, name in _TAGS.items()}


def scan_folder(db: sqlite3.Connection, folder: str | Path, progress: Progress = iter) -> Scan:
    """See `library.Library.scan`. Each new file is noted in a step of its own."""
    root = Path(os.path.realpath(folder))
    columns = "SELECT path, id, size, mtime_ns, sound, place, state FROM files"
    where = " WHERE path >= ? AND path < ?"
    known = {row[0]: row[1:] for row in db.execute(columns + where, below(root))}
    scan, names = Scan(root), []
    try:
        audio = find_audio(root)
        names = audio.files
        scan.unreadable = {root / name: reason for name, reason in audio.unreadable.items()}
    except OSError as error:
        if not known:
            hint = "Give the folder that holds the music."
            what = error.strerror or str(error)
            raise InputError(what, kind="missing", path=folder, hint=hint) from None
    except InputError:  # no music at all: a drive's empty folder, if there has been some
        if not known:
            raise
    place_of = lru_cache(maxsize=None)(drives.mount_of)
    seen: list[tuple[int]] = []  # ids of files that were not here at the last scan
    for name in progress(names):
        path = root / name
        key = os.fsencode(path)
        row = known.pop(key, None)
        try:
            status = path.stat()
            if row and row[1:3] == (status.st_size, status.st_mtime_ns):
                scan.unchanged += 1
                if row[5] != "here":
                    seen.append((row[0],))
                continue
            packets = read_packets(path)
        except OSError as error:
            scan.unreadable[path] = f"cannot be read: {error.strerror or error}"
            continue
        place = os.fsencode(place_of(str(path.parent)))
        with transaction(db):
            _note(db, scan, key, status, packets, place)
    _note_missing(db, scan, known, bool(names))
    with transaction(db):
        db.executemany("UPDATE files SET state = 'here' WHERE id = ?", seen)
    return scan


def note_emptied(db: sqlite3.Connection, folder: str | Path) -> None:
    """Note that the files of a folder without any music are gone, if their drive is there."""
    root = Path(os.path.realpath(folder))
    try:
        find_audio(root)
    except (FileNotFoundError, InputError):
        rows = db.execute("SELECT id, place FROM files WHERE path >= ? AND path < ?", below(root))
        gone = [(number,) for number, place in rows if drives.is_mount(os.fsdecode(place))]
        db.executemany("UPDATE files SET state = 'gone' WHERE id = ?", gone)


def _note(
    db: sqlite3.Connection,
    scan: Scan,
    key: bytes,
    status: os.stat_result,
    packets: Packets,
    place: bytes,
) -> None:
    """Keep a file that is new, or has another size or date."""
    path, stamp = Path(os.fsdecode(key)), (status.st_size, status.st_mtime_ns)
    command = "INSERT INTO sounds (hash, seconds) VALUES (?, ?) ON CONFLICT DO NOTHING"
    is_new = db.execute(command, (packets.hash, packets.seconds)).rowcount > 0
    (sound,) = db.execute("SELECT id FROM sounds WHERE hash = ?", (packets.hash,)).fetchone()
    before = db.execute("SELECT id, sound FROM files WHERE path = ?", (key,)).fetchone()
    if before:
        identity = before[0]
        (scan.retagged if before[1] == sound else scan.changed).append(path)
    elif old := _moved_from(db, sound, key, stamp, place):
        identity = old[0]
        scan.moved.append((Path(os.fsdecode(old[1])), path))
    else:
        identity = None
        (scan.new if is_new else scan.copies).append(path)
    values = {
        "id": identity,
        "path": key,
        "name": valid_utf8(str(path)),
        "size": stamp[0],
        "mtime_ns": stamp[1],
        "sound": sound,
        "place": place,
        "state": "here",
        **track_tags(packets.tags),
    }
    names, marks = ", ".join(values), ", ".join(f":{name}" for name in values)
    db.execute(f"INSERT OR REPLACE INTO files ({names}) VALUES ({marks})", values)


def _moved_from(
    db: sqlite3.Connection, sound: int, key: bytes, stamp: tuple[int, int], place: bytes
) -> tuple[int, bytes] | None:
    """Return id and path of a file of this sound that is not where it was.

    Of a drive that is not mounted this is not known, unless it is mounted here now: then the file
    has its place on the drive, its size and its date.
    """
    command = "SELECT id, path, size, mtime_ns, place FROM files WHERE sound = ? ORDER BY path"
    for identity, path, size, mtime, old_place in db.execute(command, (sound,)).fetchall():
        there = (size, mtime, path.removeprefix(old_place))
        if drives.is_mount(os.fsdecode(old_place)):
            has_moved = not os.path.lexists(path)
        else:
            has_moved = there == (*stamp, key.removeprefix(place))
        if has_moved:
            return identity, path
    return None


def _note_missing(
    db: sqlite3.Connection, scan: Scan, missing: dict[bytes, tuple], any_music: bool
) -> None:
    """Sort files that were not found into gone and offline."""
    mounted = lru_cache(maxsize=None)(drives.is_mount)
    hidden = [os.fsencode(path) for path in scan.unreadable]
    moved = {os.fsencode(old) for old, _ in scan.moved}
    states: list[tuple[str, int]] = []
    for key in sorted(set(missing) - moved):
        identity, *_, place, state = missing[key]
        path = Path(os.fsdecode(key))
        is_hidden = any(key == folder or key.startswith(folder + b"/") for folder in hidden)
        if is_hidden or not any_music or not mounted(os.fsdecode(place)):
            now = "gone" if state == "gone" else "offline"
        else:
            now = "gone"
        if now == "offline":
            scan.offline.append(path)
        elif state != "gone":
            scan.gone.append(path)
        if now != state:
            states.append((now, identity))
    with transaction(db):
        db.executemany("UPDATE files SET state = ? WHERE id = ?", states)
