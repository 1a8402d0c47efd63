"""Keep read works and performed clips in an SQLite file, so that an interrupted build goes on."""

import json
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from maest.datasets.scores.reading import Metadata, Score

# Raise it when reading changes: notes of two versions must not mix.
READER_VERSION = 1

# Version 0.1 drops the tables of a file with another user_version.
_TABLES = """
CREATE TABLE IF NOT EXISTS works (id TEXT PRIMARY KEY, notes BLOB, metadata TEXT, error TEXT);
CREATE TABLE IF NOT EXISTS clips (key TEXT PRIMARY KEY, recipe TEXT, row TEXT);
CREATE TABLE IF NOT EXISTS versions (name TEXT PRIMARY KEY, version TEXT);
PRAGMA user_version = 1;
"""
_ROWS = 8  # per commit, which takes a disk some milliseconds


class Cache:
    """Works by id (a score, or why there is none) and clips by recipe (settings) and key."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection
        self._rows = 0

    def versions(self) -> dict[str, str] | None:
        """Versions of what made the content; {} in a file of version 0.1, None in a new one."""
        is_new = self._db.execute("SELECT id FROM works LIMIT 1").fetchone() is None
        versions = dict(self._db.execute("SELECT name, version FROM versions"))
        return versions or (None if is_new else {})

    def set_versions(self, versions: Mapping[str, str]) -> None:
        with self._db:
            self._db.executemany("INSERT INTO versions VALUES (?, ?)", versions.items())

    def works(self, ids: Iterable[str]) -> dict[str, Score | str]:
        """Works in the cache among ``ids``: a score, or the reason of a failure."""
        wanted = set(ids)
        rows = self._db.execute("SELECT id, notes, metadata, error FROM works")
        return {
            identity: error if notes is None else _unpack(notes, metadata)
            for identity, notes, metadata, error in rows
            if identity in wanted
        }

    def add_work(self, identity: str, work: Score | str) -> None:
        columns = (None, None, work) if isinstance(work, str) else (*_pack(work), None)
        self._add("INSERT OR REPLACE INTO works VALUES (?, ?, ?, ?)", (identity, *columns))

    def clips(self, recipe: str) -> dict[str, dict[str, Any]]:
        """Rows of a recipe's clips, by key."""
        rows = self._db.execute("SELECT key, row FROM clips WHERE recipe = ?", (recipe,))
        return {key: json.loads(row) for key, row in rows}

    def forget_clips(self, keys: Iterable[str]) -> None:
        """Delete clips that will be overwritten: a killed run must not leave their rows."""
        with self._db:
            self._db.executemany("DELETE FROM clips WHERE key = ?", [(key,) for key in keys])

    def add_clip(self, recipe: str, key: str, row: dict[str, Any]) -> None:
        self._add("INSERT OR REPLACE INTO clips VALUES (?, ?, ?)", (key, recipe, json.dumps(row)))

    def _add(self, command: str, columns: tuple) -> None:
        self._db.execute(command, columns)
        self._rows += 1
        if self._rows % _ROWS == 0:
            self._db.commit()


@contextmanager
def open_cache(path: Path) -> Iterator[Cache]:
    connection = sqlite3.connect(path)
    try:
        connection.executescript(_TABLES)
        yield Cache(connection)
    finally:
        connection.commit()  # keep all rows, whatever ended the work
        connection.close()


def _pack(score: Score) -> tuple[bytes, str]:
    """Pack columns one by one, as differences: they compress to about a byte per note."""
    columns = np.diff(score.notes, axis=0, prepend=0).astype("<i4").T
    metadata = json.dumps(asdict(score.metadata), ensure_ascii=False)
    return zlib.compress(columns.tobytes(), 6), metadata


def _unpack(notes: bytes, metadata: str) -> Score:
    columns = np.frombuffer(zlib.decompress(notes), "<i4").reshape(4, -1)
    rows = np.ascontiguousarray(np.cumsum(columns.T, axis=0, dtype=np.int32))
    return Score(rows, Metadata(**json.loads(metadata)))
