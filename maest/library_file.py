"""The SQLite file of a library: made, opened, checked, and written in whole steps."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from maest.helpers.errors import InputError
from maest.helpers.files.drives import network_drive

_MARK = 0x4D414553  # "MAES", SQLite's application id of our files
_VERSION = 1
_PATIENCE = 60  # seconds that a step waits for those of another process
# A sound has results, whatever its files are called and tagged. Paths are bytes; names are the
# same as text; `place` is where a file's drive was mounted. Shapes, settings, tags and warnings are
# JSON.
_TABLES = """
CREATE TABLE IF NOT EXISTS sounds (
    id INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE, seconds REAL NOT NULL);
CREATE TABLE IF NOT EXISTS files (
    id INTEGER PRIMARY KEY, path BLOB NOT NULL UNIQUE, name TEXT NOT NULL, size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL, sound INTEGER NOT NULL REFERENCES sounds, place BLOB NOT NULL,
    state TEXT NOT NULL, title TEXT NOT NULL, artist TEXT NOT NULL, album TEXT NOT NULL,
    album_artist TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS files_of_sound ON files (sound);
CREATE TABLE IF NOT EXISTS models (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, hash TEXT NOT NULL, settings TEXT NOT NULL,
    shape TEXT, UNIQUE (hash, settings));
CREATE TABLE IF NOT EXISTS results (
    sound INTEGER NOT NULL REFERENCES sounds, model INTEGER NOT NULL REFERENCES models,
    embedding BLOB, tags TEXT, warnings TEXT, error TEXT,
    PRIMARY KEY (sound, model));
CREATE INDEX IF NOT EXISTS results_of_model ON results (model, sound) WHERE error IS NULL;
"""


def default_path() -> Path:
    """Return the library in the user's data folder."""
    import platformdirs

    return platformdirs.user_data_path("maest") / "library.sqlite"


def open_file(path: Path, read_only: bool) -> tuple[sqlite3.Connection, list[str]]:
    """Open a library, made if it is missing; return warnings about its place, too.

    Raises InputError for a missing file that would only be read ("missing"), another file
    ("exists"), a damaged one ("corrupt"), one of a later version ("mismatch") or one that cannot
    be read or written ("access").
    """
    if not path.is_file():
        if read_only:
            hint = "Make one: maest index FOLDER"
            raise InputError("no library there", kind="missing", path=path, hint=hint)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            hint = "Give another place for the library."
            raise InputError(str(error), kind="access", path=path, hint=hint) from None
    kind, warnings = network_drive(path.parent), []
    if kind:
        warnings.append(
            f"The library is on a network drive ({kind}), where locks cannot be trusted: write to "
            "it from one computer at a time, or keep it on a disk of this one (--library FILE)."
        )
    with readable_errors(path):
        db = _connect(path, "ro" if read_only else "rwc")
        try:
            if read_only:
                db = _readable(db, path)
            else:
                _prepare(db, path, wal=not kind)
            _check(db, path)
        except BaseException:
            db.close()
            raise
    return db, warnings


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    # as_uri escapes what a name may hold of "?" and "#"
    uri = f"{Path(os.path.abspath(path)).as_uri()}?mode={mode}"
    db = sqlite3.connect(uri, uri=True, timeout=_PATIENCE, isolation_level=None)
    db.execute("PRAGMA foreign_keys = ON")
    return db


def _readable(db: sqlite3.Connection, path: Path) -> sqlite3.Connection:
    """Where the folder cannot be written, SQLite reads a finished file if told it is constant."""
    try:
        db.execute("SELECT count(*) FROM sqlite_master")
    except sqlite3.OperationalError:
        unfinished = path.with_name(f"{path.name}-wal")
        if not os.access(path, os.R_OK) or (unfinished.exists() and unfinished.stat().st_size):
            raise
        db.close()
        return _connect(path, "ro&immutable=1")
    return db


def _prepare(db: sqlite3.Connection, path: Path, wal: bool) -> None:
    """Make the tables of a new library; two processes may do so at once."""
    with transaction(db):
        if not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            if db.execute("PRAGMA application_id").fetchone()[0] not in (0, _MARK):
                return  # another program's
            for command in _TABLES.split(";"):
                db.execute(command)
            db.execute(f"PRAGMA application_id = {_MARK}")
            db.execute(f"PRAGMA user_version = {_VERSION}")
    _check(db, path)
    with suppress(sqlite3.OperationalError):  # another process is at it: it does as much
        db.execute(f"PRAGMA journal_mode = {'WAL' if wal else 'DELETE'}")
    if wal:  # readers and a writer do not wait for each other
        # A power failure may take the last steps; nothing does any harm to earlier ones.
        db.execute("PRAGMA synchronous = NORMAL")


def _check(db: sqlite3.Connection, path: Path) -> None:
    if db.execute("PRAGMA application_id").fetchone()[0] != _MARK:
        hint = "Give another file as library."
        raise InputError("a database, not a library of maest", kind="exists", path=path, hint=hint)
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version != _VERSION:
        what = f"a library of version {version}, where this program has {_VERSION}"
        hint = "Use the program that made it, or index the music again into another file."
        raise InputError(what, kind="mismatch", path=path, hint=hint)


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Do all commands of a block or, after an error or a crash, none."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


@contextmanager
def readable_errors(path: Path) -> Iterator[None]:
    """Raise errors of SQLite as InputError: "access", or "corrupt" for a damaged file."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            hint = "Wait until the other program that writes to it is done."
        elif "readonly" in str(error):
            hint = "Open it for writing, or check the permissions of the file and its folder."
        else:
            hint = "Check the disk's room, and the permissions of the file and its folder."
        raise InputError(str(error), kind="access", path=path, hint=hint) from None
    except sqlite3.DatabaseError as error:
        hint = "If this is your library, move it away and index the music again; else name another."
        raise InputError(str(error), kind="corrupt", path=path, hint=hint) from None
