"""Files that are whole or absent."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_UMASK = threading.Lock()
TEMPORARY = ".tmp-"  # what the names of unfinished files and folders begin with


@contextmanager
def atomic_path(path: str | Path, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, and rename it to ``path`` if the block succeeds.

    A reader sees the old file or the whole new one, never a part. If the block raises, the
    temporary file is removed and ``path`` is left as it was. Missing parent folders are made.

    The temporary name keeps the suffix of ``path``: writers such as ``numpy.save`` and soundfile
    choose their format, or add a suffix of their own, by it.

    ``durable``: the content is on the disk before the name is, so that a power failure leaves the
    old file or the whole new one too.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A fixed-length stem: a name near the file system's limit must not become too long.
    handle, name = tempfile.mkstemp(prefix=TEMPORARY, suffix=path.suffix[-16:], dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes private files; a result is as readable as any other file of the user's.
        temporary.chmod(0o666 & ~current_umask())
        if durable:
            _flush(temporary)
        os.replace(temporary, path)
        if durable and os.name == "posix":  # elsewhere folders cannot be opened
            _flush(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _flush(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """Yield a temporary folder, and rename it to ``folder`` if the block succeeds.

    An older folder of that name is replaced, in two renames: a kill between them leaves it aside,
    in a ``.tmp-`` folder.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=folder.parent))
    try:
        yield temporary
        # Some writers make private files; these are as readable as any other of the user's.
        for path in temporary.rglob("*"):
            path.chmod((0o777 if path.is_dir() else 0o666) & ~current_umask())
        temporary.chmod(0o777 & ~current_umask())
        _move_into_place(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _move_into_place(new: Path, folder: Path) -> None:
    """Rename ``new`` to ``folder``; an older folder there is kept if that fails."""
    if not folder.exists():
        os.replace(new, folder)
        return
    aside = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=folder.parent))
    older = aside / folder.name
    try:
        os.replace(folder, older)
        try:
            os.replace(new, folder)
        except BaseException:
            os.rename(older, folder)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def current_umask() -> int:
    """The permissions that new files do not get."""
    with _UMASK:  # it can be read only by changing it, and it is that of all threads
        umask = os.umask(0)
        os.umask(umask)
    return umask


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` to ``path`` as indented UTF-8 JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(to_json(value), "utf-8")


def to_json(value: Any) -> str:
    """Indented JSON; NaN and infinity, which JSON does not have, become null."""
    return json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def point_link(link: str | Path, target: str | Path) -> None:
    """Make the symbolic link ``link`` point at ``target``, in one step if there was one before."""
    link = Path(link)
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=link.parent) as folder:
        temporary = Path(folder) / "link"
        temporary.symlink_to(os.path.relpath(target, link.parent))
        os.replace(temporary, link)
