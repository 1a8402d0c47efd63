"""What has been read and performed so far, in one SQLite file: an interrupted build goes on."""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from datasets.scores.corpus import Metadata, Score

# Raise it when reading changes: notes read by another version are forgotten, and read again.
READER_VERSION = 1

_TABLES = """
CREATE TABLE IF NOT EXISTS works (id TEXT PRIMARY KEY, notes BLOB, metadata TEXT, error TEXT);
CREATE TABLE IF NOT EXISTS clips (key TEXT PRIMARY KEY, recipe TEXT, row TEXT);
"""


class Cache:
    """Works by id (a score, or why there is none) and clips by key (a row of facts).

    A clip's row counts only under the recipe (settings and versions) that it was made with.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    def works(self, ids: Iterable[str]) -> dict[str, Score | str]:
        """The works among ``ids`` that were read before: a score, or the reason of a failure."""
        wanted = set(ids)
        found: dict[str, Score | str] = {}
        for identity, notes, metadata, error in self._db.execute(
            "SELECT id, notes, metadata, error FROM works"
        ):
            if identity not in wanted:
                continue
            found[identity] = error if notes is None else _unpack(notes, metadata)
        return found

    def add_works(self, works: Iterable[tuple[str, Score | str]]) -> None:
        rows = []
        for identity, work in works:
            if isinstance(work, str):
                rows.append((identity, None, None, work))
            else:
                rows.append((identity, *_pack(work), None))
        with self._db:
            self._db.executemany("INSERT OR REPLACE INTO works VALUES (?, ?, ?, ?)", rows)

    def clips(self, recipe: str) -> dict[str, dict[str, Any]]:
        """Rows of the clips made with this recipe, by key."""
        query = "SELECT key, row FROM clips WHERE recipe = ?"
        return {key: json.loads(row) for key, row in self._db.execute(query, (recipe,))}

    def forget_clips(self, keys: Iterable[str]) -> None:
        """Forget clips that are about to be overwritten: a killed run must not leave their rows."""
        with self._db:
            self._db.executemany("DELETE FROM clips WHERE key = ?", [(key,) for key in keys])

    def add_clips(self, recipe: str, clips: Iterable[tuple[str, dict[str, Any]]]) -> None:
        rows = [(key, recipe, json.dumps(row)) for key, row in clips]
        with self._db:
            self._db.executemany("INSERT OR REPLACE INTO clips VALUES (?, ?, ?)", rows)


@contextmanager
def open_cache(path: Path) -> Iterator[Cache]:
    """Open the cache, and make it if there is none or if another version wrote it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path)
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        with connection:
            if version != READER_VERSION:
                connection.executescript(
                    "DROP TABLE IF EXISTS works; DROP TABLE IF EXISTS clips;"
                    f"PRAGMA user_version = {READER_VERSION};"
                )
            connection.executescript(_TABLES)
        yield Cache(connection)
    finally:
        connection.close()


def _pack(score: Score) -> tuple[bytes, str]:
    """Columns one after the other, each as differences: they compress to about a byte a note."""
    columns = np.diff(score.notes, axis=0, prepend=0).astype("<i4").T
    metadata = json.dumps(score.metadata.to_json(), ensure_ascii=False)
    return zlib.compress(columns.tobytes(), 6), metadata


def _unpack(notes: bytes, metadata: str) -> Score:
    columns = np.frombuffer(zlib.decompress(notes), "<i4").reshape(4, -1)
    rows = np.ascontiguousarray(np.cumsum(columns.T, axis=0, dtype=np.int32))
    return Score(rows, Metadata.from_json(json.loads(metadata)))
