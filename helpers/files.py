"""Files that are whole or absent, and what to say of those that cannot be written."""

from __future__ import annotations

import csv
import errno
import io
import json
import math
import os
import secrets
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from maest.helpers.errors import InputError

TEMPORARY = ".tmp-"  # what the names of unfinished files and folders begin with
# Errors that a single name is to blame for, not the disk: too long, not one for this file system, a
# file where a folder should be or the other way round, a loop of links.
NAMES_FILE_ONLY = {
    *(errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.EISDIR, errno.ENOTDIR),
    *(errno.EEXIST, errno.ELOOP),
}
_DAY = 24 * 3600  # seconds


@contextmanager
def atomic_path(path: str | Path, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, and rename it to ``path`` if the block succeeds.

    A reader sees the old file or the whole new one, never a part; with ``durable`` so does who
    comes after a power failure. If the block raises, ``path`` is left as it was. Missing parent
    folders are made. Of a symbolic link, the file that it leads to is replaced.

    The temporary name keeps the suffix of ``path``: writers such as ``numpy.save`` and soundfile
    choose their format, or add a suffix of their own, by it.
    """
    path, suffix = Path(path), Path(path).suffix[-16:]
    if path.is_symlink():
        path = Path(os.path.realpath(path))
        if path.is_symlink():
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    # A fixed length: a name near the file system's limit must not become too long.
    temporary = path.parent / f"{TEMPORARY}{secrets.token_hex(8)}{suffix}"
    # The kernel applies the umask: it cannot be read without a change to it, in all threads.
    handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    mode = stat.S_IMODE(os.fstat(handle).st_mode)
    os.close(handle)
    try:
        yield temporary
        temporary.chmod(mode)  # some writers (safetensors) put a private file in its place
        if durable:
            _flush(temporary)
        os.replace(temporary, path)
        if durable and os.name == "posix":  # elsewhere folders cannot be opened
            _flush(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _flush(path: Path) -> None:
    # of a folder: its list of names
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_leftovers(folder: str | Path, suffixes: Collection[str]) -> None:
    """Remove unfinished files with such suffixes that a run killed a day ago or earlier left below.

    The folder need not be there; folders that are links are not entered.
    """
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place) / name
            if not name.startswith(TEMPORARY) or path.suffix not in suffixes:
                continue
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _DAY:
                    path.unlink()


def read_bytes(
    path: str | Path,
    missing: str,
    access: str = "Check that it is a file, and that you may read it.",
) -> bytes:
    """The content of a file that a user named. InputError: "missing" or "access", so hinted."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError("no such file", kind="missing", path=path, hint=missing) from None
    except OSError as error:
        what = f"cannot be read ({error.strerror or error})"
        raise InputError(what, kind="access", path=path, hint=access) from None


def write_error(path: str | Path, error: OSError, other_place: str) -> InputError:
    """The error for a file that cannot be written, and so no other in its folder.

    ``other_place`` is the setting that names another folder, such as ``inference.out_dir``.
    """
    why, step = "not writable", f"Make its folder writable, or give another {other_place}"
    # NumPy gives no number when a disk, or a quota, takes a part only.
    if error.errno in (None, errno.ENOSPC, errno.EDQUOT):
        why, step = "the disk is full, or your quota", "Make room"
    return InputError(
        f"cannot be written: {error.strerror or error} ({why}). What is done is kept",
        kind="access",
        hint=f"{step}, and run the same again.",
        path=path,
    )


def check_room(folder: Path, needed: int) -> None:
    """Raise InputError unless the disk of a folder takes so many more bytes."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        what = f"{needed} bytes are still to come, and there is room for {free}"
        hint = "Make room, or give another folder."
        raise InputError(what, kind="access", path=folder, hint=hint)


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


def write_changed(path: str | Path, content: bytes) -> None:
    """Write a file, atomically; one that has this content stays as it is, with its times."""
    path = Path(path)
    if not path.is_file() or path.read_bytes() != content:
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)


def write_rows(
    path: str | Path, header: Iterable[object], rows: Iterable[Iterable[object]]
) -> None:
    """Write a CSV table in UTF-8, atomically; names that are not UTF-8 keep their bytes."""
    with (
        atomic_path(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        table = csv.writer(file)
        table.writerow(header)
        table.writerows(rows)


def point_link(link: str | Path, target: str | Path) -> None:
    """Make the symbolic link ``link`` point at ``target``, in one step if there was one before."""
    link = Path(link)
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=link.parent) as folder:
        temporary = Path(folder) / "link"
        temporary.symlink_to(os.path.relpath(target, link.parent))
        os.replace(temporary, link)


# ---- lists of what failed, and text of any bytes -------------------------------------------------


def write_failures(
    path: str | Path, failed: Mapping[str, str], column: str = "key", value: str = "reason"
) -> Path | None:
    """Write a CSV with a row for each failure, key and reason, sorted by key; give its path.

    Without failures it is removed (None); one that says the same already stays. Keys come back from
    :func:`read_failures` as they were, newlines and bytes that are no UTF-8 (surrogate escapes)
    included. What cannot be the name of a file is written as a backslash escape.
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
    """The text with surrogates only where they stand for a byte; others become escapes."""
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return valid_utf8(text)
    return text


def valid_utf8(text: str) -> str:
    """The text without surrogates: they become backslash escapes (``\\udcff``)."""
    return text.encode("utf-8", "backslashreplace").decode()


def print_any_name() -> None:
    """Let this process print the names of files whose bytes are no text."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
